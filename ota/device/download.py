"""A payload, chunk by chunk, resumable.

Each chunk's SHA-256 is in a list whose own hash is signed; a chunk is compared with it *before* it
is written.  The same list makes resuming simple: the bytes on the disk are their own bitmap.  What
is there is hashed again, and whatever does not match (never written, torn by a power cut, rotten)
is pulled.  Nothing else has to be kept, so nothing can disagree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from ota.device.source import Source
from ota.errors import PayloadMismatch
from ota.storage import OpenFile, Storage
from ota.trust import Payload, chunks_object
from ota.wire import CHUNK_BYTES, ranges

HASH_BYTES = hashlib.sha256().digest_size
SYNC_BYTES = 256 << 10  # with what is on its way (``mqtt_source``) the MiB a power cut may cost
MAX_BAD_CHUNKS = 8  # a source that lies this often is not worth asking further


class Download:
    """One payload on its way to ``path``."""

    def __init__(self, source: Source, storage: Storage, payload: Payload, path: Path) -> None:
        self._source = source
        self._storage = storage
        self._payload = payload
        self._path = path
        self._ranges = ranges(payload.length, payload.chunk_bytes)
        self.fetched_bytes = 0
        """What came over the network in this run, chunk list included."""
        self.kept_bytes = 0
        """What of it is in the file: the next run has less to do."""

    def run(self, on_progress: Callable[[float], None] = lambda _: None) -> None:
        """Fetch what is missing; afterwards the file is the signed payload.

        Raises:
            PayloadMismatch: the source keeps sending bytes that are not the signed ones.
            TransportError, StorageError, Cancelled: what came is kept.
        """
        hashes = self._chunk_hashes()
        is_new = not self._path.exists()
        with self._storage.open(self._path) as file:
            file.resize(self._payload.length)
            missing = {
                offset: length
                for (offset, length), expected in zip(self._ranges, hashes, strict=True)
                if is_new or hashlib.sha256(file.read_at(offset, length)).digest() != expected
            }
            self._pull(file, hashes, missing, on_progress)
            file.sync()
            self._check_whole(file)

    def _pull(
        self,
        file: OpenFile,
        hashes: list[bytes],
        missing: dict[int, int],
        on_progress: Callable[[float], None],
    ) -> None:
        target = f"targets/{self._payload.target}"
        unsynced = n_bad = 0
        left = sum(missing.values())
        on_progress(1 - left / self._payload.length)
        while missing:
            for piece in self._source.pull(target, list(missing.items())):
                self.fetched_bytes += len(piece.data)
                if not self._is_chunk(hashes, piece.offset, piece.data):
                    n_bad += 1
                    if n_bad >= MAX_BAD_CHUNKS:
                        raise PayloadMismatch(
                            f"{target}: {n_bad} chunks differ from the signed ones"
                        )
                    continue
                file.write_at(piece.offset, piece.data)
                self.kept_bytes += missing.get(piece.offset, 0)
                left -= missing.pop(piece.offset, 0)
                unsynced += len(piece.data)
                if unsynced >= SYNC_BYTES:
                    file.sync()
                    unsynced = 0
                on_progress(1 - left / self._payload.length)

    def _is_chunk(self, hashes: list[bytes], offset: int, data: bytes) -> bool:
        index, rest = divmod(offset, self._payload.chunk_bytes)
        return rest == 0 and hashlib.sha256(data).digest() == hashes[index]

    def _chunk_hashes(self) -> list[bytes]:
        """Fetch the list of chunk hashes, unless it follows from the payload's own hash."""
        payload = self._payload
        n_bytes = len(self._ranges) * HASH_BYTES
        if len(self._ranges) == 1:
            data = bytes.fromhex(payload.sha256)
        else:
            name = f"targets/{chunks_object(payload.target)}"
            pieces = self._source.pull(name, ranges(n_bytes, CHUNK_BYTES))
            data = b"".join(p.data for p in sorted(pieces, key=lambda piece: piece.offset))
            self.fetched_bytes += len(data)
        digest = hashlib.sha256(data).hexdigest()
        if len(data) != n_bytes or digest != payload.chunks_sha256:
            raise PayloadMismatch(
                f"{payload.target}: expected a chunk list {payload.chunks_sha256}, got {digest}"
            )
        return [data[k : k + HASH_BYTES] for k in range(0, n_bytes, HASH_BYTES)]

    def _check_whole(self, file: OpenFile) -> None:
        digest = hashlib.sha256()
        for offset, length in self._ranges:
            digest.update(file.read_at(offset, length))
        if digest.hexdigest() != self._payload.sha256:
            raise PayloadMismatch(
                f"{self._payload.target}: expected sha256 {self._payload.sha256}, "
                f"got {digest.hexdigest()}"
            )
