"""State that the node publishes about itself -> bytes; section 1 of the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeagent.protocol.replies import encode

ONLINE = encode({"state": "online"})
OFFLINE = encode({"state": "offline"})


@dataclass(slots=True)
class EventLog:
    """Numbers events, so that a gap tells the reader that one was lost."""

    seq: int = 0

    def encode(self, kind: str, data: dict[str, Any], time_s: float) -> bytes:
        """Return the next event; ``time_s`` is Unix time."""
        event = {"type": kind, "data": data, "seq": self.seq, "time_s": round(time_s, 3)}
        self.seq += 1
        return encode(event)


@dataclass(slots=True)
class ModelState:
    """The model as Home Assistant's MQTT update entity wants it, plus ``phase``.

    ``phase`` is the updater's state (``idle``, ``fetching``, ``staged``, ``trial``, ...).
    """

    title: str
    installed_version: str
    latest_version: str
    release_summary: str = ""
    phase: str = "idle"
    progress: float | None = None  # 0 to 1 while something is fetched
    code: str = ""  # why, if the phase is ``failed``
    gated: dict[str, Any] | None = None  # what holds a stage back, if the phase is ``gated``

    @property
    def is_in_progress(self) -> bool:
        """Whether an update is under way."""
        return self.phase not in {"idle", "failed", "gated", "rolled_back"}

    def encode(self) -> bytes:
        """Return the retained payload."""
        percentage = None if self.progress is None else round(100 * self.progress)
        return encode(
            {
                "installed_version": self.installed_version,
                "latest_version": self.latest_version,
                "title": self.title,
                "release_summary": self.release_summary[:255],  # the entity's own limit
                "in_progress": self.is_in_progress,
                "update_percentage": percentage if self.is_in_progress else None,
                "phase": self.phase,
                "code": self.code,
                "gated": self.gated,
            }
        )


def update_response(data: dict[str, Any], transaction: str | None) -> bytes:
    """Encode the acceptance of a request for an update."""
    return encode(_transact({"status": "ok", "data": data}, transaction))


def update_refusal(message: str, transaction: str | None) -> bytes:
    """Encode the refusal of a request for an update."""
    return encode(_transact({"status": "error", "data": {}, "error": message}, transaction))


def _transact(payload: dict[str, Any], transaction: str | None) -> dict[str, Any]:
    return payload if transaction is None else payload | {"transaction": transaction}
