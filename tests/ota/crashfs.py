"""What a power cut may leave on a disk: a recorder of system calls, and every state after them.

``Recorder`` carries out the calls of ``ota.storage.Disk`` and writes them down by inode.  A state
after a cut is made of what was synced, and of any part of what was not:

* data: each 512-byte sector of each unsynced write is there or not; the length may be there
  without the data (zeros), a truncation may be lost;
* names: each unsynced create, link, rename, unlink or mkdir is there or not, in any combination;
  one rename is atomic, and the data of a file does not follow from its name being there.

python-tuf writes its files itself; they are taken in when their directory is synced, as unsynced
writes and renames in the order of their times.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ota.storage import Calls

SECTOR = 512
ALL_SUBSETS_OF = 5  # 32 combinations of names; more names are sampled

Names = tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True)
class Renamed:
    """Names that change together; a new name has an inode, a removed one None."""

    names: Names


@dataclass(frozen=True)
class Written:
    node: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resized:
    node: int
    length: int


@dataclass(frozen=True)
class Synced:
    node: int


Op = Renamed | Written | Resized | Synced


@dataclass
class Image:
    """A file system: directories by inode, contents by inode."""

    entries: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    contents: dict[int, bytearray] = field(default_factory=dict)

    def copy(self) -> Image:
        return Image(
            {node: dict(names) for node, names in self.entries.items()},
            {node: bytearray(data) for node, data in self.contents.items()},
        )

    def apply(self, op: Op) -> None:
        if isinstance(op, Renamed):
            for directory, name, node in op.names:
                if node is None:
                    self.entries.setdefault(directory, {}).pop(name, None)
                else:
                    self.entries.setdefault(directory, {})[name] = node
        elif isinstance(op, Written):
            self._write(op.node, op.offset, op.data)
        elif isinstance(op, Resized):
            content = self.contents.setdefault(op.node, bytearray())
            del content[op.length :]
            content.extend(bytes(op.length - len(content)))

    def tear(self, op: Written, keep: list[bool]) -> None:
        """Apply only some sectors of a write; the length of the file follows the whole write."""
        content = self.contents.setdefault(op.node, bytearray())
        content.extend(bytes(max(0, op.offset + len(op.data) - len(content))))
        for k, (start, end) in enumerate(sectors(op)):
            if keep[k % len(keep)]:
                self._write(op.node, op.offset + start, op.data[start:end])

    def walk(self, directories: set[int]) -> Iterator[tuple[str, int]]:
        yield from self._walk(0, "", directories)

    def fingerprint(self, directories: set[int]) -> str:
        digest = hashlib.sha256()
        for path, node in self.walk(directories):
            digest.update(f"{path}\0{node if node in self.contents else ''}\0".encode())
            digest.update(hashlib.sha256(self.contents.get(node, b"")).digest())
        return digest.hexdigest()

    def write_to(self, target: Path, directories: set[int], links: dict[int, str]) -> None:
        """Make it real; names of one inode become hard links."""
        made: dict[int, Path] = {}
        target.mkdir(parents=True)
        for name, node in self.walk(directories):
            path = target / name
            if node in directories:
                path.mkdir()
            elif node in links:
                path.symlink_to(links[node])
            elif node in made:
                os.link(made[node], path)
            else:
                path.write_bytes(self.contents.get(node, b""))
                made[node] = path

    def _write(self, node: int, offset: int, data: bytes) -> None:
        content = self.contents.setdefault(node, bytearray())
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data

    def _walk(self, node: int, path: str, directories: set[int]) -> Iterator[tuple[str, int]]:
        for name, child in sorted(self.entries.get(node, {}).items()):
            below = f"{path}/{name}" if path else name
            yield below, child
            if child in directories:
                yield from self._walk(child, below, directories)


def sectors(op: Written) -> list[tuple[int, int]]:
    """Return the parts of a write that a disk writes at once."""
    cuts = range(-(op.offset % SECTOR), len(op.data), SECTOR)
    return [(max(start, 0), min(start + SECTOR, len(op.data))) for start in cuts]


class Recorder(Calls):
    """Carries out calls below ``root`` and records them; what is there already is on the medium."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ops: list[Op] = []
        self.durable = Image()
        self.directories = {0}
        self.links: dict[int, str] = {}
        self._now = Image()
        self._files: dict[int, int] = {}  # fd: inode
        self._next = 1
        self._take_in(root, 0)
        self.durable = self._now.copy()
        self.ops.clear()

    # -- calls ----------------------------------------------------------------------------------

    def open(self, path: Path, flags: int = 0) -> int:
        fd = super().open(path, flags)
        node = self._find(path)
        if node is None:
            node = self._new()
            self._record(Renamed(((self._parent(path), path.name, node),)))
            self._record(Resized(node, 0))
        elif flags & os.O_TRUNC:
            self._record(Resized(node, 0))
        self._files[fd] = node
        return fd

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        n_written = super().write(fd, data, offset)
        self._record(Written(self._files[fd], offset, bytes(data[:n_written])))
        return n_written

    def truncate(self, fd: int, length: int) -> None:
        super().truncate(fd, length)
        self._record(Resized(self._files[fd], length))

    def sync(self, fd: int) -> None:
        self._record(Synced(self._files[fd]))

    def sync_path(self, path: Path) -> None:
        if not path.is_relative_to(self.root):
            return
        self._take_in(self.root, 0)
        self._record(Synced(self._node(path)))

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        node = self._find(source) if source.is_relative_to(self.root) else None
        if node is None:  # from the package: it has been on the medium for ever
            node = self._new()
            self.durable.contents[node] = bytearray(source.read_bytes())
            self._now.contents[node] = bytearray(source.read_bytes())
        self._record(Renamed(((self._parent(target), target.name, node),)))

    def rename(self, source: Path, target: Path) -> None:
        if self._find(source) is None:
            self._take_in(self.root, 0)
        super().rename(source, target)
        node = self._node(source)
        old = (self._parent(source), source.name, None)
        self._record(Renamed((old, (self._parent(target), target.name, node))))

    def make_directory(self, path: Path) -> None:
        super().make_directory(path)
        if path.is_relative_to(self.root) and self._find(path) is None:
            node = self._new()
            self.directories.add(node)
            self._record(Renamed(((self._parent(path), path.name, node),)))

    def unlink(self, path: Path) -> None:
        if self._find(path) is not None:
            self._record(Renamed(((self._parent(path), path.name, None),)))
        super().unlink(path)

    def remove_directory(self, path: Path) -> None:
        if self._find(path) is not None:
            self._record(Renamed(((self._parent(path), path.name, None),)))
        super().remove_directory(path)

    # -- inside ---------------------------------------------------------------------------------

    def _record(self, op: Op) -> None:
        self.ops.append(op)
        self._now.apply(op)

    def _new(self) -> int:
        self._next += 1
        return self._next

    def _find(self, path: Path) -> int | None:
        node: int | None = 0
        for name in path.relative_to(self.root).parts:
            node = self._now.entries.get(node or 0, {}).get(name)
            if node is None:
                return None
        return node

    def _node(self, path: Path) -> int:
        node = self._find(path)
        assert node is not None, f"{path} was made behind the recorder's back"
        return node

    def _parent(self, path: Path) -> int:
        return self._node(path.parent)

    def _take_in(self, path: Path, node: int) -> None:
        """Record what others wrote here since."""
        known = self._now.entries.setdefault(node, {})
        there = sorted(path.iterdir(), key=lambda each: (each.lstat().st_mtime_ns, each.name))
        gone = set(known) - {each.name for each in there}
        for name in sorted(gone):
            self._record(Renamed(((node, name, None),)))
        for each in there:
            child = known.get(each.name)
            if each.is_symlink():
                self._take_in_link(each, node, child)
            elif each.is_dir():
                if child is None:
                    child = self._new()
                    self.directories.add(child)
                    self._record(Renamed(((node, each.name, child),)))
                self._take_in(each, child)
            elif child is None or self._now.contents.get(child) != each.read_bytes():
                child = self._new()
                self._record(Resized(child, 0))
                self._record(Written(child, 0, each.read_bytes()))
                self._record(Renamed(((node, each.name, child),)))

    def _take_in_link(self, path: Path, directory: int, known: int | None) -> None:
        """Record a symbolic link: made in one piece, with its name."""
        if known is not None and self.links.get(known) == str(path.readlink()):
            return
        node = self._new()
        self.links[node] = str(path.readlink())
        self._record(Renamed(((directory, path.name, node),)))


