"""Model files in huge pages of the page cache, where kernel and file system have them.

Decoding reads the planes once a token: with 4 KiB pages a core walks page tables for every one of
them (docs/performance.md has what that costs).  Pages of the cache become huge ones when they enter
it, never later, so huge ones are asked for in three places: files are written in whole, aligned
pieces; they are fetched through a mapping that wants huge pages before they are hashed; and the
planes of the mapping that stays want them too, for pages that were dropped and come back.

Linux has this from 6.16 on for ext4, earlier for XFS; without it all of this is a hint that nobody
takes.
"""

from __future__ import annotations

import mmap
from typing import BinaryIO

#: x86-64 and AArch64 with 4 KiB pages.
HUGE_BYTES = 2 << 20
#: Of <linux/mman.h>, Linux 5.14; this Python has no name for it.
_POPULATE_READ = 22


class WholePieces:
    """Passes bytes on in pieces that begin at multiples of HUGE_BYTES."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._held = out, bytearray()

    def write(self, data: bytes | memoryview) -> None:
        """Take bytes; what does not fill a piece is held back.

        All of it is copied: a source that is mapped itself and not there yet makes the kernel
        fall back to small pages.
        """
        view = memoryview(data).cast("B")
        while view:
            part = view[: HUGE_BYTES - len(self._held)]
            self._held += part
            view = view[len(part) :]
            if len(self._held) == HUGE_BYTES:
                self.close()

    def close(self) -> None:
        """Write what is held back; the file stays open."""
        self._out.write(self._held)
        self._held = bytearray()


def want_huge(mapping: mmap.mmap, n_bytes: int) -> None:
    """Ask for huge pages in the whole ones of the first `n_bytes` of a mapping."""
    whole = n_bytes // HUGE_BYTES * HUGE_BYTES
    if not whole or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE, 0, whole)
    except OSError:  # a kernel without them
        return


def fetch_huge(file: BinaryIO, at: int, n_bytes: int) -> None:
    """Bring `n_bytes` from `at`, a multiple of HUGE_BYTES, into the page cache as huge pages.

    Whoever reads the file next finds them there.  Nothing is raised: an error of the disk meets
    that reader, who can name the file.
    """
    if n_bytes < HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    try:
        with mmap.mmap(file.fileno(), n_bytes, access=mmap.ACCESS_READ, offset=at) as window:
            want_huge(window, n_bytes)
            window.madvise(_POPULATE_READ)
    except (OSError, ValueError):  # no such advice, a bad disk, a file that was cut short
        return
