"""What one reading of the board's sensors is.

A quantity that is not measured is ``None``, and ``absent`` says in one line why: nothing here is
ever guessed.  ``sources`` names, for each quantity that is present, where it came from and how far
to trust it, as ``"<quality>: <source>"``:

    measured   the thing itself: a temperature, or all the power that enters the board
    rail       a part of the board: one supply rail, the CPU package, a sum of rails
    battery    the battery's own gauge, which is slow and includes everything attached

Inside the agent there are only SI units and degrees Celsius; the adapters convert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MEASURED = "measured"
RAIL = "rail"
BATTERY = "battery"

# The quantities of a sample, by the name of their field.
QUANTITIES = (
    "temperature_c",
    "power_w",
    "energy_j",
    "throttled",
    "throttled_s",
    "undervoltage",
    "battery_percent",
    "battery_w",
    "battery_status",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of the sensors, at ``time_s`` of a monotonic clock."""

    time_s: float
    temperature_c: float | None = None
    power_w: float | None = None
    energy_j: float | None = None  # a counter that only grows; its origin means nothing
    sources: Mapping[str, str] = field(default_factory=dict)  # quantity -> "<quality>: <source>"
    absent: Mapping[str, str] = field(default_factory=dict)  # quantity -> why it is None
    throttled: bool | None = None  # the board runs slower than it could, now
    throttled_s: float | None = None  # for how long since boot
    undervoltage: bool | None = None
    battery_percent: float | None = None
    battery_w: float | None = None  # negative while the battery is being discharged
    battery_status: str | None = None  # the kernel's word: "Discharging", "Full", ...


def trend_c_per_s(samples: Sequence[Sample]) -> float | None:
    """Return the slope of the least-squares line through the temperatures, in degrees a second.

    Returns:
        ``None`` with fewer than two temperatures, or when all were taken at one moment.
    """
    points = [(s.time_s, s.temperature_c) for s in samples if s.temperature_c is not None]
    if len(points) < 2:
        return None
    mean_s = sum(t for t, _ in points) / len(points)
    mean_c = sum(c for _, c in points) / len(points)
    spread = sum((t - mean_s) ** 2 for t, _ in points)
    if spread <= 0.0:
        return None
    return sum((t - mean_s) * (c - mean_c) for t, c in points) / spread
