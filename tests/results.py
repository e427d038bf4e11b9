"""What a long run leaves: one JSON file with the day and the commit that it ran on."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def commit() -> str:
    """Return the commit of this tree, short; "unknown" outside of one."""
    command = ["git", "rev-parse", "--short=10", "HEAD"]
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return found.stdout.strip() or "unknown"


def leave(result: dict[str, Any], out: Path | None) -> None:
    """Write a result to ``out``, if there is one."""
    if out is None:
        return
    head = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
    }
    out.write_text(json.dumps(head | result, indent=1) + "\n")
