"""Reading a file of tensors piece by piece: what was read is not kept, so memory does not grow.

A mapped file counts as memory of the process once it is touched; a 2B model of bfloat16 masters is
5 GB.  So tensors are read with `pread` into arrays of their own.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeagent.errors import ModelError

#: Safetensors dtypes that are numbers we read as float32, and their bytes.
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class DiskFile:
    """An open file, read at any place."""

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            ModelError: it cannot be opened.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise ModelError(f"{path.name}: cannot be read: {err.strerror}") from err
        weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size

    def read(self, begin: int, n_bytes: int) -> NDArray[np.uint8]:
        """Read exactly `n_bytes`, which the caller has checked against `size`.

        Raises:
            ModelError: the file is shorter than it was, or the disk fails.
        """
        out = np.empty(n_bytes, np.uint8)
        view = out.data
        at = 0
        while at < n_bytes:
            try:
                got = os.preadv(self._fd, [view[at:]], begin + at)
            except OSError as err:
                raise ModelError(f"{self.path.name}: cannot be read: {err.strerror}") from err
            if got == 0:
                raise ModelError(f"{self.path.name}: cut short at byte {begin + at}")
            at += got
        return out

    def identity(self) -> str:
        """Return what changes when the file does: its name, size and time of change."""
        stat = os.fstat(self._fd)
        return f"{self.path.name} {stat.st_size} {stat.st_mtime_ns}"


def to_float32(dtype: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return little-endian F64, F32, F16 or BF16 bytes as float32.

    Raises:
        ModelError: it is another type.
    """
    if dtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype not in FLOAT_BYTES:
        raise ModelError(f"expected F32, F16, BF16 or F64, got {dtype}")
    with np.errstate(over="ignore"):  # what does not fit becomes infinity, and is refused later
        return data.view(f"<f{FLOAT_BYTES[dtype]}").astype(np.float32)
