"""One way to get one quantity, found by a probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgeagent.errors import AdapterError

Value = float | bool | str

# Above any board or processor package that runs this agent; far below what a broken driver says.
MAX_W = 2000.0


class SensorAbsent(AdapterError):
    """A sensor is there and healthy but has nothing to say now; the message says why."""

    code = "sensor_absent"


@dataclass(slots=True)
class Candidate:
    """A source of ``quantity``; of several, the lowest ``rank`` that can be read is used."""

    quantity: str
    name: str  # as in Sample.sources, for example "thermal cpu-thermal"
    path: str
    quality: str
    rank: int
    read: Callable[[float], Value]  # takes the time; raises OSError, ValueError, SensorAbsent
    files: tuple[str, ...] = ()  # what must be readable for it to work
    problem: str = ""  # why it cannot be used, "" when it can

    @property
    def source(self) -> str:
        """What a sample says about where a value came from."""
        return f"{self.quality}: {self.name}"


def plausible_w(name: str, watts: float) -> float:
    """Return ``watts``, or raise SensorAbsent when nothing of ours draws that."""
    if not 0.0 <= watts <= MAX_W:
        raise SensorAbsent(f"{name} says {watts:g} W, which cannot be")
    return watts


def unusable(quantity: str, name: str, path: str, problem: str) -> Candidate:
    """Return a candidate that is only listed, so that a person sees why it is not used."""

    def read(_now_s: float) -> Value:
        raise SensorAbsent(problem)

    return Candidate(quantity, name, path, "", 99, read, problem=problem)
