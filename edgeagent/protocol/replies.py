"""Answers -> bytes: batches of tokens and the final message of a query; section 2 of the contract.

The final message stands alone: its ``text`` is the whole answer, so that a requester that lost
every batch (QoS 0) still has it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from edgeagent.errors import EdgeAgentError, QueryRefused
from edgeagent.protocol.messages import Address

BATCH_S = 0.08
"""A reader sees text as continuous at about 12 changes a second; a packet a token would cost more
CPU on a small board than the tokens themselves."""

BATCH_TOKENS = 32
"""Bounds a batch when tokens come very fast, so that one packet stays below 1 KiB."""


def encode(payload: dict[str, Any]) -> bytes:
    """Return ``payload`` as compact JSON."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


@dataclass(frozen=True, slots=True)
class Final:
    """What the end of a successful query reports, beside the text."""

    text: str
    finish_reason: str
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    energy: dict[str, Any] = field(default_factory=dict)
    thermal: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


def token_batch(address: Address, seq: int, text: str) -> bytes:
    """Encode one batch of tokens."""
    return encode(_head(address, seq) | {"text": text})


def final_answer(address: Address, seq: int, final: Final) -> bytes:
    """Encode the last message of an answered query."""
    return encode(
        _head(address, seq)
        | {
            "final": True,
            "status": "ok",
            "text": final.text,
            "finish_reason": final.finish_reason,
            "usage": final.usage,
            "timings": final.timings,
            "energy": final.energy,
            "thermal": final.thermal,
            "skipped": final.skipped,
            "model": final.model,
        }
    )


def final_error(address: Address, seq: int, error: EdgeAgentError) -> bytes:
    """Encode the last message of a query that was refused or failed."""
    detail: dict[str, Any] = {"code": error.code, "message": str(error)}
    if isinstance(error, QueryRefused) and error.retry_after_s is not None:
        detail["retry_after_s"] = round(error.retry_after_s, 1)
    return encode(_head(address, seq) | {"final": True, "status": "error", "error": detail})


def _head(address: Address, seq: int) -> dict[str, Any]:
    head: dict[str, Any] = {"id": address.query_id, "seq": seq}
    if address.transaction is not None:
        head["transaction"] = address.transaction
    return head


class TokenBatch:
    """Collects tokens until a batch is due; the first token goes out at once.

    >>> batch = TokenBatch()
    >>> batch.add("Hel", now_s=0.0), batch.add("lo", now_s=0.01), batch.add("!", now_s=0.09)
    ('Hel', None, 'lo!')
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._sent_s: float | None = None

    def add(self, text: str, now_s: float) -> str | None:
        """Take a token; return the text of a batch when one is due."""
        self._texts.append(text)
        is_due = self._sent_s is None or now_s - self._sent_s >= BATCH_S
        return self.flush(now_s) if is_due or len(self._texts) >= BATCH_TOKENS else None

    def flush(self, now_s: float) -> str | None:
        """Return what was collected, if anything."""
        text = "".join(self._texts)
        self._texts.clear()
        if not text:
            return None
        self._sent_s = now_s
        return text

    def wait_s(self, now_s: float) -> float | None:
        """Return how long to wait for a further token before flushing; None when empty."""
        if not self._texts or self._sent_s is None:
            return None
        return max(0.0, self._sent_s + BATCH_S - now_s)
