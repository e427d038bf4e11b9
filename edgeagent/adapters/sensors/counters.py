"""Energy counters as a source: joules, and the power between two readings."""

from __future__ import annotations

from dataclasses import dataclass

from edgeagent.adapters.sensors.candidate import Candidate, SensorAbsent, plausible_w
from edgeagent.adapters.sensors.sysfs import Sysfs
from edgeagent.power.counter import EnergyCounter

# Counters advance about once a millisecond; over 0.2 s that is an error of half a per cent.
MIN_INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True)
class Register:
    """A counter file in microjoules, and where it wraps."""

    path: str
    range_uj: int | None


class Counters:
    """The sum of some registers, read at most once for each moment."""

    def __init__(self, fs: Sysfs, name: str, registers: list[Register]) -> None:
        self._fs = fs
        self._name = name
        self._registers = [(r.path, EnergyCounter(r.range_uj)) for r in registers]
        self._read_s: float | None = None
        self._energy_j: float | None = None
        self._base: tuple[float, float] | None = None  # where the current power began
        self._power_w: float | None = None

    def energy_j(self, now_s: float) -> float:
        """Return the joules, from an origin that means nothing."""
        self._refresh(now_s)
        if self._energy_j is None:
            raise SensorAbsent(
                "the energy counter went unread for so long that it may have wrapped"
            )
        return self._energy_j

    def power_w(self, now_s: float) -> float:
        """Return the mean power since the reading before, over at least ``MIN_INTERVAL_S``."""
        self._refresh(now_s)
        if self._power_w is None:
            raise SensorAbsent("power is the difference of two readings of the energy counter")
        return plausible_w(self._name, self._power_w)

    def _refresh(self, now_s: float) -> None:
        if now_s == self._read_s:
            return
        steps = [counter.add(now_s, self._fs.number(path)) for path, counter in self._registers]
        self._read_s = now_s
        known = [joules for joules in steps if joules is not None]
        if len(known) < len(steps):
            self._energy_j = self._base = self._power_w = None
            return
        self._energy_j = sum(known)
        if self._base is None:
            self._base = now_s, self._energy_j
        elif (elapsed_s := now_s - self._base[0]) >= MIN_INTERVAL_S:
            self._power_w = (self._energy_j - self._base[1]) / elapsed_s
            self._base = now_s, self._energy_j


def candidates(
    fs: Sysfs, name: str, registers: list[Register], quality: str, rank: int
) -> list[Candidate]:
    """Return the two candidates, energy and power, of one set of registers."""
    counters = Counters(fs, name, registers)
    paths = tuple(r.path for r in registers)
    return [
        Candidate("energy_j", name, paths[0], quality, rank, counters.energy_j, paths),
        Candidate("power_w", name, paths[0], quality, rank, counters.power_w, paths),
    ]
