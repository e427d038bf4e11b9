"""The few disk verbs that updates use, and the errors of a disk.

Everything that an update leaves on a disk goes through ``Storage``, so that another implementation
can refuse a write, or forget what was not synced.  The rules of a crash-safe change:

* a small file is replaced whole: write beside it, sync, rename over it, sync the directory;
* a directory is filled under another name, synced with all it holds, then renamed;
* a payload is written in place, because each of its chunks is checked again when it is resumed.

Model directories are read here too: anywhere in their files, and whole against ``release.json``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ota.errors import (
    FileTooLarge,
    PayloadMismatch,
    QuotaFull,
    ReleaseFormatError,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageReadOnly,
)
from ota.release import MAX_RELEASE_BYTES, RELEASE_FILE, Release, parse_release

RESERVE_BYTES = 16 << 20
"""Left free on the disk: the journal, the agent's state and a log must still be written."""

WRITE_BYTES = 2 << 20
"""Files are written in such pieces, from multiples of it: a page of the cache can then be a huge
one, which takes less time now and in the engine later (ADR 28)."""

WRITE_AHEAD_BYTES = 4 << 20
"""After so many bytes of a file the medium starts, while the next ones are made."""

COPY_BYTES = 1 << 20
"""Memory of a copy where links are refused."""

_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES}


@contextmanager
def typed_errors(path: Path) -> Iterator[None]:
    """Turn what the system says about ``path`` into an error of ours.

    Raises:
        StorageFull: there is no room; `QuotaFull`: not for this user.
        FileTooLarge: the file system has a limit.
        StorageReadOnly: nothing can be written at all.
        StorageDenied: this user may not.
        StorageError: anything else that the disk refuses.
    """
    try:
        yield
    except OSError as err:
        what = f"{path}: {err.strerror or err}"
        if err.errno == errno.EDQUOT:
            raise QuotaFull(f"{what}; raise the quota of the agent's user") from err
        if err.errno == errno.EFBIG:
            raise FileTooLarge(f"{what}; another file system takes longer files") from err
        if err.errno == errno.ENOSPC:
            raise StorageFull(f"{what}; free some space, the update then goes on") from err
        if err.errno == errno.EROFS:
            raise StorageReadOnly(f"{what}; a disk with errors is often mounted so") from err
        if err.errno in {errno.EACCES, errno.EPERM}:
            raise StorageDenied(f"{what}; the agent's user must own its state") from err
        raise StorageError(f"{what}; check the disk") from err


class OpenFile(ABC):
    """A file that is being written, or read anywhere."""

    @abstractmethod
    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``."""

    @abstractmethod
    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data`` at ``offset``."""

    @abstractmethod
    def resize(self, length: int) -> None:
        """Make the file ``length`` bytes long; new bytes are zero."""

    @abstractmethod
    def sync(self) -> None:
        """Return when what was written survives a power cut."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Storage(ABC):
    """What an update may do to a disk."""

    @abstractmethod
    def open(self, path: Path) -> OpenFile:
        """Open ``path`` for reading and writing, and create it if need be."""

    @abstractmethod
    def write(self, path: Path, pieces: Iterable[bytes]) -> None:
        """Write a new file; not synced, see ``sync_tree``."""

    @abstractmethod
    def replace(self, path: Path, data: bytes) -> None:
        """Replace ``path`` as a whole: after a crash it is the old file or the new one."""

    @abstractmethod
    def link_or_copy(self, source: Path, target: Path) -> None:
        """Make ``target`` the same file as ``source``, or a copy where links are refused."""

    @abstractmethod
    def rename(self, source: Path, target: Path) -> None:
        """Rename and sync the directory."""

    @abstractmethod
    def make_directory(self, path: Path) -> None:
        """Create ``path`` and its parents where missing, and sync what names them."""

    @abstractmethod
    def sync_tree(self, path: Path) -> None:
        """Sync a directory and everything in it."""

    @abstractmethod
    def sync_directory(self, path: Path) -> None:
        """Sync the names in a directory, not what they name."""

    @abstractmethod
    def remove(self, path: Path) -> None:
        """Remove a file or a whole directory; nothing happens if it is not there."""

    @abstractmethod
    def free_bytes(self, path: Path) -> int:
        """Return what an unprivileged process may still write."""


class Calls:
    """The system calls that change a disk.

    All of ``Disk`` goes through them, so a test can record them and work out what a cut leaves.
    """

    def open(self, path: Path, flags: int = 0) -> int:
        """Open ``path`` for reading and writing, and create it if need be."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o644)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        """Write some of ``data`` at ``offset`` and return how much."""
        return os.pwrite(fd, data, offset)

    def start_writing(self, fd: int, offset: int, length: int) -> None:
        """Let the medium begin with what was written; waits for nothing and promises nothing."""
        with suppress(OSError):  # advice: where it is not understood, ``sync`` does it all
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def truncate(self, fd: int, length: int) -> None:
        """Make the file ``length`` bytes long."""
        os.ftruncate(fd, length)

    def sync(self, fd: int) -> None:
        """Return when the file is on the medium."""
        os.fsync(fd)

    def sync_path(self, path: Path) -> None:
        """Return when the file, or the entries of the directory, are on the medium."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self, fd: int) -> None:
        """Close the file."""
        os.close(fd)

    def link(self, source: Path, target: Path) -> None:
        """Give the file a second name."""
        target.hardlink_to(source)

    def rename(self, source: Path, target: Path) -> None:
        """Rename, over ``target`` if that is there."""
        source.rename(target)

    def make_directory(self, path: Path) -> None:
        """Create one directory."""
        path.mkdir(exist_ok=True)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink(missing_ok=True)

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()


