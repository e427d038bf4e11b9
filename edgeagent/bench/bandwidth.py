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
    """The fastest of two kinds of memory, each far larger than any cache.

    One is a buffer in huge pages where the kernel allows them; the other, when files are given, the
    page cache in which the engine finds its weights.  Their pages differ, and so do their rates: a
    roofline must be that of the better one.
    """

    def __init__(self, n_bytes: int = BUFFER_BYTES, files: Sequence[Path] = ()) -> None:
        self._buffer = mmap.mmap(-1, n_bytes)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._buffer.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, n_bytes, len(FILL)):
            self._buffer[at : at + len(FILL)] = FILL[: n_bytes - at]
        self._files = [_mapped(path) for path in files]
        self.read(1)

    def read(self, threads: int) -> float:
        """Read both once; return the better GB/s."""
        rates = [_core.read_bandwidth(self._buffer, threads)[0] / 1e9]
        if self._files:
            rates.append(_read_views(self._files, threads))
        return max(rates)

    def median(self, threads: int, repetitions: int = REPETITIONS) -> float:
        """Read several times; return the median in GB/s."""
        return statistics.median(self.read(threads) for _ in range(repetitions))

    def close(self) -> None:
        """Give the memory back."""
        for view in (self._buffer, *self._files):
            view.close()


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_views(views: Sequence[mmap.mmap], threads: int) -> float:
    """Read every view once; return GB/s over all of them."""
    seconds = sum(len(view) / _core.read_bandwidth(view, threads)[0] for view in views)
    return sum(map(len, views)) / seconds / 1e9


def read_files(paths: Sequence[Path], threads: int) -> float:
    """Read mapped files once, as the engine sees them; return GB/s.

    They should be in the page cache: all are read twice, and the second time counts.
    """
    views = [_mapped(path) for path in paths]
    _read_views(views, threads)  # page tables, and the page cache
    rate = _read_views(views, threads)
    for view in views:
        view.close()
    return rate
