"""RAPL: the energy counter of the CPU package, on Intel and AMD.

Since CVE-2020-8694 only root may read it; the udev rule that we ship lets the agent's group read.
Sub-zones (cores, uncore, dram) are parts of a package and are left out.
"""

from __future__ import annotations

import re

from edgeagent.adapters.sensors.candidate import Candidate, unusable
from edgeagent.adapters.sensors.counters import Register, candidates
from edgeagent.adapters.sensors.sysfs import Sysfs
from edgeagent.power.samples import RAIL

POWERCAP = "/sys/class/powercap"
RANK = 10


def probe(fs: Sysfs) -> list[Candidate]:
    """Return the sum of all packages as one source of energy and of power."""
    registers, names, found = [], [], []
    for entry in fs.entries(POWERCAP):
        if not re.fullmatch(r"intel-rapl:\d+", entry):
            continue
        zone = f"{POWERCAP}/{entry}"
        name = fs.optional(f"{zone}/name") or entry
        if not name.startswith("package"):
            why = "is not a CPU package; what it includes differs between machines"
            found.append(unusable("energy_j", f"rapl {name}", f"{zone}/energy_uj", why))
            continue
        registers.append(Register(f"{zone}/energy_uj", _range_uj(fs, zone)))
        names.append(name)
    if registers:
        found += candidates(fs, f"rapl {'+'.join(names)}", registers, RAIL, RANK)
    return found


def _range_uj(fs: Sysfs, zone: str) -> int | None:
    """Return where a zone's register wraps; ``None`` when it does not say so sensibly."""
    try:
        range_uj = fs.number(f"{zone}/max_energy_range_uj")
    except (OSError, ValueError):
        return None
    return range_uj if range_uj > 0 else None
