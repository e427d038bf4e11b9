"""What the board measures about itself: temperature, power, energy, throttling, battery.

``Sensors`` looks below a root (``/``, or a directory that plays a board) for every source it knows,
ranks them, and reads the best one of each quantity.  A quantity without a source is ``None`` in the
sample, with the reason beside it.  Sources are found by type, name and label, never by number: the
numbers change from boot to boot.  One reading is about ten small files.

When a source fails the next best takes over, and the board is probed again, at most once in
``REPROBE_S`` seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeagent.adapters.sensors import cooling, firmware, hwmon, rapl, supply, thermal
from edgeagent.adapters.sensors.candidate import Candidate, SensorAbsent, Value
from edgeagent.adapters.sensors.firmware import Firmware
from edgeagent.adapters.sensors.sysfs import Sysfs
from edgeagent.errors import AdapterError
from edgeagent.power.samples import QUANTITIES, Sample

__all__ = ["Candidate", "Firmware", "SensorAbsent", "Sensors", "Sysfs"]

# A probe lists some hundred files: a few milliseconds, which a failing sensor may not cost often.
REPROBE_S = 30.0

RAPL_ADVICE = "only root may read it; install systemd/70-edgeagent.rules for the agent's group"

_NO_SOURCE = {
    "temperature_c": f"no processor zone below {thermal.ZONES} and none below {thermal.HWMON}",
    "power_w": "no power sensor found: no hwmon meter, no RAPL, no battery",
    "energy_j": f"no energy counter: no RAPL package below {rapl.POWERCAP}, no hwmon counter",
    "throttled": f"no CPU cooling device below {cooling.DEVICES} and no firmware to ask",
    "throttled_s": "the kernel keeps no thermal statistics",
    "undervoltage": "no under-voltage sensor",
    "battery_percent": f"no battery below {supply.SUPPLIES}",
    "battery_w": f"no battery with a gauge below {supply.SUPPLIES}",
    "battery_status": f"no battery below {supply.SUPPLIES}",
}


class Sensors:
    """The sensors of one board; not for use from two threads at once."""

    def __init__(
        self,
        sysroot: Path = Path("/"),
        *,
        sysfs: Sysfs | None = None,
        firmware: Firmware | None = None,
    ) -> None:
        """Use the board below ``sysroot``; a test may play its files or its firmware."""
        self._fs = sysfs or Sysfs(sysroot)
        self._firmware = firmware
        self._by_quantity: dict[str, list[Candidate]] = {}
        self._has_probed = False
        self._failed = False
        self._probed_s: float | None = None
        self._sources: Mapping[str, str] = {}
        self._absent: Mapping[str, str] = {}

    def probe(self) -> None:
        """Look for sources anew."""
        fs = self._fs
        found = thermal.probe(fs) + hwmon.probe(fs) + rapl.probe(fs) + supply.probe(fs)
        found += cooling.probe(fs) + firmware.probe(fs, self._firmware)
        for candidate in found:
            candidate.problem = candidate.problem or self._problem(candidate)
        found.sort(key=lambda c: c.rank)
        self._by_quantity = {q: [c for c in found if c.quantity == q] for q in QUANTITIES}
        self._has_probed, self._failed = True, False

    def read(self, now_s: float) -> Sample:
        """Return a sample, stamped ``now_s`` of a monotonic clock; never raises."""
        self._probe_if_due(now_s)
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        absent: dict[str, str] = {}
        for quantity in QUANTITIES:
            candidate, value, reason = self._first(quantity, now_s)
            if candidate is None:
                absent[quantity] = reason
            else:
                values[quantity] = value
                sources[quantity] = candidate.source
        # Samples of a quiet board share their dictionaries.
        self._sources = self._sources if sources == self._sources else sources
        self._absent = self._absent if absent == self._absent else absent
        return Sample(now_s, sources=self._sources, absent=self._absent, **values)

    def describe(self) -> list[dict[str, object]]:
        """Return every source found: its path, whether it is the one in use, and why not."""
        if not self._has_probed:
            self.probe()
        rows: list[dict[str, object]] = []
        for quantity in QUANTITIES:
            best: Candidate | None = None
            for candidate in self._by_quantity[quantity]:
                reason = candidate.problem
                if not reason and best is not None:
                    reason = f"{best.name} is preferred"
                elif not reason:
                    best = candidate
                rows.append(_row(candidate, reason))
        return rows

    def _probe_if_due(self, now_s: float) -> None:
        if self._probed_s is None:
            self._probed_s = now_s  # the first reading; someone may have probed before it
        is_due = self._failed and now_s - self._probed_s >= REPROBE_S
        if is_due or not self._has_probed:
            self.probe()
            self._probed_s = now_s

    def _first(self, quantity: str, now_s: float) -> tuple[Candidate | None, Value, str]:
        """Return the best candidate that answers and its value, or why none does."""
        reason = ""
        for candidate in self._by_quantity[quantity]:
            problem = candidate.problem
            if not problem:
                try:
                    return candidate, candidate.read(now_s), ""
                except SensorAbsent as err:
                    problem = str(err)
                except (OSError, ValueError, AdapterError) as err:
                    self._failed = True
                    problem = f"{candidate.name}: {err}"
            elif candidate.quality:
                problem = f"{candidate.name}: {problem}"
            else:  # listed only; it never was a source of this
                problem = ""
            reason = reason or problem
        return None, 0.0, reason or _NO_SOURCE[quantity]

    def _problem(self, candidate: Candidate) -> str:
        """Try the files of a candidate and say in one line why it cannot be used."""
        for path in candidate.files:
            try:
                self._fs.text(path)
            except BlockingIOError:
                continue  # off just now, perhaps on later
            except PermissionError:
                is_rapl = path.startswith(rapl.POWERCAP)
                return f"permission denied: {RAPL_ADVICE}" if is_rapl else "permission denied"
            except OSError as err:
                return str(err.strerror or err).lower()
        return ""


def _row(candidate: Candidate, reason: str) -> dict[str, object]:
    return {
        "quantity": candidate.quantity,
        "source": candidate.name,
        "quality": candidate.quality or None,
        "path": candidate.path,
        "used": not reason,
        "reason": reason or None,
    }
