"""Real implementations of our own interfaces that misbehave on demand."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from ota.conditions import Samples
from ota.device.source import Piece, Source
from ota.errors import ObjectMissing
from ota.storage import Disk, OpenFile, typed_errors


class Bytes:
    """A blob in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


class Files:
    """A model directory in memory."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        return self.files[name][offset : offset + length]


class FailingDisk(Disk):
    """A disk that refuses its ``fail_at``-th change, counted from 0, and every one after it."""

    def __init__(self, fail_at: int, error: int = errno.ENOSPC) -> None:
        super().__init__()
        self.n_changes = 0
        self.fail_at = fail_at
        self.error = error

    def change(self, path: Path) -> None:
        self.n_changes += 1
        if self.n_changes > self.fail_at:
            with typed_errors(path):
                raise OSError(self.error, os.strerror(self.error))

    def open(self, path: Path) -> OpenFile:
        return _FailingFile(self, path, super().open(path))

    def write(self, path: Path, pieces: Iterable[bytes]) -> None:
        def counted():
            for piece in pieces:
                self.change(path)
                yield piece

        super().write(path, counted())

    def replace(self, path: Path, data: bytes) -> None:
        self.change(path)
        super().replace(path, data)

    def link_or_copy(self, source: Path, target: Path) -> None:
        self.change(target)
        super().link_or_copy(source, target)

    def rename(self, source: Path, target: Path) -> None:
        self.change(target)
        super().rename(source, target)

    def make_directory(self, path: Path) -> None:
        if not path.is_dir():
            self.change(path)
        super().make_directory(path)


class _FailingFile(OpenFile):
    def __init__(self, disk: FailingDisk, path: Path, file: OpenFile) -> None:
        self._disk = disk
        self._path = path
        self._file = file

    def read_at(self, offset: int, length: int) -> bytes:
        return self._file.read_at(offset, length)

    def write_at(self, offset: int, data: bytes) -> None:
        self._disk.change(self._path)
        self._file.write_at(offset, data)

    def resize(self, length: int) -> None:
        self._disk.change(self._path)
        self._file.resize(length)

    def sync(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()


class MemorySource(Source):
    """Objects in memory; ``lies`` gives other bytes for the first fetches of an offset."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.lies: dict[tuple[str, int], list[bytes]] = {}
        self.asked: list[tuple[str, int, int]] = []

    def fetch(self, name: str, offset: int, length: int) -> Piece:
        self.asked.append((name, offset, length))
        if name not in self.objects:
            raise ObjectMissing(f"{name}: not here")
        data = self.objects[name][offset : offset + length]
        if lies := self.lies.get((name, offset)):
            data = lies.pop(0)
        return Piece(offset, data, len(self.objects[name]))


class ScriptedAgent:
    """An agent without a process: remembers reports, answers trials, stops when told to."""

    def __init__(self, *verdicts) -> None:
        self.said: list[dict] = []
        self.verdicts = list(verdicts)
        self.stop_after: int | None = None
        self.n_checks = 0
        self.n_quiesced = 0
        self.now = Samples()
        self.is_cancelled = False

    def samples(self):
        return self.now

    def wants_cancel(self):
        return self.is_cancelled

    def report(self, event) -> None:
        self.said.append(dict(event))

    def verdict(self):
        verdict = self.verdicts.pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    def quiesce(self) -> None:
        self.n_quiesced += 1

    def check_stop(self) -> None:
        self.n_checks += 1
        if self.stop_after is not None and self.n_checks > self.stop_after:
            from ota.errors import Cancelled

            raise Cancelled("told to stop")
