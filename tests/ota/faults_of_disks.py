"""A disk that refuses: every call that changes it, one after the other, in every way."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ota.storage import RESERVE_BYTES, Calls, Disk
from tests.ota.crashes import NO_ROOM, in_place_fleet
from tests.ota.harness import Fleet, make_fleet
from tests.ota.lab import COMMITTED, GAVE_UP, NETWORK_WORKERS, WAITS, Lab, budget_of

ERRORS = {
    "full": (errno.ENOSPC, "storage_full"),
    "broken (EIO)": (errno.EIO, "storage_failed"),
    "read-only": (errno.EROFS, "storage_read_only"),
}
STRATEGIES: dict[str, Callable[[Path], Fleet]] = {"slot": make_fleet, "in_place": in_place_fleet}


def lasting_end(code: str) -> tuple[str, int]:
    """Return the final state, and the workers, of a disk that goes on refusing everything."""
    return (GAVE_UP, 1) if budget_of(code) == 1 else (WAITS, NETWORK_WORKERS)


class RefusingCalls(Calls):
    """Refuses the ``at``-th call, counted from 0, and all after it if it ``stays``."""

    def __init__(self, at: int, error: int, *, stays: bool) -> None:
        self.n_calls = 0
        self._at, self._error, self._stays = at, error, stays

    def _count(self) -> None:
        number = self.n_calls
        self.n_calls += 1
        if number == self._at or (self._stays and number > self._at):
            raise OSError(self._error, os.strerror(self._error))

    def open(self, path, flags=0):
        self._count()
        return super().open(path, flags)

    def write(self, fd, data, offset):
        self._count()
        return super().write(fd, data, offset)

    def truncate(self, fd, length):
        self._count()
        super().truncate(fd, length)

    def sync(self, fd):
        self._count()

    def sync_path(self, path):
        self._count()

    def close(self, fd):
        super().close(fd)
        self._count()

    def link(self, source, target):
        self._count()
        super().link(source, target)

    def rename(self, source, target):
        self._count()
        super().rename(source, target)

    def make_directory(self, path):
        self._count()
        super().make_directory(path)

    def unlink(self, path):
        self._count()
        super().unlink(path)

    def remove_directory(self, path):
        self._count()
        super().remove_directory(path)


class _SmallDisk(Disk):
    def free_bytes(self, path: Path) -> int:
        return RESERVE_BYTES + NO_ROOM


def make_lab(path: Path, fleet: Fleet, strategy: str) -> Lab:
    """Return a device; for ``in_place`` one with a slot of its own and room for a patch only."""
    lab = Lab(path, fleet)
    if strategy == "in_place":
        shutil.copytree(fleet.path.parent / "device", lab.state, symlinks=True)
        lab.disk, lab.final = _SmallDisk, "1.2.0"
    return lab


def count_calls(path: Path, fleet: Fleet, strategy: str) -> int:
    """Return how many calls an update makes that nothing disturbs."""
    calls = RefusingCalls(-1, 0, stays=False)
    lab = make_lab(path, fleet, strategy)
    lab.calls = lambda: calls
    assert lab.worker().code == COMMITTED
    shutil.rmtree(path)
    return calls.n_calls


def check_call(
    path: Path, fleet: Fleet, strategy: str, name: str, at: int, *, stays: bool
) -> tuple[str, str, int]:
    """Refuse one call; returns the first code, what was final, and the number of workers."""
    error, code = ERRORS[name]
    lab = make_lab(path, fleet, strategy)
    first: list[Calls] = [RefusingCalls(at, error, stays=stays)]

    def calls() -> Calls:
        """The next workers meet a disk that is good again, or one that refuses everything."""
        if first:
            return first.pop()
        return RefusingCalls(0, error, stays=True) if stays else Calls()

    lab.calls = calls
    row = lab.play()
    shutil.rmtree(path)
    where = f"{strategy}, {name} at call {at}, {'stays' if stays else 'once'}: {row}"
    assert row.first in (code, COMMITTED), where
    if row.first == COMMITTED:
        assert (row.final, row.workers) == (COMMITTED, 1), where
    else:
        lasting = COMMITTED, 2
        if stays or budget_of(code) == 1:
            lasting = lasting_end(code)
        assert (row.final, row.workers) == lasting, where
    assert row.healed == COMMITTED and row.healed_workers == 1, where
    return row.first, row.final, row.workers


def sweep(
    work: Path, fleet: Fleet, strategy: str, name: str, *, stays: bool, stride: int = 1
) -> dict[str, Any]:
    """Refuse every ``stride``-th call of an update in one way."""
    n_calls = count_calls(work / "count", fleet, strategy)
    firsts: Counter[str] = Counter()
    finals: Counter[str] = Counter()
    most = 0
    for at in range(0, n_calls, stride):
        first, final, workers = check_call(work / f"at{at}", fleet, strategy, name, at, stays=stays)
        firsts[first] += 1
        finals[final] += 1
        most = max(most, workers)
    return {
        "strategy": strategy,
        "error": name,
        "stays": stays,
        "calls": sum(firsts.values()),
        "first": dict(firsts),
        "final": dict(finals),
        "most_workers": most,
    }
