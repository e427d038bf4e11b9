"""The other requests: to stop a query, and to look for a model."""

from __future__ import annotations

from dataclasses import dataclass

from edgeagent.errors import ProtocolError
from edgeagent.protocol.messages import (
    Incoming,
    expected,
    read_id,
    read_object,
    read_transaction,
    short,
)

UPDATE_ACTIONS = ("check", "install", "cancel", "rollback", "status", "history", "report")
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


def parse_update_request(incoming: Incoming) -> tuple[str, str | None]:
    """Return action and transaction of a request for an update.

    Raises:
        ProtocolError: It is not ``{"action": "check" | "install" | "cancel" | ..., ...}``.
    """
    body = read_object(incoming.payload)
    unknown = sorted(set(body) - {"action", "transaction"})
    if unknown:
        raise ProtocolError(f"unknown field {short(unknown[0])}; known are action, transaction")
    if body.get("action") not in UPDATE_ACTIONS:
        raise expected("action", f"one of {', '.join(UPDATE_ACTIONS)}", body.get("action"))
    return body["action"], read_transaction(body)
