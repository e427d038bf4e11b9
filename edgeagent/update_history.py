"""What became of updates, kept over restarts: ``<state_dir>/ota/history.jsonl``.

One line an end, the newest last.  A line that a power cut tore is passed over; a disk that takes
none costs the line, not the update.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

KINDS = frozenset(
    {"update_committed", "rolled_back", "update_failed", "update_gated", "update_forgiven"}
)
MAX_ENTRIES = 200
"""Years of releases, and 60 KB."""

MAX_TEXT = 300
REPEAT_S = 86_400.0
"""A failure that repeats is written once a day: the card shall outlive an uplink that does not."""

_SAME = ("type", "code", "reason", "version", "stage")


class History:
    """The list."""

    def __init__(self, state_dir: Path) -> None:
        self._path = Path(state_dir) / "ota" / "history.jsonl"
        self._last: dict[str, Any] | None = None

    def add(self, kind: str, data: dict[str, Any], now_s: float) -> bool:
        """Add an end of an update, if ``kind`` is one and says something new; say whether."""
        if kind not in KINDS:
            return False
        short = {
            key: value[:MAX_TEXT] if isinstance(value, str) else value
            for key, value in data.items()
        }
        entry = {"id": secrets.token_hex(8), "time_s": round(now_s), "type": kind, **short}
        if self._is_repeated(entry):
            return False
        try:
            self._write(entry)
        except OSError as err:
            log.warning("history.not_kept reason=%r", err.strerror or str(err))
        self._last = entry
        return True

    def _is_repeated(self, entry: dict[str, Any]) -> bool:
        last = self._last
        if last is None or entry["type"] == "update_committed":
            return False
        is_recent = 0 <= entry["time_s"] - last["time_s"] < REPEAT_S
        return is_recent and all(entry.get(key) == last.get(key) for key in _SAME)

    def entries(self, limit: int = MAX_ENTRIES) -> list[dict[str, Any]]:
        """Return the newest entries, the oldest of them first."""
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return []
        found = []
        for line in lines[-2 * MAX_ENTRIES :]:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and "type" in entry:
                found.append(entry)
        return found[-limit:] if limit > 0 else []

    def _write(self, entry: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = b"" if file.read(1) in {b"", b"\n"} else b"\n"
            file.write(torn + _line(entry))
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            is_long = file.read().count(b"\n") > 2 * MAX_ENTRIES
        if is_long:
            self._shorten()

    def _shorten(self) -> None:
        beside = self._path.with_name(f".{self._path.name}.new")
        with beside.open("wb") as file:
            file.write(b"".join(map(_line, self.entries())))
            file.flush()
            os.fsync(file.fileno())
        beside.rename(self._path)


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
