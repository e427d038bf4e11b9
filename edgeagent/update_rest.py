"""How long no updater runs after one has ended, and what ends the rest early.  Pure.

What the updater says decides: a time to come back, a condition to watch, or nothing, which means
that trying the same again gives the same.  Then only a notice, a request or the look of the next
day starts one (``docs/adr/0025-when-an-update-rests.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeagent.protocol.reconnect import Backoff

RETRY_S = (30.0, 86_400.0)
"""Bounds of what the updater asks for: neither a busy loop nor more than a day lost."""

NOTHING_LEFT_S = 86_400.0
"""A look a day at what is signed, about a kilobyte: a notice may have been lost."""

GATE_FIRST_S = 4.0
GATE_CAP_S = 300.0
"""How soon a condition that is over is believed: at first at once, later more slowly."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The condition that holds a stage back."""

    stage: str
    reason: str
    detail: str
    least_s: float
    """Not before this: a condition that comes and goes must not start an updater each time."""
    again_s: float
    """When the condition may be over, as far as that can be told."""


@dataclass(frozen=True, slots=True)
class Rest:
    """No updater for so long, unless something new comes, or the gate opens."""

    seconds: float
    gate: Gate | None = None


class Rests:
    """What follows from the ends of updaters.

    Args:
        poll_interval_s: between looks when all is well
    """

    def __init__(self, poll_interval_s: float) -> None:
        self.poll = Rest(poll_interval_s)
        self._gates = Backoff(GATE_FIRST_S, GATE_CAP_S)

    def settled(self) -> Rest:
        """There is nothing to do."""
        self._gates.failures = 0
        return self.poll

    def failed(self, message: Mapping[str, Any], draw: float) -> Rest:
        """Return the rest after ``failed``; ``draw`` in [0, 1) is the jitter."""
        gate, retry_s = message.get("gate"), message.get("retry_after_s")
        is_number = isinstance(retry_s, int | float) and not isinstance(retry_s, bool)
        if not isinstance(gate, Mapping):
            self._gates.failures = 0
        if not is_number:
            return Rest(max(self.poll.seconds, NOTHING_LEFT_S * (0.75 + 0.25 * draw)))
        seconds = min(max(float(retry_s or 0.0), RETRY_S[0]), RETRY_S[1])
        if not isinstance(gate, Mapping):
            return Rest(seconds)
        stage, reason, detail = (str(gate.get(name, "")) for name in ("stage", "reason", "detail"))
        watched = Gate(stage, reason, detail, self._gates.next_s(0.0, draw), seconds)
        # The agent sees the condition itself, so there is no need to start an updater to ask.
        return Rest(max(seconds, self.poll.seconds), watched)

    def broken(self) -> Rest:
        """Return the rest after an updater that failed without a word."""
        return Rest(RETRY_S[0])
