"""The board's temperature and energy, beside the queries that cost them."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

from edgeagent.power.meter import EnergyMeter
from edgeagent.power.samples import Sample
from edgeagent.progress import Progress

BUSY_INTERVAL_S = 1.0
"""While a query runs: the meter's usual rate; a power sensor is averaged well by that."""


class SensorReader(Protocol):
    """What reads the board; `edgeagent.adapters.sensors.Sensors` is the real one."""

    def read(self, now_s: float) -> Sample:
        """Return a sample stamped ``now_s``."""


class Sensing:
    """Samples at a slow pace when idle, at a faster one while something is measured."""

    def __init__(self, sensors: SensorReader, progress: Progress, idle_interval_s: float) -> None:
        self.meter = EnergyMeter()
        self.last = Sample(0.0, absent={"temperature_c": "not sampled yet"})
        self._sensors = sensors
        self._progress = progress
        self._beat = progress.loop("sensors")
        self._idle_interval_s = idle_interval_s
        self._busy = 0
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Keep sampling."""
        while True:
            await self.sample()
            start_s = time.monotonic()
            while time.monotonic() - start_s < self._interval_s():
                self._beat()
                await asyncio.sleep(min(self._interval_s(), self._progress.wake_s))

    def _interval_s(self) -> float:
        return BUSY_INTERVAL_S if self._busy else self._idle_interval_s

    async def sample(self) -> Sample:
        """Take a sample now, off the event loop: a sensor may be slow."""
        async with self._lock:
            sample = await asyncio.to_thread(self._sensors.read, time.monotonic())
            self.meter.add(sample)
            self.last = sample
        return sample

    def begin(self) -> asyncio.Task[Sample]:
        """Take the sample before something is measured, beside it; `finish` takes the one after."""
        self._busy += 1
        return asyncio.create_task(self.sample(), name="sample")

    async def finish(self, first: asyncio.Task[Sample], tokens: int) -> dict[str, Any]:
        """Return ``energy`` and ``thermal`` of what was measured; what is unknown is null."""
        self._busy -= 1
        start, end = await first, await self.sample()
        energy = self.meter.energy_between(start.time_s, end.time_s)
        thermal: dict[str, Any] = {"temperature_c": _rounded(end.temperature_c, 1)}
        if end.temperature_c is None:
            thermal["reason"] = end.absent.get("temperature_c", "no sensor")
        return {
            "energy": {
                "joules": _rounded(energy.joules, 4),
                "j_per_token": _rounded(energy.per_token(tokens), 5),
                "source": energy.source,
                "reason": energy.reason,
            },
            "thermal": thermal,
        }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
