"""The way back as a delta: the model before the active one, in a small part of its space.

``<state_dir>/models/ways/<active>-<previous>.way`` holds what is needed to make the previous model
from the active one, without a network and without anything that an operator made::

    magic, length and SHA-256 of a head (JSON: the two roots, the old release.json, file names)
    blocks: length, zstd frame; 256 KiB of an old file each, with the new file there as dictionary

Files that both models have are links, as in a slot.  It is made on the device while both models are
there, read back and compared with the old model's own hashes, and only then may the old slot go.
Memory is a MiB or two whatever the model.  Importing this module does not load zstandard.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ota.errors import PatchDamaged, ReleaseFormatError, StorageFull
from ota.release import MAX_RELEASE_BYTES, RELEASE_FILE, Release, parse_release, short_root
from ota.storage import Directory, Storage, read_release, typed_errors

MAGIC = b"edgeway\x01"
HEAD = struct.Struct("<8sI32s")  # magic, length of the JSON, its SHA-256
LENGTH = struct.Struct("<I")
MAX_HEAD_BYTES = 4 * MAX_RELEASE_BYTES  # release.json as a JSON string, and the names again
BLOCK_BYTES = 1 << 18
"""The tables of the level below cover a dictionary of this length; with one of 1 MiB and more they
forget its beginning, and a delta is six times as long."""
SLACK_BYTES = 1 << 14  # new bytes on each side of a block: texts move when they are edited
LEVEL = 3
WINDOW_LOG = 20  # a block and its dictionary
MAX_SHARE = 0.5
"""Of the old model's own bytes: a larger way back is not worth its making."""


@dataclass(frozen=True, slots=True)
class Way:
    """The head of a way back."""

    start: str
    """Root of the model that it starts from: the active one."""
    release: Release
    """The model that it leads to."""
    names: tuple[str, ...]
    """Files that are coded; the others are the active model's."""
    offset: int
    """Where the blocks begin."""


def way_name(start: str, end: str) -> str:
    """Return the file name of the way from one root back to the other."""
    return f"{short_root(start)}-{short_root(end)}.way"


def own_bytes(active: Release, previous: Release) -> int:
    """Return the bytes of the previous model that the active one does not share."""
    names = _coded(active, previous)
    return sum(previous.files[name].n_bytes for name in names)


def make_way(
    storage: Storage,
    target: Path,
    active_dir: Path,
    previous_dir: Path,
    watch: Callable[[], None] = lambda: None,
) -> int:
    """Write the way from the active model back to the previous one; returns its length.

    It is read back and compared before it gets its name, and both are synced.

    Args:
        storage: the disk
        target: the file
        active_dir: what is to run
        previous_dir: what is to be had again
        watch: called for every block; may raise to stop

    Raises:
        StorageFull: there is no room, or the way would be longer than it is worth.
        PatchDamaged: what was read back is not what was written.
    """
    active, previous = read_release(active_dir), read_release(previous_dir)
    names = _coded(active, previous)
    limit = int(MAX_SHARE * own_bytes(active, previous))
    unfinished = target.with_name(f".{target.name}.new")
    storage.make_directory(target.parent)
    storage.remove(unfinished)
    with ExitStack() as stack:
        out = stack.enter_context(storage.open(unfinished))
        new = stack.enter_context(Directory(active_dir))
        old = stack.enter_context(Directory(previous_dir))
        head = _pack_head(active.root, previous, names)
        out.write_at(0, head)
        end = len(head)
        for block in _blocks(active, previous, names, new, old):
            watch()
            if end + len(block) > limit + len(head):
                storage.remove(unfinished)
                raise StorageFull(
                    f"{target.name}: the way back would take more than {MAX_SHARE:.0%} of the "
                    f"model's own {int(limit / MAX_SHARE)} bytes"
                )
            out.write_at(end, block)
            end += len(block)
        out.sync()
    check_way(unfinished, active_dir, watch)
    storage.rename(unfinished, target)
    return end


def open_way(path: Path) -> Way:
    """Read the head of the way back at ``path``.

    Raises:
        PatchDamaged: it is not what was written.
    """
    try:
        with path.open("rb") as file:
            magic, length, digest = HEAD.unpack(file.read(HEAD.size))
            text = file.read(min(length, MAX_HEAD_BYTES))
        if magic != MAGIC or hashlib.sha256(text).digest() != digest:
            raise _damaged(path, "a head with its own SHA-256")
        fields = json.loads(text)
        release = parse_release(fields["release"].encode())
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as err:
        raise _damaged(path, f"a way back ({err})") from err
    except (ReleaseFormatError, RecursionError) as err:
        raise _damaged(path, f"a release.json ({err})") from err
    names = fields.get("names")
    if not isinstance(names, list) or not all(name in release.files for name in names):
        raise _damaged(path, "names of files of its release.json")
    return Way(str(fields.get("start")), release, tuple(names), HEAD.size + length)


