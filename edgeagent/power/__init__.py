"""PURE: samples in, joules and trends out.  No clock, no file, no socket."""

from __future__ import annotations

from edgeagent.power.counter import EnergyCounter
from edgeagent.power.meter import Energy, EnergyMeter, Total
from edgeagent.power.samples import BATTERY, MEASURED, QUANTITIES, RAIL, Sample, trend_c_per_s

__all__ = [
    "BATTERY",
    "MEASURED",
    "QUANTITIES",
    "RAIL",
    "Energy",
    "EnergyCounter",
    "EnergyMeter",
    "Sample",
    "Total",
    "trend_c_per_s",
]
