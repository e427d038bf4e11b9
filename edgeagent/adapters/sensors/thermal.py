"""The temperature of the processor: thermal zones, then hwmon.

A board has many zones, and their numbers change from boot to boot; the type of a zone says what it
is.  Zones that are powered down answer EAGAIN or a value like -256 °C and are passed over.
"""

from __future__ import annotations

import re

from edgeagent.adapters.sensors.candidate import Candidate, SensorAbsent, unusable
from edgeagent.adapters.sensors.sysfs import Sysfs
from edgeagent.power.samples import MEASURED

ZONES = "/sys/class/thermal"
HWMON = "/sys/class/hwmon"

# Silicon does not work outside; drivers of gated or missing sensors answer far outside.
MIN_C, MAX_C = -40.0, 150.0

# What a zone's type says, best first: the CPU itself, its package, the hottest junction of the
# chip.  "acpitz" is the firmware's, often somewhere on the main board and sometimes a constant.
_ZONE_RANKS = (
    (re.compile(r"cpu[-_]?therm(al)?$", re.I), 0),  # Raspberry Pi, Jetson ("cpu-thermal")
    (re.compile(r"x86_pkg_temp$"), 0),
    (re.compile(r"(cpu|bigcore|littlecore)[-_]?\d.*$", re.I), 1),  # one zone a cluster
    (re.compile(r"soc[-_]?\d*[-_]?thermal$", re.I), 2),
    (re.compile(r"tj-thermal$"), 3),
    (re.compile(r"acpitz$"), 8),
)

# hwmon name -> label that means the whole processor ("" takes a sensor without a label).  They rank
# behind thermal zones, which mostly show the same sensor.
_HWMON_LABELS = {
    "coretemp": ("Package id 0", "Physical id 0"),
    "k10temp": ("Tdie", "Tctl"),  # on parts that have both, Tctl carries an offset
    "zenpower": ("Tdie",),
    "cpu_thermal": ("",),
    "soc_thermal": ("",),
}
_HWMON_RANK = 4


def probe(fs: Sysfs) -> list[Candidate]:
    """Return every temperature that there is; those of other things are listed as not usable."""
    return _zones(fs) + _hwmon(fs)


def _zones(fs: Sysfs) -> list[Candidate]:
    found = []
    for entry in fs.entries(ZONES):
        if not entry.startswith("thermal_zone"):
            continue
        kind, path = fs.optional(f"{ZONES}/{entry}/type") or "", f"{ZONES}/{entry}/temp"
        rank = next((rank for pattern, rank in _ZONE_RANKS if pattern.match(kind)), None)
        name = f"thermal {kind or entry}"
        if rank is None:
            found.append(_other(name, path))
        else:
            found.append(_temperature(fs, name, path, rank))
    return found


def _hwmon(fs: Sysfs) -> list[Candidate]:
    found = []
    for entry in fs.entries(HWMON):
        chip = fs.optional(f"{HWMON}/{entry}/name") or entry
        labels = _HWMON_LABELS.get(chip, ())
        for attribute in fs.entries(f"{HWMON}/{entry}"):
            if not re.fullmatch(r"temp\d+_input", attribute):
                continue
            path = f"{HWMON}/{entry}/{attribute}"
            label = fs.optional(path.replace("_input", "_label")) or ""
            name = f"hwmon {chip} {label}".rstrip()
            if label in labels:
                rank = _HWMON_RANK + labels.index(label)
                found.append(_temperature(fs, name, path, rank))
            else:
                found.append(_other(name, path))
    return found


def _other(name: str, path: str) -> Candidate:
    return unusable("temperature_c", name, path, "is not the processor's temperature")


def _temperature(fs: Sysfs, name: str, path: str, rank: int) -> Candidate:
    def read(_now_s: float) -> float:
        try:
            celsius = fs.number(path) / 1000
        except BlockingIOError:  # EAGAIN: the zone's power domain is off
            raise SensorAbsent(f"{name} is switched off just now") from None
        if not MIN_C <= celsius <= MAX_C:
            raise SensorAbsent(f"{name} says {celsius:g} °C, which cannot be")
        return celsius

    return Candidate("temperature_c", name, path, MEASURED, rank, read, (path,))
