"""Which deltas of a repository lead from one release to another, and their sum."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import IO

from ota.compose import compose
from ota.container import Blob
from ota.errors import ConfigError
from ota.release import Release


def find_chain(deltas: Iterable[tuple[str, str]], start: str, end: str) -> list[tuple[str, str]]:
    """Return the shortest chain of (base root, result root) from one root to another.

    Raises:
        ConfigError: none leads there.
    """
    onward: dict[str, list[str]] = {}
    for base, root in sorted(deltas):
        onward.setdefault(base, []).append(root)
    came_from: dict[str, str] = {start: ""}
    queue = deque([start])
    while queue and end not in came_from:
        here = queue.popleft()
        for there in onward.get(here, []):
            if there not in came_from:
                came_from[there] = here
                queue.append(there)
    if end not in came_from or start == end:
        raise ConfigError(
            f"delta: no deltas lead from {start[:16]} to {end[:16]}; make it without --compose"
        )
    roots = [end]
    while roots[-1] != start:
        roots.append(came_from[roots[-1]])
    return list(zip(roots[:0:-1], roots[-2::-1], strict=True))


class _Memory:
    """A container in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def write_sum(
    chain: list[tuple[str, str]],
    open_delta: Callable[[str, str], Blob],
    releases: Mapping[str, Release],
    out: IO[bytes],
) -> None:
    """Write the sum of a chain of reversible deltas.

    Args:
        chain: what ``find_chain`` found
        open_delta: opens the container between two roots
        releases: every release on the way, by root
        out: where the sum goes

    Raises:
        PayloadError: a delta is not reversible, or does not add up.
    """
    base = releases[chain[0][0]]
    total = open_delta(*chain[0])
    for step in chain[1:]:
        both = io.BytesIO()
        compose((total, base), (open_delta(*step), releases[step[0]]), both)
        total = _Memory(both.getvalue())
    offset = 0
    while piece := total.read_at(offset, 1 << 20):
        out.write(piece)
        offset += len(piece)
