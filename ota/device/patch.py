"""A new model written over the old one, where there is no room for a second one.

``<state_dir>/models/patches/<old>-<new>/`` holds what turns one into the other and back::

    patch.json   its own SHA-256; the two roots, which files change, the SHA-256 of patch.log
    patch.log    runs: head (file, offset, length), the old bytes, the new bytes
    new/, old/   files that change as a whole (new, removed, of another length, shared with others)

It is made, checked against the signed hashes and synced while the old model still runs.  Only then
is the intent to patch written down (``ota.device.store``), and only then is the first byte changed.
The log holds old *and* new bytes, so doing it again after a cut, at whatever sector, gives the same
result, in either direction, without a decoder and without the network.  That is also the way back
from a committed release.

Importing this module loads neither tuf nor zstandard.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ota.errors import PatchDamaged
from ota.release import RELEASE_FILE, Release, is_sha256, short_root
from ota.storage import Directory, OpenFile, Storage, typed_errors

LINE_BYTES = 64  # compared at once; most of a model does not change
WORD_BYTES = 8  # the grain of a run: a flipped trit costs two of these and a head
RUN = struct.Struct("<HQI")
MAX_RUN_BYTES = 1 << 20  # memory of a run, twice
MAX_PATCH_JSON = 1 << 20
PATCH_FILE, LOG_FILE = "patch.json", "patch.log"


@dataclass(frozen=True, slots=True)
class Patch:
    """What ``patch.json`` says."""

    old: str
    new: str
    log_sha256: str
    patched: tuple[str, ...]
    """Files that are written over, in the order of the log's numbers."""
    whole: tuple[str, ...]
    """Files in ``new/``, ``old/`` or both."""


def patch_name(old: str, new: str) -> str:
    """Return the directory name of the patch from one root to the other."""
    return f"{short_root(old)}-{short_root(new)}"


