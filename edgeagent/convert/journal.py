"""What a conversion has finished: which files are whole, their hashes, and what they came from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

NAME = "shards.json"
_PARTIAL = ".partial"


class _Hashing:
    """A binary file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hash = file, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self.hash.update(data)
        return self._file.write(data)


def write_whole(path: Path, write: Callable[[Any], object]) -> str:
    """Let `write` fill a file that gets its name when it is on the disk; return its SHA-256."""
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("wb") as file:
        out = _Hashing(file)
        write(out)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return out.hash.hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file that gets its name when it is on the disk."""
    write_whole(path, lambda out: out.write(data))


def sync_directory(path: Path) -> None:
    """Have the names in a directory on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Journal:
    """The finished files of a work directory."""

    def __init__(self, work: Path, fingerprint: str | None) -> None:
        """Take up the work in `work`, or clear it when it came from something else.

        Args:
            work: an existing directory.
            fingerprint: of everything the files are made from; None: nothing is ever kept.
        """
        self._path, self._work = work / NAME, work
        self._fingerprint = fingerprint
        self._files = self._read()
        for file in list(work.iterdir()):
            if file.name not in self._files and file != self._path:
                _delete(file)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            value = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        if self._fingerprint is None or not isinstance(value, dict):
            return {}
        files = value.get("files")
        same = value.get("fingerprint") == self._fingerprint
        return dict(files) if same and isinstance(files, dict) else {}

    def keep(self, name: str) -> list[str] | None:
        """Return the tensors of a file that an earlier run finished; None: it must be made."""
        entry = self._files.get(name)
        try:
            with (self._work / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None
        if not isinstance(entry, dict) or entry.get("sha256") != digest:
            return None
        return [str(tensor) for tensor in entry["tensors"]]

    def add(self, name: str, sha256: str, tensors: list[str]) -> None:
        """Write down that a file is whole."""
        self._files[name] = {"sha256": sha256, "tensors": tensors}
        text = json.dumps({"fingerprint": self._fingerprint, "files": self._files})
        write_bytes(self._path, text.encode())

    @staticmethod
    def remove(work: Path) -> None:
        """Forget the journal of a finished work directory."""
        (work / NAME).unlink(missing_ok=True)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
