"""How much updates write, and how much they may: ``<state_dir>/ota/flash.json``.

A cheap card survives a few thousand writes of each cell.  ``CountingCalls`` counts what the update
asks the file system to write; the file system's own writes come on top.
"""

from __future__ import annotations

import json
from pathlib import Path

from ota.errors import FlashBudget
from ota.storage import Calls, Storage

DAY_S = 86_400
MAX_FLASH_BYTES = 4096  # of flash.json


class CountingCalls(Calls):
    """The system calls, with a count of the bytes written."""

    def __init__(self) -> None:
        self.written_bytes = 0

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        """Write some of ``data`` at ``offset`` and return how much."""
        n_written = super().write(fd, data, offset)
        self.written_bytes += n_written
        return n_written


class FlashLedger:
    """What was written today, across runs.

    A clock that goes back starts no new day: the day in the file stays.

    Args:
        storage: the disk
        path: the ledger's file
        calls: the counter of this run; None: nothing is counted
        budget_bytes: what may be written a day; None: as much as is needed
    """

    def __init__(
        self, storage: Storage, path: Path, calls: CountingCalls | None, budget_bytes: int | None
    ) -> None:
        self._storage = storage
        self._path = path
        self._calls = calls
        self._budget_bytes = budget_bytes
        self._before_bytes = self._mark_bytes = 0

    @property
    def run_bytes(self) -> int:
        """What this run wrote since it was settled last."""
        return 0 if self._calls is None else self._calls.written_bytes

    @property
    def update_bytes(self) -> int:
        """What was written for the update that `begin` named."""
        return self._before_bytes + self.run_bytes - self._mark_bytes

    def begin(self, before_bytes: int) -> None:
        """Count for an update from here on; earlier runs wrote ``before_bytes`` for it."""
        self._before_bytes, self._mark_bytes = before_bytes, self.run_bytes

    def check(self, planned_bytes: int, now_s: float) -> None:
        """Refuse to write ``planned_bytes`` more if the day has no room for them.

        Nothing was written today: the update goes on whatever it needs, since tomorrow has no more.

        Raises:
            FlashBudget: it must wait for another day.
        """
        day, used_bytes = self._today(now_s)
        if self._budget_bytes is None or not used_bytes:
            return
        used_bytes += self.run_bytes
        if used_bytes + planned_bytes > self._budget_bytes:
            raise FlashBudget(
                f"expected at most {self._budget_bytes} bytes of writes a day, got {used_bytes} "
                f"today and {planned_bytes} to come; the update goes on tomorrow",
                min(DAY_S, (day + 1) * DAY_S - now_s),
            )

    def settle(self, now_s: float) -> int:
        """Add what this run wrote to the day; returns the run's bytes."""
        if self._calls is None:
            return 0
        n_bytes, self._calls.written_bytes = self._calls.written_bytes, 0
        self._before_bytes, self._mark_bytes = self.update_bytes + n_bytes, 0
        day, used_bytes = self._today(now_s)
        fields = {"format": 1, "day": day, "bytes": used_bytes + n_bytes}
        self._storage.replace(self._path, json.dumps(fields).encode())
        return n_bytes

    def _today(self, now_s: float) -> tuple[int, int]:
        """Return the day and its bytes; a missing or damaged file is an unused day."""
        today = int(now_s // DAY_S)
        try:
            with self._path.open("rb") as file:
                fields = json.loads(file.read(MAX_FLASH_BYTES))
            day, used_bytes = fields["day"], fields["bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            return today, 0
        if type(day) is not int or type(used_bytes) is not int or day < today:
            return today, 0
        return day, max(0, used_bytes)
