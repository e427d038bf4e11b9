"""`make test`: install what tests need where we may, run all of it, say what did not run.

The exit code is that of what did run; a step that could not run is named in the last line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_RUN_FILE = ROOT / "build" / "not-run.txt"

#: program we need -> Debian package that has it
PACKAGES = {
    "mosquitto": "mosquitto",
    "qemu-aarch64": "qemu-user",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "systemd-analyze": "systemd",
}

ARM, PYTHON = "kernels on emulated Arm", "python"

#: name -> command, and the programs without which it cannot run; in this order, but see `Arm`
STEPS: dict[str, tuple[list[str], list[str]]] = {
    "kernels, native": (["make", "kernel-check"], []),
    "kernels under sanitizers": (["make", "kernel-check-asan"], []),
    "kernels on an emulated old x86": (["make", "kernel-check-old"], ["qemu-x86_64"]),
    ARM: (
        ["make", "kernel-check-arm"],
        ["qemu-aarch64", "aarch64-linux-gnu-gcc"],
    ),
    PYTHON: ([sys.executable, "-m", "pytest", "-q", "--durations=10"], []),
}


def _path() -> str:
    # Debian keeps daemons in sbin, which is not on everybody's PATH.
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _have(tool: str) -> bool:
    return shutil.which(tool, path=_path()) is not None


def _missing() -> list[str]:
    return [package for tool, package in PACKAGES.items() if not _have(tool)]


def install_packages() -> None:
    """Install missing system packages if we are root or sudo asks no password."""
    packages = _missing()
    if not packages or not shutil.which("apt-get"):
        return
    sudo: list[str] = []
    if os.geteuid() != 0:
        probe = ["sudo", "-n", "true"]
        if not shutil.which("sudo") or subprocess.run(probe, capture_output=True).returncode:
            return
        sudo = ["sudo", "-n"]
    print(f"installing {' '.join(packages)}", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["update", "-qq"],
        ["install", "-y", "-qq", "--no-install-recommends", *packages],
    ):
        subprocess.run([*sudo, "apt-get", *command], env=environment, stdout=subprocess.DEVNULL)


class Arm:
    """The longest of the kernel steps needs one core: it runs beside the others."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.started_s = time.monotonic()
        self.log = (ROOT / "build" / "arm.log").open("w+")
        self.process = subprocess.Popen(
            STEPS[ARM][0], cwd=ROOT, env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )

    def wait(self) -> int:
        """Wait for its end and show what it said."""
        code = self.process.wait()
        self.log.seek(0)
        print(self.log.read(), end="", flush=True)
        self.log.close()
        return code


def main() -> int:
    """Run every step; return the worst exit code of those that ran."""
    install_packages()
    NOT_RUN_FILE.parent.mkdir(exist_ok=True)
    NOT_RUN_FILE.unlink(missing_ok=True)
    environment = os.environ | {"PATH": _path(), "NOT_RUN_FILE": str(NOT_RUN_FILE)}
    not_run = [name for name, (_, tools) in STEPS.items() if not all(map(_have, tools))]
    arm = None if ARM in not_run else Arm(environment)
    failed = []
    for name in (name for name in STEPS if name not in not_run):
        started_s = time.monotonic()
        print(f"== {name}", flush=True)
        if name == ARM and arm is not None:
            started_s, code = arm.started_s, arm.wait()
        else:
            code = subprocess.run(STEPS[name][0], cwd=ROOT, env=environment).returncode
        print(f"== {name}: exit {code}, {time.monotonic() - started_s:.0f} s", flush=True)
        if code:
            failed.append(name)
    if NOT_RUN_FILE.exists():
        not_run += NOT_RUN_FILE.read_text().splitlines()
    print(f"failed: {', '.join(failed) or 'nothing'}")
    missing = f" (missing packages: {', '.join(_missing())})" if _missing() else ""
    print(f"NOT RUN: {'; '.join(not_run)}{missing}" if not_run else "everything ran")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
