"""What machine this is: model, processor, memory, kernel; what a person asks first about a node.

Everything is read below a root, so that tests play boards.  What cannot be read is empty or
``None``.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

# Those that decide which kernel variant runs, under the names that /proc/cpuinfo uses.
FEATURES = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "asimd",  # NEON
    "asimddp",  # the dot product
    "i8mm",
    "sve",
)

# Longer than /proc/cpuinfo of a board with many cores needs for its first ones.
MAX_BYTES = 64 << 10

_PLACEHOLDERS = {"", "none", "to be filled by o.e.m.", "default string", "system product name"}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of memory; the limit is the one of this process's control group."""

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine, as far as it says what it is."""

    model: str
    architecture: str
    processor: str
    cores: int | None
    memory: Memory
    kernel: str
    system: str  # the distribution
    features: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON: the ``board`` of the ``info`` message."""
        return {
            "model": self.model,
            "architecture": self.architecture,
            "processor": self.processor,
            "cores": self.cores,
            "memory_bytes": self.memory.total_bytes,
            "kernel": self.kernel,
            "system": self.system,
            "features": list(self.features),
        }


def machine(sysroot: Path = Path("/")) -> Machine:
    """Return what is below ``sysroot``; the architecture is this process's own."""
    cpuinfo = _read(sysroot, "proc/cpuinfo")
    return Machine(
        model=_model(sysroot),
        architecture=platform.machine(),
        processor=_field(cpuinfo, "model name") or "",
        cores=_cores(_read(sysroot, "sys/devices/system/cpu/online")),
        memory=memory(sysroot),
        kernel=_read(sysroot, "proc/sys/kernel/osrelease"),
        system=_os_name(_read(sysroot, "etc/os-release")),
        features=_features(cpuinfo),
    )


def memory(sysroot: Path = Path("/")) -> Memory:
    """Return how much memory there is and how much of it this process may use."""
    text = _read(sysroot, "proc/meminfo")
    return Memory(_kib(text, "MemTotal"), _kib(text, "MemAvailable"), _limit(sysroot))


def has_memory_controller(sysroot: Path = Path("/")) -> bool | None:
    """Return whether memory limits of services work; ``None`` when there are no control groups."""
    unified = _read(sysroot, "sys/fs/cgroup/cgroup.controllers")
    if unified:
        return "memory" in unified.split()
    groups = _read(sysroot, "proc/cgroups")  # version 1: name, hierarchy, number, enabled
    for line in groups.splitlines():
        if line.startswith("memory"):
            return line.split()[-1] == "1"
    return False if groups else None


def _read(sysroot: Path, path: str) -> str:
    try:
        with (sysroot / path).open("rb") as file:
            return file.read(MAX_BYTES).decode("utf-8", "replace").strip("\0 \n")
    except OSError:
        return ""


def _model(sysroot: Path) -> str:
    """Return the board's name from the device tree, else the computer's from its firmware."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if name := _read(sysroot, path):
            return name
    dmi = "sys/class/dmi/id"
    vendor, product, version = (
        _read(sysroot, f"{dmi}/{name}")
        for name in ("sys_vendor", "product_name", "product_version")
    )
    # Lenovo puts a type number into the name and the name that people know into the version.
    parts = [vendor, version if vendor == "LENOVO" and version else product]
    return " ".join(part for part in parts if part.lower() not in _PLACEHOLDERS)


def _cores(online: str) -> int | None:
    """Return how many CPUs a list like ``0-3,6`` names."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", online):
        return None
    count = 0
    for part in online.split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def _field(text: str, name: str) -> str | None:
    match = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def _kib(meminfo: str, name: str) -> int | None:
    value = _field(meminfo, name)
    return int(value.split()[0]) * 1024 if value and value.split()[0].isdigit() else None


def _features(cpuinfo: str) -> tuple[str, ...]:
    """Return which of ``FEATURES`` the first CPU has; x86 says ``flags``, Arm says ``Features``."""
    words = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    return tuple(name for name in FEATURES if name in words)


def _os_name(os_release: str) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', os_release, re.MULTILINE)
    return match[1] if match else ""


def _limit(sysroot: Path) -> int | None:
    """Return the tightest ``memory.max`` from this process's control group upwards (version 2)."""
    match = re.search(r"^0::(/.*)$", _read(sysroot, "proc/self/cgroup"), re.MULTILINE)
    if not match:
        return None
    limits = []
    group = match[1].strip("/")
    while group:
        text = _read(sysroot, f"sys/fs/cgroup/{group}/memory.max")
        if text.isdigit():
            limits.append(int(text))
        group = group.rpartition("/")[0]
    return min(limits, default=None)
