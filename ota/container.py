"""The ``.etd`` container: a delta from one model to another, or a whole model.  Pure.

Layout::

    0    "ETD" 0x03
    4    8 B   first bytes of the base's root; zeros: no base, this is a full image
    12   32 B  root of the result
    44         length of the packed plan, LEB128
               the plan (ota.plan), one zstd frame; dictionary: the base's release.json
               then the columns of ota.delta, one after the other:
               CODED the coder's stream, as it is
               BYTES a zstd frame a block

No frame has zstd's magic number; each has a checksum.

Laws: the base is checked before anything else is believed.  Every declared number has a bound and
is checked against the others before a byte is made.  Memory is bounded by ``PIECE_BYTES`` and
``BLOCK_BYTES``, never by a declared number.  Each result file is hashed as it
comes out; the whole is what it should be if the root over these hashes is the one in the header,
which is signed (``ota.hollow``).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol

import zstandard

from ota.delta import CodedReader, Column
from ota.errors import DeltaFormatError, PayloadMismatch, WrongBase
from ota.hollow import UNKNOWN, fill
from ota.plan import (
    BLOCK_BYTES,
    MAX_PLAN_BYTES,
    Plan,
    Region,
    RegionKind,
    kept_files,
    parse_plan,
    put_number,
)
from ota.release import FileEntry, Release, short_root

MAGIC = b"ETD\x03"
HEADER = struct.Struct("<4s8s32s")
BASE_BYTES = 8  # of the base's root: tells bases apart; what is right is up to the result's root
NO_BASE = bytes(BASE_BYTES)
MAX_HEAD_BYTES = HEADER.size + 4  # with the length of a packed plan of at most MAX_PLAN_BYTES
FRAME_MAGIC = zstandard.FRAME_HEADER  # which our frames leave out
PIECE_BYTES = 120 << 10  # of a plane in memory: in a core's cache, and below what malloc maps anew
READ_BYTES = 1 << 16  # what is read at once of the coded stream


_END = b""

Ahead = Callable[[Iterator[bytes]], AbstractContextManager[Iterator[bytes]]]


class Blob(Protocol):
    """Bytes that can be read anywhere."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``; fewer only at the end."""
        ...


