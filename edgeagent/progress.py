"""Whether every loop of the agent is alive.

systemd's watchdog is fed from here, and only when every loop has made progress since it was fed
last: a timer that runs beside a stuck loop proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

WAKE_S = 5.0
"""How long a healthy loop may sleep when nothing happens."""

BEATS = 3
"""Beats within a watchdog period: a loop that is merely late is not called stuck."""


class Progress:
    """Counts who has been heard of since the last look."""

    def __init__(self, watchdog_s: float | None = None) -> None:
        self.wake_s = WAKE_S if watchdog_s is None else min(WAKE_S, watchdog_s / (2 * BEATS))
        self._loops: set[str] = set()
        self._heard: set[str] = set()

    def loop(self, name: str) -> Callable[[], None]:
        """Expect a loop of this name; return what it calls at every turn."""
        self._loops.add(name)
        return lambda: self._heard.add(name)

    def silent(self) -> list[str]:
        """Return the loops not heard of since the last call, and start anew."""
        missing = sorted(self._loops - self._heard)
        self._heard.clear()
        return missing

    async def wait(self, event: asyncio.Event, beat: Callable[[], None]) -> None:
        """Wait until the event is set, and beat meanwhile."""
        beat()
        while not event.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.wake_s):
                    await event.wait()
            beat()

    async def sleep(self, seconds: float, beat: Callable[[], None]) -> None:
        """Sleep in steps, with a beat at each."""
        clock = asyncio.get_running_loop().time
        end_s = clock() + seconds
        while True:
            beat()
            left_s = end_s - clock()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, self.wake_s))