def follow_way(
    storage: Storage,
    path: Path,
    active_dir: Path,
    target: Path,
    watch: Callable[[], None] = lambda: None,
) -> Release:
    """Fill the empty directory ``target`` with the previous model; nothing in it is synced yet.

    Raises:
        PatchDamaged: the way is not what was written, or starts from another model.
        StorageError: the model cannot be written.
    """
    active, way = read_release(active_dir), open_way(path)
    if way.start != active.root:
        raise _damaged(path, f"a way from {active.root}")
    have = {entry: name for name, entry in active.files.items()}
    for name, entry in way.release.files.items():
        if name not in way.names:
            if entry not in have:
                raise _damaged(path, f"{name}, which the active model does not have")
            storage.link_or_copy(active_dir / have[entry], target / name)
    for name, pieces in _decoded(path, way, active, active_dir, watch):
        storage.write(target / name, pieces)
    storage.write(target / RELEASE_FILE, [way.release.text])
    return way.release


def check_way(path: Path, active_dir: Path, watch: Callable[[], None] = lambda: None) -> None:
    """Decode all of the way, and compare with the hashes of the model that it leads to.

    Raises:
        PatchDamaged: it leads elsewhere.
    """
    way = open_way(path)
    for name, pieces in _decoded(path, way, read_release(active_dir), active_dir, watch):
        digest, n_bytes = hashlib.sha256(), 0
        for piece in pieces:
            digest.update(piece)
            n_bytes += len(piece)
        entry = way.release.files[name]
        if (n_bytes, digest.hexdigest()) != (entry.n_bytes, entry.sha256):
            raise _damaged(path, f"{name} with sha256 {entry.sha256}")


def _coded(active: Release, previous: Release) -> list[str]:
    """Return the files of the previous model that the active one has under no name."""
    have = set(active.files.values())
    return [name for name, entry in previous.files.items() if entry not in have]


def _pack_head(start: str, release: Release, names: list[str]) -> bytes:
    fields = {"format": 1, "start": start, "release": release.text.decode(), "names": names}
    text = json.dumps(fields).encode()
    return HEAD.pack(MAGIC, len(text), hashlib.sha256(text).digest()) + text


def _blocks(
    active: Release, previous: Release, names: list[str], new: Directory, old: Directory
) -> Iterator[bytes]:
    import zstandard

    options = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, window_log=WINDOW_LOG, write_checksum=True, write_content_size=True
    )
    for name in names:
        for offset in range(0, previous.files[name].n_bytes, BLOCK_BYTES):
            packer = zstandard.ZstdCompressor(
                compression_params=options, dict_data=_dictionary(active, name, new, offset)
            )
            frame = packer.compress(old.read_at(name, offset, BLOCK_BYTES))
            yield LENGTH.pack(len(frame)) + frame


def _dictionary(active: Release, name: str, new: Directory, offset: int) -> Any:
    """Return the new bytes around ``offset``; None where the new model has no such file."""
    import zstandard

    if name not in active.files:
        return None
    start = max(0, offset - SLACK_BYTES)
    data = new.read_at(name, start, offset + BLOCK_BYTES + SLACK_BYTES - start)
    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _decoded(
    path: Path, way: Way, active: Release, active_dir: Path, watch: Callable[[], None]
) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield each coded file with its pieces; each must be read to its end before the next."""
    with typed_errors(path), path.open("rb") as file, Directory(active_dir) as new:
        file.seek(way.offset)
        for name in way.names:
            yield name, _pieces(path, file, name, (way.release, active), new, watch)


def _pieces(
    path: Path,
    file: IO[bytes],
    name: str,
    releases: tuple[Release, Release],
    new: Directory,
    watch: Callable[[], None],
) -> Iterator[bytes]:
    import zstandard

    release, active = releases
    length = release.files[name].n_bytes
    for offset in range(0, length, BLOCK_BYTES):
        watch()
        want = min(BLOCK_BYTES, length - offset)
        try:
            (n_bytes,) = LENGTH.unpack(file.read(LENGTH.size))
            # A frame that does not compress is a little longer than its block.
            frame = file.read(min(n_bytes, 2 * BLOCK_BYTES))
            unpacker = zstandard.ZstdDecompressor(
                dict_data=_dictionary(active, name, new, offset), max_window_size=4 * BLOCK_BYTES
            )
            data = unpacker.decompress(frame, max_output_size=want)
        except (struct.error, zstandard.ZstdError) as err:
            raise _damaged(path, f"a block of {name} at {offset} ({err})") from err
        if len(data) != want:
            raise _damaged(path, f"{want} bytes of {name} at {offset}")
        yield data


def _damaged(path: Path, expected: str) -> PatchDamaged:
    return PatchDamaged(f"{path}: expected {expected}; the way back is lost, the model stays")
