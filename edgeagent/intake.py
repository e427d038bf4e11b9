"""Requests come in, final answers go out, and only then a request is acknowledged.

`Intake` stands between the broker and the queue: it reads what arrives, refuses in words, admits,
and remembers; `Intake.finish` publishes a final answer and, once the broker has it, acknowledges
the request.  A crash anywhere before that leaves the request with the broker.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Callable
from typing import Protocol

from edgeagent.errors import AdapterError, EdgeAgentError, ProtocolError, QueryRefused
from edgeagent.protocol.commands import parse_cancel
from edgeagent.protocol.inbox import Arrival, Inbox, State, Ticket, key_of
from edgeagent.protocol.messages import (
    Bounds,
    Incoming,
    parse_body,
    parse_query,
    reply_address,
)
from edgeagent.protocol.replies import final_error
from edgeagent.protocol.topics import Topics

log = logging.getLogger(__name__)


class Publisher(Protocol):
    """The part of `edgeagent.adapters.mqtt.Mqtt` that answers need."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, correlation: bytes | None = None
    ) -> asyncio.Future[None]:
        """Publish; the future is done when the broker has confirmed a message at QoS 1."""

    def acknowledge(self, delivery: object) -> None:
        """Acknowledge a delivery."""


class Intake:
    """The way in and out of the queue."""

    def __init__(
        self,
        publisher: Publisher,
        topics: Topics,
        reply_prefixes: tuple[str, ...],
        bounds: Bounds,
        inbox: Inbox,
    ) -> None:
        self.inbox = inbox
        self.refusals: dict[str, int] = {}  # error code -> how many
        self.on_admitted: Callable[[], None] = lambda: None
        self.on_cancel_running: Callable[[Ticket], None] = lambda _: None
        self._publisher = publisher
        self._topics = topics
        self._reply_prefixes = reply_prefixes
        self._bounds = bounds

    def on_request(self, incoming: Incoming) -> None:
        """Take in a message of ``query/request``."""
        if incoming.is_retained:
            log.warning("query.retained_ignored bytes=%d", incoming.size)
            self._acknowledge(incoming.delivery)
            return
        problem: ProtocolError | None = None
        try:
            body = parse_body(incoming, self._bounds)
        except ProtocolError as err:
            body, problem = {}, err
        address, address_problem = reply_address(
            incoming, body, self._topics, self._reply_prefixes, _new_id
        )
        key = key_of(address, hashlib.sha256(incoming.payload).digest())
        now_s = time.monotonic()
        arrival = self.inbox.recognise(
            key, incoming.delivery, now_s, redelivered=incoming.is_redelivered
        )
        if arrival is not Arrival.NEW:
            log.info("query.duplicate id=%s known=%s", address.query_id, arrival.name.lower())
            if arrival is Arrival.ANSWERED:
                self._acknowledge(incoming.delivery)
            return
        ticket = self.inbox.open(key, address, incoming.delivery, now_s)
        error = problem or address_problem
        try:
            if error is not None:
                raise error
            query = parse_query(incoming, body, address, self._bounds)
            self.inbox.admit(ticket, query, now_s)
        except ProtocolError as err:
            self.refuse(ticket, err)
        else:
            self.on_admitted()

    def on_cancel(self, incoming: Incoming) -> None:
        """Take in a message of ``query/cancel``."""
        self._acknowledge(incoming.delivery)
        if incoming.is_retained:
            return
        try:
            cancel = parse_cancel(incoming)
        except ProtocolError as err:
            log.warning("query.cancel_refused reason=%r", str(err))
            return
        ticket = self.inbox.cancel(cancel, time.monotonic())
        if ticket is None:
            return
        if ticket.state is State.RUNNING:
            self.on_cancel_running(ticket)
        else:
            self.refuse(ticket, QueryRefused("cancelled in the queue", code="cancelled"))

    def expire(self) -> None:
        """Answer the queries that waited too long."""
        for ticket in self.inbox.expired(time.monotonic()):
            waited_s = time.monotonic() - ticket.arrived_s
            self.refuse(
                ticket,
                QueryRefused(f"expired in the queue after {waited_s:.1f} s", code="expired"),
            )

    def refuse(self, ticket: Ticket, error: EdgeAgentError) -> None:
        """Answer with an error what was not run."""
        self.refusals[error.code] = self.refusals.get(error.code, 0) + 1
        log.info("query.refused id=%s code=%s", ticket.address.query_id, error.code)
        self.finish(ticket, final_error(ticket.address, 0, error), is_refused=True)

    def finish(self, ticket: Ticket, payload: bytes, *, is_refused: bool = False) -> None:
        """Publish a final answer; when the broker has it, acknowledge the request."""
        self.inbox.close(ticket, time.monotonic(), is_refused=is_refused)
        self._publish_final(ticket, payload, may_shorten=True)

    def connection_lost(self) -> None:
        """Forget deliveries of the connection that ended."""
        self.inbox.connection_lost()

    def _publish_final(self, ticket: Ticket, payload: bytes, *, may_shorten: bool) -> None:
        address = ticket.address
        future = self._publisher.publish(
            address.topic, payload, qos=1, correlation=address.correlation
        )
        future.add_done_callback(lambda done: self._published(ticket, done, may_shorten))

    def _published(self, ticket: Ticket, done: asyncio.Future[None], may_shorten: bool) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if isinstance(error, AdapterError):
            log.warning("query.not_delivered id=%s reason=%r", ticket.address.query_id, str(error))
            if may_shorten:
                problem = AdapterError(f"the answer {error}")
                problem.code = "internal"
                payload = final_error(ticket.address, 0, problem)
                self._publish_final(ticket, payload, may_shorten=False)
                return
        for delivery in self.inbox.confirm(ticket, time.monotonic()):
            self._acknowledge(delivery)

    def _acknowledge(self, delivery: object) -> None:
        if delivery is not None:
            self._publisher.acknowledge(delivery)


def _new_id() -> str:
    return uuid.uuid4().hex[:16]
