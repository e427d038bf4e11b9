"""The memory's read bandwidth: the roofline beside every figure."""

from __future__ import annotations

import mmap
import statistics
from collections.abc import Sequence
from pathlib import Path

from edgeagent import _core

BUFFER_BYTES = 1 << 30  # no cache holds a tenth of it
REPETITIONS = 5
FILL = bytes(range(256)) * 4096  # not one page of zeros mapped everywhere


class Probe:
    """A buffer far larger than any cache, in huge pages where the kernel allows them."""

    def __init__(self, n_bytes: int = BUFFER_BYTES) -> None:
        self._buffer = mmap.mmap(-1, n_bytes)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._buffer.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, n_bytes, len(FILL)):
            self._buffer[at : at + len(FILL)] = FILL[: n_bytes - at]
        self.read(1)

    def read(self, threads: int) -> float:
        """Read the buffer once; return GB/s."""
        return _core.read_bandwidth(self._buffer, threads)[0] / 1e9

    def median(self, threads: int, repetitions: int = REPETITIONS) -> float:
        """Read the buffer several times; return the median in GB/s."""
        return statistics.median(self.read(threads) for _ in range(repetitions))

    def close(self) -> None:
        """Give the memory back."""
        self._buffer.close()


def read_files(paths: Sequence[Path], threads: int) -> float:
    """Read mapped files once, as the engine sees them; return GB/s.

    They should be in the page cache: map and read them twice, and take the second.
    """
    n_bytes = seconds = 0.0
    for path in paths:
        with path.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _core.read_bandwidth(view, threads)  # page tables, and the page cache
        seconds += len(view) / _core.read_bandwidth(view, threads)[0]
        n_bytes += len(view)
        view.close()
    return n_bytes / seconds / 1e9
