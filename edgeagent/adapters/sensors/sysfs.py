"""Small text files below a root: all that the sensors know of the outside world.

Paths are absolute names on the board (``/sys/class/thermal``); the root in front of them is the
board's own ``/`` or a directory that plays one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# No attribute that we read is longer; sysfs itself stops at one page.
MAX_BYTES = 4096

# The kernel's numbers are 64 bits wide; anything longer is not a number of its making.
_MAX_NUMBER = 1 << 64

_DIGITS = re.compile(r"(\d+)")


class Sysfs:
    """The readable part of a board; a test plays a board by another root or a subclass."""

    def __init__(self, sysroot: Path = Path("/")) -> None:
        self._root = os.fspath(sysroot).rstrip("/")

    def text(self, path: str) -> str:
        """Return the content of ``path`` without surrounding blanks.

        Raises:
            OSError: it is not there, not readable, or the driver refuses just now (EAGAIN).
        """
        fd = os.open(self._root + path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, MAX_BYTES).decode("utf-8", "replace").strip("\0 \t\r\n")
        finally:
            os.close(fd)

    def number(self, path: str) -> int:
        """Return the integer in ``path``.

        Raises:
            OSError: as ``text``.
            ValueError: there is no integer of the kernel's size.
        """
        return parse_number(self.text(path))

    def entries(self, directory: str) -> list[str]:
        """Return the names in ``directory``, ``x10`` after ``x9``; none when it is not there."""
        try:
            names = [entry.name for entry in Path(self._root + directory).iterdir()]
        except OSError:
            return []
        return sorted(names, key=_natural)

    def optional(self, path: str) -> str | None:
        """Return the content of ``path``, or ``None`` when it cannot be read."""
        try:
            return self.text(path)
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Return whether there is anything at ``path``."""
        return Path(self._root + path).exists()

    def real(self, path: str) -> Path:
        """Return where ``path`` is for this process."""
        return Path(self._root + path)


def parse_number(text: str) -> int:
    """Return the integer that ``text`` is; raises ValueError when it is none, or too large."""
    value = int(text)
    if abs(value) > _MAX_NUMBER:
        raise ValueError(f"expected a number of 64 bits, got {text[:24]}...")
    return value


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that compares runs of digits as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]
