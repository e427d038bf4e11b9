"""The other requests: to stop a query, and to look for a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeagent.errors import ProtocolError
from edgeagent.protocol.messages import (
    Incoming,
    expected,
    read_id,
    read_object,
    read_transaction,
    short,
)

FORGIVE = "forgive"
UPDATE_ACTIONS = (
    "check",
    "install",
    "cancel",
    "rollback",
    "status",
    "history",
    "report",
    FORGIVE,
)
MAX_MODEL_CHARS = 64
"""Of what names a model in quarantine: a root, or a version."""
UPDATE_QUESTIONS = frozenset({"status", "history", "report"})
"""Those that change nothing."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """A request to stop a query, named by id or by Correlation Data."""

    query_id: str | None
    correlation: bytes | None
    response_topic: str | None


def parse_cancel(incoming: Incoming) -> Cancel:
    """Read a request to stop a query.

    Raises:
        ProtocolError: It names no query.
    """
    query_id = None
    if incoming.payload.strip():
        body = read_object(incoming.payload)
        if set(body) != {"id"}:
            raise ProtocolError('a cancellation is {"id"} or Correlation Data, nothing else')
        query_id = read_id(body["id"])
    if query_id is None and incoming.correlation is None:
        raise ProtocolError("a cancellation needs Correlation Data or an id")
    return Cancel(query_id, incoming.correlation, incoming.response_topic)


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """A request for an update; ``model`` says what ``forgive`` means."""

    action: str
    transaction: str | None = None
    model: str = ""


def parse_update_request(incoming: Incoming) -> UpdateRequest:
    """Read a request for an update.

    Raises:
        ProtocolError: It is not ``{"action": "check" | "install" | "cancel" | ..., ...}``.
    """
    body = read_object(incoming.payload)
    action = body.get("action")
    if action not in UPDATE_ACTIONS:
        raise expected("action", f"one of {', '.join(UPDATE_ACTIONS)}", action)
    known = ("action", "model", "transaction") if action == FORGIVE else ("action", "transaction")
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise ProtocolError(f"unknown field {short(unknown[0])}; known are {', '.join(known)}")
    model = read_model(body.get("model")) if action == FORGIVE else ""
    return UpdateRequest(action, read_transaction(body), model)


def read_model(value: Any) -> str:
    """Return what names a model in quarantine.

    Raises:
        ProtocolError: It is no short text.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_MODEL_CHARS:
        raise expected("model", "all, or a version or root that is in quarantine", value)
    return value