class Files(Protocol):
    """The files of one model directory."""

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes of file ``name`` from ``offset``; fewer only at the end."""
        ...


class Container:
    """An opened container: its plan is read and checked, and its files can be made.

    Args:
        blob: the container
        base: the release that is here; None if there is none

    Raises:
        WrongBase: the container starts from another model.
        DeltaFormatError, ReleaseFormatError: it breaks a rule.
    """

    def __init__(self, blob: Blob, base: Release | None) -> None:
        head = blob.read_at(0, MAX_HEAD_BYTES)
        base_root, root, start, n_packed = parse_head(head)
        self.base = _check_base(base_root, base)
        packed = blob.read_at(start, n_packed)
        text = unpack_frame(packed, MAX_PLAN_BYTES, self.base.text if self.base else b"")
        self.plan = parse_plan(text, self.base, root.hex())
        self._blob = blob
        self._starts = self._check_length(start + n_packed)
        self._release = None if self.plan.is_hollow else self.plan.release

    @property
    def draft(self) -> Release:
        """The result as far as it is known before it is made: root, names and lengths."""
        return self.plan.release

    @property
    def release(self) -> Release:
        """The result.

        Raises:
            DeltaFormatError: its hashes are known only when ``make`` has come to its end.
        """
        if self._release is None:
            raise DeltaFormatError("delta: expected its files to be made before their hashes")
        return self._release

    @property
    def sizes(self) -> Mapping[Column, int]:
        """How many bytes of the container each column is."""
        return self.plan.sizes()

    @property
    def regions(self) -> Mapping[str, tuple[Region, ...]]:
        """The files that are written rather than linked."""
        return self.plan.regions

    @property
    def kept(self) -> dict[str, str]:
        """Result files that are links to base files: result name to base name."""
        return kept_files(self.base, self.draft)

    @property
    def written_bytes(self) -> int:
        """How much of the result is written rather than linked."""
        return sum(self.draft.files[name].n_bytes for name in self.regions)

    def make(
        self, old: Files, ahead: Ahead = nullcontext
    ) -> Generator[tuple[str, Iterator[bytes]]]:
        """Yield every changed file as its name and its pieces; pieces must be used up in order.

        What was made is right only if this comes to its end.

        Args:
            old: the base's files; who stops before the end closes the generator before these
            ahead: may let the pieces be decoded while those before them are hashed and used

        Raises:
            PayloadMismatch: a file came out with another hash than the release names, or all of
                them with another root.
            DeltaFormatError: a column ended early, late, or breaks a rule.
        """
        hashes: dict[str, str] = {}
        with ahead(self._pieces(old)) as pieces:
            for name in self.regions:
                own = iter(partial(next, pieces), _END)
                yield name, _hashed(name, self.draft.files[name], own, hashes)
            for piece in pieces:  # there is none; looks for what is wrong at the end of the columns
                raise DeltaFormatError(f"delta: {len(piece)} bytes after the last file")
        if self.plan.is_hollow:
            self._release = fill(self.draft, hashes)

    def _pieces(self, old: Files) -> Iterator[bytes]:
        """Yield the pieces of all changed files, and an empty one at the end of each."""
        with self._maker() as maker:
            for name, regions in self.regions.items():
                yield from filter(None, maker.file(regions, _OldFile(old, name)))
                yield _END

    def make_regions(self, old: Files) -> Iterator[tuple[str, Region, bytes]]:
        """Yield every region that is not a copy, made from ``old``, whatever that is: no hashes.

        ``ota.compose`` gives a blind container planes of zeros and gets the differences themselves.

        Raises:
            DeltaFormatError: a column ended early, late, or breaks a rule.
        """
        with self._maker() as maker:
            for name, regions in self.regions.items():
                for region in regions:
                    if region.kind is not RegionKind.COPY:
                        pieces = maker.file((region,), _OldFile(old, name))
                        yield name, region, b"".join(pieces)

    @contextmanager
    def _maker(self) -> Iterator[_Maker]:
        """Open both columns, and check at the end that the coded one is used up."""
        chunks = _chunks(self._blob, self._starts[Column.CODED], self.plan.n_coded)
        reader = CodedReader(chunks, self.plan.mean_gap, self.plan.is_blind)
        yield _Maker(self.plan, reader, _BlockReader(self._blob, self._starts[Column.BYTES]))
        reader.end()

    def _check_length(self, start: int) -> dict[Column, int]:
        """Return where each column starts; together they must be all there is."""
        starts = {}
        for column, size in self.sizes.items():
            starts[column] = start
            start += size
        if len(self._blob.read_at(start - 1, 2)) != 1:
            raise DeltaFormatError(f"delta: expected {start} bytes, it has another length")
        return starts


def parse_head(head: bytes) -> tuple[bytes, bytes, int, int]:
    """Return the base's root, the result's, where the packed plan starts, and its length.

    Raises:
        DeltaFormatError: this is no container.
    """
    if len(head) < MAX_HEAD_BYTES or not head.startswith(MAGIC):
        raise DeltaFormatError(f"delta: expected a container, got {head[:4]!r}")
    _, base_root, root = HEADER.unpack(head[: HEADER.size])
    n_packed, start = 0, HEADER.size
    for shift in range(0, 28, 7):
        byte = head[start]
        n_packed |= (byte & 0x7F) << shift
        start += 1
        if byte < 0x80:
            break
    else:
        n_packed = MAX_PLAN_BYTES + 1
    if n_packed > MAX_PLAN_BYTES:
        raise DeltaFormatError(f"delta: packed plan of {n_packed} bytes, at most {MAX_PLAN_BYTES}")
    return base_root, root, start, n_packed


def pack_head(base: Release | None, root: str, n_packed: int) -> bytes:
    """Write what stands before a packed plan; ``parse_head`` reads it."""
    base_root = bytes.fromhex(base.root)[:BASE_BYTES] if base else NO_BASE
    out = bytearray(HEADER.pack(MAGIC, base_root, bytes.fromhex(root)))
    put_number(out, n_packed)
    return bytes(out)


def _check_base(base_root: bytes, base: Release | None) -> Release | None:
    """Return what the decoder may read old bytes from: nothing for a full image."""
    if base_root == NO_BASE:
        return None
    if base is None or short_root(base.root) != base_root.hex():
        here = short_root(base.root) if base else "no model"
        raise WrongBase(
            f"delta: expected base {base_root.hex()}, here is {here}; fetch the full image"
        )
    return base


class _Maker:
    """Makes the regions of all files, in order."""

    def __init__(self, plan: Plan, coded: CodedReader, blocks: _BlockReader) -> None:
        self._plan = plan
        self._coded = coded
        self._blocks = blocks

    def file(self, regions: tuple[Region, ...], source: _OldFile) -> Iterator[bytes]:
        for region in regions:
            yield from self._region(region, source)

    def _region(self, region: Region, source: _OldFile) -> Iterator[bytes]:
        offset, length = region.old_offset, region.length
        match region.kind:
            case RegionKind.COPY:
                return source.pieces(offset, length, 1)
            case RegionKind.FLIPS:
                shape = self._plan.shapes[region.shape]
                old = source.pieces(offset, length, shape.line_bytes)
                return self._coded.flips(old, length, shape)
            case RegionKind.TRITS:
                shape = self._plan.shapes[region.shape]
                return self._coded.trits(_sizes(length, shape.line_bytes), length, shape)
            case RegionKind.WORDS:
                return self._coded.words(source.pieces(offset, length, region.width), region.width)
            case RegionKind.NEW:
                return self._coded.words(map(first_words, _sizes(length, 4)), region.width, True)
            case RegionKind.BYTES:
                dictionary = source.read(offset, region.old_length)
                return iter([self._blocks.take(region.packed, length, dictionary)])


def first_words(n_bytes: int) -> bytes:
    """Return the old words of a region that has none: zeros."""
    return bytes(n_bytes)


def _sizes(length: int, unit: int) -> Iterator[int]:
    """Cut ``length`` in pieces of whole units."""
    step = PIECE_BYTES // unit * unit
    for start in range(0, length, step):
        yield min(step, length - start)


def _hashed(
    name: str, entry: FileEntry, pieces: Iterator[bytes], hashes: dict[str, str]
) -> Iterator[bytes]:
    """Pass pieces on and note the hash of them all; compare it if it is known."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    hashes[name] = digest.hexdigest()
    if entry.sha256 not in (UNKNOWN, digest.hexdigest()):
        raise PayloadMismatch(f"{name}: expected sha256 {entry.sha256}, got {digest.hexdigest()}")