def is_synced(op: Op, later: set[int]) -> bool:
    if isinstance(op, Renamed):
        return op.names[-1][0] in later
    return isinstance(op, (Written, Resized)) and op.node in later


def states(
    recorder: Recorder, per_cut: int, seed: int, stride: int = 1
) -> Iterator[tuple[int, Image]]:
    """Yield (calls before the cut, disk) for each distinct disk after a cut at each call.

    Args:
        recorder: what was done
        per_cut: at most so many states for each cut; the plain ones come first
        seed: of the random choices
        stride: cuts at every so many calls
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    for cut in range(0, len(recorder.ops) + 1, stride):
        base, pending = _split(recorder, cut)
        tried = 0
        for choice in itertools.islice(_choices(pending, rng), 4 * per_cut):
            image = base.copy()
            for op, keep in zip(pending, choice, strict=True):
                if keep is True:
                    image.apply(op)
                elif keep and isinstance(op, Written):
                    image.tear(op, keep)
            print_of = image.fingerprint(recorder.directories)
            if print_of in seen:
                continue
            seen.add(print_of)
            yield cut, image
            tried += 1
            if tried >= per_cut:
                break


def _split(recorder: Recorder, cut: int) -> tuple[Image, list[Op]]:
    """Return what must be there after a cut, and the calls that may be."""
    later: set[int] = set()
    durable, pending = [], []
    for op in reversed(recorder.ops[:cut]):
        if isinstance(op, Synced):
            later.add(op.node)
        elif is_synced(op, later):
            durable.append(op)
        else:
            pending.append(op)
    image = recorder.durable.copy()
    for op in reversed(durable):
        image.apply(op)
    return image, pending[::-1]


Keep = bool | list[bool]


def _choices(pending: list[Op], rng: random.Random) -> Iterator[list[Keep]]:
    """Yield what becomes of each pending call: there, lost, or torn."""
    n = len(pending)
    yield [True] * n
    yield [False] * n
    if n <= ALL_SUBSETS_OF:
        yield from (list(each) for each in itertools.product([True, False], repeat=n))
    else:
        for k in range(n):
            yield [j < k for j in range(n)]
            yield [j != k for j in range(n)]
            yield [j == k for j in range(n)]
    if not n:
        return
    while True:
        share = rng.choice([0.2, 0.5, 0.8])
        choice: list[Keep] = []
        for op in pending:
            if isinstance(op, Written) and rng.random() < 0.7:
                choice.append([rng.random() < share for _ in sectors(op)])
            else:
                choice.append(rng.random() < share)
        yield choice
