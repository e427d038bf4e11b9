"""Joules of a stretch of work, where the board has a sensor."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from edgeagent.adapters.sensors import Sensors
from edgeagent.power.meter import EnergyMeter


class Joules:
    """Reads the board before and after; a counter is exact, a power sensor needs the samples."""

    def __init__(self) -> None:
        self._sensors = Sensors()
        self._meter = EnergyMeter()
        self._began_s = 0.0

    def sample(self) -> float:
        """Take a sample now and return its time."""
        now_s = time.monotonic()
        self._meter.add(self._sensors.read(now_s))
        return now_s

    def of(self, work: Callable[[], int]) -> dict[str, Any]:
        """Do `work`, which returns its tokens; return joules a token, or null and why."""
        began_s = self.sample()
        tokens = work()
        energy = self._meter.energy_between(began_s, self.sample())
        per_token = energy.per_token(tokens)
        return {
            "j_per_token": None if per_token is None else round(per_token, 5),
            "source": energy.source,
            "reason": energy.reason,
        }
