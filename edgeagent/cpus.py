"""CPU lists as the Linux kernel writes them (`isolcpus`, cgroups' `cpuset.cpus`): "0-3,6"."""

from __future__ import annotations

from edgeagent.errors import ConfigError

#: Linux has at most 8192 CPUs on any architecture (NR_CPUS); a range must not fill memory.
MAX_CPU = 8191


def parse_cpus(text: str) -> frozenset[int]:
    """Return the CPUs of a list; none for an empty text.

    Raises:
        ConfigError: not a list of numbers and ranges.
    """
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        numbers = (first, last) if dash else (first, first)
        if not all(n.isascii() and n.isdigit() and int(n) <= MAX_CPU for n in numbers):
            raise ConfigError(f"cpus: expected a list as 0-3,6, got {text!r}")
        begin, end = int(numbers[0]), int(numbers[1])
        if begin > end:
            raise ConfigError(f"cpus: {part}: expected the smaller number first")
        cpus.update(range(begin, end + 1))
    return frozenset(cpus)
