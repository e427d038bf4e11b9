"""What a result must say of its machine, and the page cache and memory of this one."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgeagent import __version__, _core


def cpu_name() -> str:
    """Return the processor's name as the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def commit() -> str | None:
    """Return the source's commit, or None where it is not a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def describe() -> dict[str, Any]:
    """Return the facts that belong to every result."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "commit": commit(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "variants": _core.supported_variants(),
        "compiler": f"{sysconfig.get_config_var('CC')}; {platform.python_compiler()}",
        "python": platform.python_version(),
    }


def status_mb(field: str, pid: int | str = "self") -> float | None:
    """Return a memory field of /proc/<pid>/status (VmHWM is the peak of RSS), in 10^6 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return None


def drop_page_cache(paths: Iterable[Path]) -> None:
    """Have the kernel forget these files' pages.

    Pages that a process has mapped stay: look at `resident_fraction` afterwards.
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages stay too
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident_fraction(paths: Iterable[Path]) -> float | None:
    """Return the part of these files that is in the page cache, or None where it is not known."""
    try:
        done = subprocess.run(
            ["fincore", "--bytes", "--noheadings", "--output", "RES,SIZE", *map(str, paths)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    rows = [[int(cell) for cell in line.split()] for line in done.stdout.splitlines()]
    total = sum(size for _, size in rows)
    return sum(resident for resident, _ in rows) / total if total else None
