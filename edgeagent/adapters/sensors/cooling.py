"""Is the processor being slowed down?  The kernel's cooling devices say so, and for how long.

A cpufreq cooling device in any state but 0 caps the clock; with thermal statistics in the kernel,
``time_in_state_ms`` gives the exact time.  On a Raspberry Pi it is the firmware that throttles.
"""

from __future__ import annotations

import re

from edgeagent.adapters.sensors.candidate import Candidate
from edgeagent.adapters.sensors.sysfs import Sysfs, parse_number
from edgeagent.power.samples import MEASURED

DEVICES = "/sys/class/thermal"
RANK = 1  # the firmware's own word, where there is one, ranks before

_CPU_COOLERS = re.compile(r"(thermal-)?cpufreq-|Processor$")


def probe(fs: Sysfs) -> list[Candidate]:
    """Return one candidate over all CPU cooling devices, and one for the time if it is counted."""
    devices = [
        f"{DEVICES}/{entry}"
        for entry in fs.entries(DEVICES)
        if entry.startswith("cooling_device")
        and _CPU_COOLERS.match(fs.optional(f"{DEVICES}/{entry}/type") or "")
    ]
    if not devices:
        return []
    states = tuple(f"{device}/cur_state" for device in devices)
    times = tuple(f"{device}/stats/time_in_state_ms" for device in devices)

    def throttled(_now_s: float) -> bool:
        return any(fs.number(path) > 0 for path in states)

    def throttled_s(_now_s: float) -> float:
        return max(slowed_ms(fs.text(path)) for path in times) / 1000

    name = "thermal cpufreq cooling"
    found = [Candidate("throttled", name, states[0], MEASURED, RANK, throttled, states)]
    if all(fs.exists(path) for path in times):
        found.append(Candidate("throttled_s", name, times[0], MEASURED, RANK, throttled_s, times))
    return found


def slowed_ms(table: str) -> int:
    """Return the milliseconds in all states but 0, of lines like ``state3<TAB>1200``."""
    total_ms = 0
    for line in table.splitlines():
        state, _, time_ms = line.partition("\t")
        if state.strip() != "state0":
            total_ms += parse_number(time_ms)
    return total_ms
