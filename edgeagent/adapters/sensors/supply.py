"""The battery: how full, how fast, and what it says about the board's power.

The kernel documents a negative current while discharging, but many gauges report it unsigned, so
the status decides the sign.  Only a discharging battery tells what the board uses.
"""

from __future__ import annotations

from edgeagent.adapters.sensors.candidate import Candidate, SensorAbsent, plausible_w
from edgeagent.adapters.sensors.sysfs import Sysfs
from edgeagent.power.samples import BATTERY

SUPPLIES = "/sys/class/power_supply"
RANK = 40  # a slow gauge: any other power sensor is better


def probe(fs: Sysfs) -> list[Candidate]:
    """Return what the first system battery offers; batteries of mice and phones are passed over."""
    for entry in fs.entries(SUPPLIES):
        path = f"{SUPPLIES}/{entry}"
        is_battery = fs.optional(f"{path}/type") in ("Battery", "UPS")
        of_device = fs.optional(f"{path}/scope") == "Device"
        if is_battery and not of_device and fs.optional(f"{path}/present") != "0":
            return _battery(fs, f"power_supply {entry}", path)
    return []


def _battery(fs: Sysfs, name: str, path: str) -> list[Candidate]:
    status, capacity = f"{path}/status", f"{path}/capacity"
    found = [
        Candidate(
            "battery_status", name, status, BATTERY, 0, lambda _now_s: fs.text(status), (status,)
        ),
        Candidate(
            "battery_percent",
            name,
            capacity,
            BATTERY,
            0,
            lambda _now_s: float(fs.number(capacity)),
            (capacity,),
        ),
    ]
    files = _power_files(fs, path)
    if files:
        gauge = _Gauge(fs, name, status, files)
        needed = (status, *files)
        found += [
            Candidate("battery_w", name, files[0], BATTERY, 0, gauge.battery_w, needed),
            Candidate("power_w", name, files[0], BATTERY, RANK, gauge.board_w, needed),
        ]
    return found


def _power_files(fs: Sysfs, path: str) -> tuple[str, ...]:
    """Return the files that make up the power: microwatts, or microvolts and microamperes."""
    if fs.exists(f"{path}/power_now"):
        return (f"{path}/power_now",)
    for current in ("current_now", "current_avg"):
        if fs.exists(f"{path}/{current}") and fs.exists(f"{path}/voltage_now"):
            return (f"{path}/voltage_now", f"{path}/{current}")
    return ()


class _Gauge:
    """The power that flows into the battery, or out of it."""

    def __init__(self, fs: Sysfs, name: str, status: str, files: tuple[str, ...]) -> None:
        self._fs = fs
        self._name = name
        self._status = status
        self._files = files

    def battery_w(self, _now_s: float) -> float:
        """Return the watts into the battery; negative while it is discharged."""
        watts = self._magnitude_w()
        return -watts if self._fs.text(self._status) == "Discharging" else watts

    def board_w(self, _now_s: float) -> float:
        """Return the watts that the board takes out of the battery."""
        status = self._fs.text(self._status)
        if status != "Discharging":
            raise SensorAbsent(f"the battery is not what feeds the board (its status: {status})")
        return self._magnitude_w()

    def _magnitude_w(self) -> float:
        if len(self._files) == 1:
            watts = abs(self._fs.number(self._files[0])) / 1e6
        else:
            voltage, current = self._files
            watts = abs(self._fs.number(voltage) * self._fs.number(current)) / 1e12
        return plausible_w(self._name, watts)
