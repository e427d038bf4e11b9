"""What the updater asks before each stage: battery, heat, load, the link and the time of day.

The updater decides (`ota.conditions`), because it knows its stages; the agent brings the samples.
While a stage is held back no updater runs: the agent watches the same condition by itself and
starts one when it is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol

from edgeagent.config import Update
from edgeagent.hours import parse_window
from edgeagent.power.samples import Sample
from ota.clock import reference_time
from ota.conditions import Limits, Samples, may_resume

CHARGING = frozenset({"Charging", "Full", "Not charging"})
"""Words of the kernel for a battery that is not being used up."""


class Board(Protocol):
    """The sensors; `edgeagent.sensing.Sensing` is the real one."""

    last: Sample

    async def sample(self) -> Sample:
        """Take a sample now."""


class Link(Protocol):
    """The uplink; `edgeagent.adapters.metered.Metered` is the real one."""

    async def read(self) -> bool | None:
        """Return whether it is metered."""


class Surroundings:
    """The device, as far as it matters to an update.

    Args:
        limits: what the operator of the device wants
        board: the sensors
        link: the uplink
        is_busy: whether somebody waits for an answer of the model
    """

    def __init__(
        self, limits: Limits, board: Board, link: Link, is_busy: Callable[[], bool]
    ) -> None:
        self._limits = limits
        self._board = board
        self._link = link
        self._is_busy = is_busy

    @property
    def limits(self) -> dict[str, Any]:
        """The limits, as the updater's ``start`` takes them."""
        return asdict(self._limits)

    async def take(self) -> dict[str, Any]:
        """Read the sensors now; return the samples, as the updater takes them."""
        await self._board.sample()
        return asdict(await self._samples())

    async def may_resume(self, stage: str) -> bool:
        """Say whether a stage that was held back is worth another try, by the last sample."""
        return may_resume(stage, await self._samples(), self._limits)

    async def _samples(self) -> Samples:
        sample = self._board.last
        percent, status = sample.battery_percent, sample.battery_status
        return Samples(
            battery=None if percent is None else min(1.0, max(0.0, percent / 100)),
            is_charging=None if status is None else status in CHARGING,
            temperature_c=sample.temperature_c,
            is_metered=await self._link.read(),
            is_busy=self._is_busy(),
            minute=minute_of_day(time.time()),
            is_throttled=sample.throttled,
        )


def minute_of_day(now_s: float) -> int | None:
    """Return the minute of the local day; None when the clock cannot be right."""
    if not reference_time(datetime.fromtimestamp(now_s, UTC)).is_trusted:
        return None
    local = time.localtime(now_s)
    return 60 * local.tm_hour + local.tm_min


def limits_of(update: Update) -> Limits:
    """Return the limits that the configuration sets."""
    window_from, window_to = parse_window(update.window)
    return Limits(
        min_battery=update.min_battery_percent / 100,
        max_temperature_c=update.max_temperature_c,
        may_use_metered=update.when_metered,
        may_use_busy=update.when_busy,
        window_from=window_from,
        window_to=window_to,
        may_use_throttled=update.when_throttled,
    )