def make_patch(
    storage: Storage,
    target: Path,
    slot: Path,
    releases: tuple[Release, Release],
    made: Iterable[tuple[str, Iterable[bytes]]],
    result: Callable[[], Release],
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Fill the empty directory ``target`` with the patch of ``slot``; nothing in it is synced yet.

    Args:
        storage: the disk
        target: the patch
        slot: the old model, which stays as it is
        releases: the old one and what is known of the new one
        made: the files that the old model does not have, by name, as pieces
        result: the new release, once all files are made; may raise to stop
        watch: called for every piece; may raise to stop

    Raises:
        PayloadError: a file came out wrong.
        StorageError: the patch cannot be written.
    """
    old, new = releases
    for name in ("new", "old"):
        storage.make_directory(target / name)
    patched, digest = [], hashlib.sha256()
    with storage.open(target / LOG_FILE) as log, Directory(slot) as before:
        end = 0
        for name, pieces in made:
            if not _can_patch(slot / name, name, old, new):
                storage.write(target / "new" / name, _watched(pieces, watch))
                continue
            patched.append(name)
            for run in _runs(len(patched) - 1, name, before, _watched(pieces, watch)):
                log.write_at(end, run)
                digest.update(run)
                end += len(run)
    new = result()
    _keep_whole(storage, target, slot, (old, new), patched)
    fields = {
        "format": 1,
        "old": old.root,
        "new": new.root,
        "log_sha256": digest.hexdigest(),
        "patched": patched,
    }
    text = json.dumps(fields).encode()
    check = hashlib.sha256(text).hexdigest().encode()
    storage.write(target / PATCH_FILE, [check + b"\n" + text])


def read_patch(path: Path) -> Patch:
    """Read and check the patch at ``path``, its log included.

    Raises:
        PatchDamaged: it is not what was written.
    """
    try:
        with (path / PATCH_FILE).open("rb") as file:
            check, _, text = file.read(MAX_PATCH_JSON).partition(b"\n")
            fields = json.loads(text)
        with (path / LOG_FILE).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole = {each.name for side in ("new", "old") for each in (path / side).iterdir()}
    except (OSError, ValueError, RecursionError) as err:
        raise PatchDamaged(f"{path}: expected a patch, got {err}") from err
    match fields:
        case {"old": str(old), "new": str(new), "log_sha256": str(log), "patched": list(patched)}:
            is_ours = check == hashlib.sha256(text).hexdigest().encode()
            if is_ours and is_sha256(old) and is_sha256(new) and log == digest:
                return Patch(old, new, log, tuple(map(str, patched)), tuple(sorted(whole)))
    raise PatchDamaged(f"{path}: expected a log with the sha256 of patch.json, got {digest}")


def apply_patch(storage: Storage, path: Path, slot: Path, *, forward: bool) -> None:
    """Turn ``slot`` into the new model, or back into the old one; twice is the same as once.

    Raises:
        PatchDamaged: the patch is not what was written; nothing has been changed.
        StorageError: it cannot be written; do it again.
    """
    patch = read_patch(path)
    with typed_errors(path), (path / LOG_FILE).open("rb") as log:
        for name, runs in _by_file(patch, log):
            with storage.open(slot / name) as file:
                for offset, old, new in runs:
                    _write_over(file, offset, new if forward else old)
                file.sync()
    side = path / ("new" if forward else "old")
    for name in patch.whole:
        if (side / name).exists():
            beside = slot / f".{name}.new"
            storage.remove(beside)
            storage.link_or_copy(side / name, beside)
            storage.rename(beside, slot / name)
        else:
            storage.remove(slot / name)
    for left in slot.glob(".*.new"):
        storage.remove(left)
    storage.sync_tree(slot)


def _write_over(file: OpenFile, offset: int, data: bytes) -> None:
    if file.read_at(offset, len(data)) != data:  # a redo spares the flash
        file.write_at(offset, data)


def _can_patch(path: Path, name: str, old: Release, new: Release) -> bool:
    """Say whether a file can be written over: of one length, and nobody else's."""
    if name not in old.files or old.files[name].n_bytes != new.files[name].n_bytes:
        return False
    with typed_errors(path):
        return path.stat().st_nlink == 1


def _keep_whole(
    storage: Storage,
    target: Path,
    slot: Path,
    releases: tuple[Release, Release],
    patched: list[str],
) -> None:
    """Keep the old files that are replaced or removed, and what was kept under another name."""
    old, new = releases
    for name in old.files:
        if name not in patched and old.files.get(name) != new.files.get(name, object()):
            storage.link_or_copy(slot / name, target / "old" / name)
    storage.link_or_copy(slot / RELEASE_FILE, target / "old" / RELEASE_FILE)
    storage.write(target / "new" / RELEASE_FILE, [new.text])
    have = {entry: name for name, entry in old.files.items()}
    for name, entry in new.files.items():
        if name not in patched and old.files.get(name) != entry and entry in have:
            storage.link_or_copy(slot / have[entry], target / "new" / name)


def _watched(pieces: Iterable[bytes], watch: Callable[[], None]) -> Iterator[bytes]:
    for piece in pieces:
        watch()
        yield piece


def _runs(number: int, name: str, old: Directory, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the runs of one file: where the new bytes differ from the old ones."""
    offset = 0
    for piece in pieces:
        before = old.read_at(name, offset, len(piece))
        for start, end in _differences(before, piece):
            head = RUN.pack(number, offset + start, end - start)
            yield head + before[start:end] + piece[start:end]
        offset += len(piece)


def _differences(old: bytes, new: bytes) -> Iterator[tuple[int, int]]:
    """Yield the stretches that differ, in words, neighbours joined."""
    start = end = -1
    for line in range(0, len(new), LINE_BYTES):
        if old[line : line + LINE_BYTES] == new[line : line + LINE_BYTES]:
            continue
        for word in range(line, min(line + LINE_BYTES, len(new)), WORD_BYTES):
            if old[word : word + WORD_BYTES] == new[word : word + WORD_BYTES]:
                continue
            if word > end:
                if end > start:
                    yield start, end
                start = word
            end = min(word + WORD_BYTES, len(new))
    if end > start:
        yield start, end


def _by_file(patch: Patch, log: Any) -> Iterator[tuple[str, Iterator[tuple[int, bytes, bytes]]]]:
    """Yield each patched file with its runs (offset, old bytes, new bytes)."""
    head = log.read(RUN.size)
    while head:
        number = RUN.unpack(head)[0] if len(head) == RUN.size else len(patch.patched)
        if number >= len(patch.patched):
            raise PatchDamaged(f"{LOG_FILE}: expected a run of a file, got {head!r}")

        def runs(number: int = number) -> Iterator[tuple[int, bytes, bytes]]:
            nonlocal head
            while len(head) == RUN.size and head[:2] == number.to_bytes(2, "little"):
                _, offset, length = RUN.unpack(head)
                if length > MAX_RUN_BYTES:
                    raise PatchDamaged(f"{LOG_FILE}: a run of {length} bytes")
                yield offset, log.read(length), log.read(length)
                head = log.read(RUN.size)

        yield patch.patched[number], runs()


def remove_stale(storage: Storage, directory: Path, keep: set[str]) -> None:
    """Remove the patches that nothing needs."""
    if directory.is_dir():
        for path in sorted(directory.iterdir()):
            if path.name not in keep:
                storage.remove(path)
