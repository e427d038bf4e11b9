"""What all tests share: absent tools are reported, never silently passed over."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def find_tool(name: str) -> str | None:
    """Find a program on PATH or where Debian keeps daemons."""
    return shutil.which(name, path=_PATH)


@pytest.fixture
def tool(request: pytest.FixtureRequest):
    """Return a function that finds a program, or skips the test and gets it reported as NOT RUN."""

    def need(name: str) -> str:
        path = find_tool(name)
        if path is None:
            pytest.skip(f"{name} is not installed")
        return path

    return need


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Collect what was skipped for `tests/everything.py`, which says so in its last line."""
    skipped: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        skipped[reason] = skipped.get(reason, 0) + 1
    lines = [f"{count} tests: {reason}" for reason, count in sorted(skipped.items())]
    out = os.environ.get("NOT_RUN_FILE")
    if out and lines:
        with Path(out).open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


@pytest.fixture(scope="session")
def mosquitto() -> str:
    """Return the Mosquitto binary, or skip and get it reported."""
    path = find_tool("mosquitto")
    if path is None:
        pytest.skip("mosquitto is not installed")
    return path
