"""What an unfinished update must remember: ``<state_dir>/ota/update.json``.

Small, replaced as a whole.  A damaged journal is an empty one: the update starts over, the store is
not touched.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ota.errors import StorageError
from ota.machine import State
from ota.storage import Storage

MAX_JOURNAL_BYTES = 1 << 16
MAX_REFUSED = 16  # payloads of one release: a delta and a full image, and room for new ones


@dataclass(slots=True)
class Journal:
    """The state, and what belongs to it."""

    state: State = State.IDLE
    payload_sha256: str | None = None
    """The payload that is being fetched or was staged."""
    trials: int = 0
    """How often its slot was offered to the agent."""
    refused: list[str] = field(default_factory=list)
    """Payloads that could not be used here, by hash."""
    in_place: bool = False
    """Whether there was no room for a slot when the payload was chosen."""
    failed_as: str = ""
    """Code of the last failure, and how often in a row it came without any progress."""
    failures: int = 0
    root: str = ""
    """The model that is being installed."""
    cancelled: str = ""
    """The model whose installation somebody stopped: it begins again on request only."""
    written_bytes: int = 0
    """What earlier workers wrote for this update."""
    refused_at: int = 0
    """How often targets had been signed when payloads were struck out."""

    def forgive(self, n_targets: int) -> None:
        """Give struck out payloads another chance if targets have been signed since."""
        if n_targets != self.refused_at:
            self.refused.clear()
            self.refused_at = n_targets


def load_journal(path: Path) -> Journal:
    """Read the journal at ``path``; missing or damaged: an empty one.

    Raises:
        StorageError: the disk refuses to read it.
    """
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(MAX_JOURNAL_BYTES))
    except FileNotFoundError:
        return Journal()
    except OSError as err:
        raise StorageError(f"{path}: {err.strerror}; check the disk") from err
    except (ValueError, RecursionError):
        return Journal()
    return _parse(fields)


def save_journal(storage: Storage, path: Path, journal: Journal) -> None:
    """Replace the journal at ``path``."""
    fields = {
        "format": 1,
        "state": journal.state.value,
        "payload": journal.payload_sha256,
        "trials": journal.trials,
        "refused": journal.refused[-MAX_REFUSED:],
        "in_place": journal.in_place,
        "failed_as": journal.failed_as,
        "failures": journal.failures,
        "root": journal.root,
        "cancelled": journal.cancelled,
        "written_bytes": journal.written_bytes,
        "refused_at": journal.refused_at,
    }
    storage.replace(path, json.dumps(fields).encode())


def _parse(fields: Any) -> Journal:
    match fields:
        case {
            "state": str(state),
            "payload": str() | None as payload,
            "trials": int(trials),
            "refused": list(refused),
        } if state in {known.value for known in State}:
            return Journal(
                State(state),
                payload,
                trials,
                [str(item) for item in refused],
                fields.get("in_place") is True,
                _text(fields, "failed_as"),
                _count(fields, "failures"),
                _text(fields, "root"),
                _text(fields, "cancelled"),
                _count(fields, "written_bytes"),
                _count(fields, "refused_at"),
            )
    return Journal()


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    return value if isinstance(value, str) else ""


def _count(fields: dict[str, Any], key: str) -> int:
    value = fields.get(key)
    return value if type(value) is int and value >= 0 else 0
