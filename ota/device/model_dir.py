"""A model directory on a disk: read anywhere, and checked against its ``release.json``."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from ota.errors import PayloadMismatch, ReleaseFormatError
from ota.release import MAX_RELEASE_BYTES, RELEASE_FILE, Release, parse_release
from ota.storage import typed_errors


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