class Disk(Storage):
    """The real disk."""

    def __init__(self, calls: Calls | None = None) -> None:
        self._calls = calls or Calls()

    def open(self, path: Path) -> OpenFile:
        """Open ``path`` for reading and writing, and create it if need be."""
        with typed_errors(path):
            return _DiskFile(self._calls, path, self._calls.open(path))

    def write(self, path: Path, pieces: Iterable[bytes]) -> None:
        """Write a new file; not synced, see ``sync_tree``."""
        with typed_errors(path):
            fd = self._calls.open(path, os.O_TRUNC)
        with _DiskFile(self._calls, path, fd) as out:
            offset = started = 0
            for piece in _in_whole(pieces, WRITE_BYTES):
                out.write_at(offset, piece)
                offset += len(piece)
                if offset - started >= WRITE_AHEAD_BYTES:
                    self._calls.start_writing(fd, started, offset - started)
                    started = offset
            self._calls.start_writing(fd, started, offset - started)

    def replace(self, path: Path, data: bytes) -> None:
        """Replace ``path`` as a whole: after a crash it is the old file or the new one."""
        beside = path.with_name(f".{path.name}.new")
        with typed_errors(path):
            fd = self._calls.open(beside, os.O_TRUNC)
        with _DiskFile(self._calls, beside, fd) as out:
            out.write_at(0, data)
            out.sync()
        self.rename(beside, path)

    def link_or_copy(self, source: Path, target: Path) -> None:
        """Make ``target`` the same file as ``source``, or a copy where links are refused."""
        with typed_errors(target):
            try:
                self._calls.link(source, target)
            except OSError as err:
                if err.errno not in _CANNOT_LINK:
                    raise
                self.write(target, _pieces(source))

    def rename(self, source: Path, target: Path) -> None:
        """Rename and sync the directory."""
        with typed_errors(target):
            self._calls.rename(source, target)
            self._calls.sync_path(target.parent)

    def make_directory(self, path: Path) -> None:
        """Create ``path`` and its parents where missing, and sync what names them."""
        with typed_errors(path):
            missing = [each for each in (path, *path.parents) if not each.exists()]
            for each in reversed(missing):
                self._calls.make_directory(each)
            for each in missing:
                self._calls.sync_path(each.parent)

    def sync_tree(self, path: Path) -> None:
        """Sync a directory and everything in it."""
        with typed_errors(path):
            for directory, _, names in os.walk(path, topdown=False):
                for name in names:
                    self._calls.sync_path(Path(directory) / name)
                self._calls.sync_path(Path(directory))

    def sync_directory(self, path: Path) -> None:
        """Sync the names in a directory."""
        with typed_errors(path):
            self._calls.sync_path(path)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole directory; nothing happens if it is not there."""
        with typed_errors(path):
            if not path.is_dir() or path.is_symlink():
                self._calls.unlink(path)
                return
            for directory, below, names in os.walk(path, topdown=False):
                for name in names:
                    self._calls.unlink(Path(directory) / name)
                for name in below:
                    self._calls.remove_directory(Path(directory) / name)
            self._calls.remove_directory(path)

    def free_bytes(self, path: Path) -> int:
        """Return what an unprivileged process may still write."""
        with typed_errors(path):
            return shutil.disk_usage(path).free


class _DiskFile(OpenFile):
    def __init__(self, calls: Calls, path: Path, fd: int) -> None:
        self._calls = calls
        self._path = path
        self._fd = fd

    def read_at(self, offset: int, length: int) -> bytes:
        with typed_errors(self._path):
            return os.pread(self._fd, length, offset)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        with typed_errors(self._path):
            view = memoryview(data)
            while view:
                n_written = self._calls.write(self._fd, view, offset)
                view = view[n_written:]
                offset += n_written

    def resize(self, length: int) -> None:
        with typed_errors(self._path):
            self._calls.truncate(self._fd, length)

    def sync(self) -> None:
        with typed_errors(self._path):
            self._calls.sync(self._fd)

    def close(self) -> None:
        with typed_errors(self._path):  # a network's disk may say only now that it lost a write
            self._calls.close(self._fd)


def _in_whole(pieces: Iterable[bytes], n_bytes: int) -> Iterator[memoryview]:
    """Yield the same bytes in pieces of ``n_bytes``, the last one shorter; use each at once."""
    held, n_held = memoryview(bytearray(n_bytes)), 0
    for piece in pieces:
        view = memoryview(piece)
        while view:
            part = view[: n_bytes - n_held]
            held[n_held : n_held + len(part)] = part
            n_held += len(part)
            view = view[len(part) :]
            if n_held == n_bytes:
                yield held
                n_held = 0
    if n_held:
        yield held[:n_held]


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(COPY_BYTES):
            yield piece


class Directory:
    """The files of one model directory, read anywhere; keeps one file open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name: str | None = None
        self._fd = -1

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes of ``name`` from ``offset``; fewer only at the end."""
        with typed_errors(self._path / name):
            if name != self._name:
                self.close()
                self._fd = os.open(self._path / name, os.O_RDONLY | os.O_CLOEXEC)
                self._name = name
            pieces = []
            while length and (piece := os.pread(self._fd, length, offset)):
                pieces.append(piece)
                offset += len(piece)
                length -= len(piece)
            return b"".join(pieces)

    def close(self) -> None:
        """Close the file that is open, if any."""
        if self._name is not None:
            os.close(self._fd)
            self._name = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_release(path: Path) -> Release:
    """Read ``release.json`` of a model directory.

    Raises:
        ReleaseFormatError: it is missing or breaks a rule.
    """
    file = path / RELEASE_FILE
    try:
        with file.open("rb") as opened:
            return parse_release(opened.read(MAX_RELEASE_BYTES + 1))
    except OSError as err:
        raise ReleaseFormatError(f"{file}: {err.strerror}; expected a model directory") from err


def verify_directory(path: Path) -> Release:
    """Hash a whole model directory and return what it is.

    Raises:
        PayloadMismatch: a file is missing, left over, or has another hash.
        ReleaseFormatError: release.json breaks a rule.
    """
    release = read_release(path)
    there = {entry.name for entry in path.iterdir()}
    expected = {*release.files, RELEASE_FILE}
    if there != expected:
        odd = sorted(there ^ expected)[:5]
        raise PayloadMismatch(f"{path}: expected exactly the files of release.json, check {odd}")
    for name, entry in release.files.items():
        with typed_errors(path / name), (path / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            n_bytes = file.tell()
        if (n_bytes, digest) != (entry.n_bytes, entry.sha256):
            raise PayloadMismatch(
                f"{path / name}: expected {entry.n_bytes} bytes with sha256 {entry.sha256}, "
                f"got {n_bytes} bytes with {digest}"
            )
    return release
