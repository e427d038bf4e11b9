"""hwmon chips that measure power, energy or under-voltage.

Only chips that we know are used: a power sensor that nobody can place would be worse than none.
The others are listed with that reason.
"""

from __future__ import annotations

import re

from edgeagent.adapters.sensors.candidate import Candidate, plausible_w, unusable
from edgeagent.adapters.sensors.counters import Register, candidates
from edgeagent.adapters.sensors.sysfs import Sysfs
from edgeagent.power.samples import MEASURED, RAIL

HWMON = "/sys/class/hwmon"

RANK_BOARD = 0  # all that enters the board: better than anything else
RANK_ENERGY = 11
RANK_RAILS = 20

# Jetson: the rail that carries everything, where there is one.
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")

# ACPI's meter of the machine's input; the others measure one rail, wherever their maker put them.
_BOARD_METERS = ("power_meter",)
_RAIL_METERS = (
    "fam15h_power",
    "ina219",
    "ina220",
    "ina226",
    "ina230",
    "ina231",
    "ina238",
    "ina260",
)


def probe(fs: Sysfs) -> list[Candidate]:
    """Return every power, energy and under-voltage attribute of every chip."""
    found: list[Candidate] = []
    rails: list[tuple[str, str]] = []
    for entry in fs.entries(HWMON):
        chip, path = fs.optional(f"{HWMON}/{entry}/name") or entry, f"{HWMON}/{entry}"
        if chip == "ina3221":
            rails += _ina3221_rails(fs, path)
        elif chip == "rpi_volt":
            found.append(_undervoltage(fs, f"{path}/in0_lcrit_alarm"))
        else:
            found += _power(fs, chip, path)
            found += _energy(fs, chip, path)
    return found + _ina3221(fs, rails)


def _ina3221_rails(fs: Sysfs, path: str) -> list[tuple[str, str]]:
    """Return (label, path of the millivolts) of the connected channels; 7 is their sum."""
    rails = []
    for channel in (1, 2, 3):
        label = fs.optional(f"{path}/in{channel}_label")
        if label and "NC" not in label:
            rails.append((label, f"{path}/in{channel}_input"))
    return rails


def _ina3221(fs: Sysfs, rails: list[tuple[str, str]]) -> list[Candidate]:
    """Return the board's total: the rail that carries everything, else the sum of all."""
    if not rails:
        return []
    total = [(label, path) for label, path in rails if label in _TOTAL_RAILS][:1]
    used, quality, rank = (total, MEASURED, RANK_BOARD) if total else (rails, RAIL, RANK_RAILS)
    pairs = [(path, path.replace("/in", "/curr")) for _, path in used]

    name = f"hwmon ina3221 {'+'.join(label for label, _ in used)}"

    def read(_now_s: float) -> float:
        return plausible_w(name, sum(fs.number(mv) * fs.number(ma) for mv, ma in pairs) / 1e6)

    files = tuple(path for pair in pairs for path in pair)
    found = [Candidate("power_w", name, used[0][1], quality, rank, read, files)]
    for label, path in rails:
        if (label, path) not in used:
            why = f"is part of {used[0][0]}"
            found.append(unusable("power_w", f"hwmon ina3221 {label}", path, why))
    return found


def _power(fs: Sysfs, chip: str, path: str) -> list[Candidate]:
    found = []
    attributes = fs.entries(path)
    for attribute in attributes:
        match = re.fullmatch(r"(power\d+)_(input|average)", attribute)
        if not match or (match[2] == "input" and f"{match[1]}_average" in attributes):
            continue
        label = fs.optional(f"{path}/{match[1]}_label") or ""
        name, file = f"hwmon {chip} {label}".rstrip(), f"{path}/{attribute}"
        if chip in _BOARD_METERS:
            found.append(_microwatts(fs, name, file, MEASURED, RANK_BOARD))
        elif chip in _RAIL_METERS:
            found.append(_microwatts(fs, name, file, RAIL, RANK_RAILS))
        else:
            why = "is not known to measure the board or its processor"
            found.append(unusable("power_w", name, file, why))
    return found


def _microwatts(fs: Sysfs, name: str, path: str, quality: str, rank: int) -> Candidate:
    def read(_now_s: float) -> float:
        return plausible_w(name, fs.number(path) / 1e6)

    return Candidate("power_w", name, path, quality, rank, read, (path,))


def _energy(fs: Sysfs, chip: str, path: str) -> list[Candidate]:
    """Return the sockets' counters of ``amd_energy``, which are 64 bits wide and do not wrap."""
    registers, found = [], []
    for attribute in fs.entries(path):
        if not re.fullmatch(r"energy\d+_input", attribute):
            continue
        file = f"{path}/{attribute}"
        label = fs.optional(file.replace("_input", "_label")) or ""
        if chip == "amd_energy" and label.startswith("Esocket"):
            registers.append(Register(file, None))
        else:
            why = "is not known to measure the board or its processor"
            found.append(unusable("energy_j", f"hwmon {chip} {label}".rstrip(), file, why))
    if registers:
        found += candidates(fs, "hwmon amd_energy sockets", registers, RAIL, RANK_ENERGY)
    return found


def _undervoltage(fs: Sysfs, path: str) -> Candidate:
    def read(_now_s: float) -> bool:
        return fs.number(path) != 0

    return Candidate("undervoltage", "hwmon rpi_volt", path, MEASURED, 0, read, (path,))