class _OldFile:
    """One file of the base, read in pieces."""

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self._name = name

    def read(self, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        data = self._files.read_at(self._name, offset, length)
        if len(data) != length:
            raise WrongBase(f"{self._name}: expected {length} bytes at {offset}, got {len(data)}")
        return data

    def pieces(self, offset: int, length: int, unit: int) -> Iterator[bytes]:
        for size in _sizes(length, unit):
            yield self.read(offset, size)
            offset += size


def _chunks(blob: Blob, start: int, length: int) -> Iterator[bytes]:
    """Read a stretch of the container."""
    for offset in range(start, start + length, READ_BYTES):
        yield blob.read_at(offset, min(READ_BYTES, start + length - offset))


class _BlockReader:
    """Unpacks the frames of the ``BYTES`` column one by one."""

    def __init__(self, blob: Blob, start: int) -> None:
        self._blob = blob
        self._at = start

    def take(self, n_packed: int, length: int, dictionary: bytes) -> bytes:
        frame = self._blob.read_at(self._at, n_packed)
        self._at += n_packed
        block = unpack_frame(frame, length, dictionary)
        if len(block) != length:
            raise DeltaFormatError(f"delta: expected a block of {length} bytes, got {len(block)}")
        return block


def unpack_frame(frame: bytes, most: int, dictionary: bytes) -> bytes:
    """Unpack one whole zstd frame, without its magic number, that holds up to ``most`` bytes.

    Raises:
        DeltaFormatError: it holds more, does not say how much, has no checksum, or is damaged.
    """
    try:
        whole = FRAME_MAGIC + frame
        head = zstandard.get_frame_parameters(whole)
        if head.content_size > most or not head.has_checksum:
            raise DeltaFormatError(
                f"delta: expected a checked frame of up to {most} bytes, got {head.content_size}"
            )
        return unpacker(dictionary).decompress(whole, max_output_size=head.content_size)
    except zstandard.ZstdError as err:
        raise DeltaFormatError(f"delta: damaged frame of {len(frame)} bytes: {err}") from None


def unpacker(dictionary: bytes) -> zstandard.ZstdDecompressor:
    """Return a bounded unpacker with ``dictionary`` as raw content."""
    if not dictionary:
        return zstandard.ZstdDecompressor(max_window_size=2 * BLOCK_BYTES)
    content = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdDecompressor(dict_data=content, max_window_size=2 * BLOCK_BYTES)
