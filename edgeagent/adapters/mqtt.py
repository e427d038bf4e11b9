"""The connection to the broker, always being kept up; the asyncio side of `mqtt_client`.

Laws:

- A delivery is acknowledged by `Mqtt.acknowledge` only, when its final answer is with the broker.
  It belongs to one connection; acknowledging it on another would hit a foreign message.
- What is retained is remembered, and published again on every connection.
- QoS 1 waits through an outage; QoS 0 is dropped and counted.
- Nothing is published before SUBACK: "online" means that requests are heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edgeagent.adapters.mqtt_client import (
    Accepted,
    Broker,
    Confirmed,
    Ended,
    Happening,
    MqttClient,
    Opened,
    Refused,
    Subscribed,
)
from edgeagent.errors import AdapterError
from edgeagent.protocol.messages import Incoming
from edgeagent.protocol.reconnect import Backoff, VersionChoice

log = logging.getLogger(__name__)

WINDOW_MARGIN = 8
"""Receive Maximum beyond the queue's length: refusals must get through while the queue is full."""

MAX_WAITING = 1024
"""Messages kept through an outage: every answer of the longest queue, and a few events."""

CONNACK_TIMEOUT_S = 5.0
"""From the open connection to CONNACK: two round trips of the slowest link, one repeated."""

GOODBYE_S = 2.0


@dataclass(slots=True)
class Counters:
    """What happened on the connection since the agent started."""

    connects: int = 0
    received: int = 0
    redelivered: int = 0
    acknowledged: int = 0
    published: int = 0
    confirmed: int = 0
    refused: int = 0  # PUBACK with a reason code that says no
    dropped: int = 0  # QoS 0 while offline


@dataclass(slots=True)
class Handlers:
    """What the owner wants to hear, on the event loop."""

    on_message: Callable[[Incoming], None]
    on_connected: Callable[[], None] = lambda: None
    on_lost: Callable[[], None] = lambda: None
    on_progress: Callable[[], None] = lambda: None


@dataclass(slots=True, eq=False)
class _Outgoing:
    topic: str
    payload: bytes
    retain: bool
    correlation: bytes | None
    done: asyncio.Future[None]

    def fail(self, message: str) -> None:
        self.done.set_exception(AdapterError(message))
        self.done.exception()  # the owner may not look


@dataclass(slots=True)
class _Attempt:
    """One connection and what became of it."""

    epoch: int
    ended: asyncio.Future[str]
    opened_s: float | None = None
    has_connack: bool = False
    is_version_refused: bool = False
    is_unanswered: bool = False
    up_since_s: float | None = None


class Mqtt:
    """The connection."""

    def __init__(self, broker: Broker, handlers: Handlers) -> None:
        self.counters = Counters()
        self.tried = asyncio.Event()  # a first attempt has succeeded or failed
        self._broker = broker
        self._handlers = handlers
        self._choice = VersionChoice(broker.protocol)
        self._backoff = Backoff()
        self._client: MqttClient | None = None
        self._attempt: _Attempt | None = None
        self._epoch = 0
        self._is_up = False
        self._is_closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retained: dict[str, bytes] = {}
        self._waiting: deque[_Outgoing] = deque()
        self._sent: dict[int, _Outgoing] = {}
        self._max_packet_bytes: int | None = None

    @property
    def is_connected(self) -> bool:
        """Whether requests are heard now."""
        return self._is_up

    @property
    def version(self) -> str:
        """The MQTT version in use."""
        return self._choice.version if self._client is None else self._client.version

    # -- for the owner --------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the connection up until `close` or cancellation."""
        self._loop = asyncio.get_running_loop()
        try:
            while not self._is_closing:
                await self._live_once()
        finally:
            self._is_closing, self._is_up = True, False
            if self._client is not None:
                self._client.disconnect()

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, correlation: bytes | None = None
    ) -> asyncio.Future[None]:
        """Publish a message that is not retained.

        Returns:
            A future: done at once for QoS 0; for QoS 1 when the broker has confirmed it.  It fails
            with `AdapterError` when the broker refuses the message.
        """
        outgoing = self._outgoing(topic, payload, correlation=correlation)
        if qos > 0:
            self._send_or_wait(outgoing)
            return outgoing.done
        if self._is_up and self._client is not None:
            self._client.publish(topic, payload, 0, False, correlation)
            self.counters.published += 1
        else:
            self.counters.dropped += 1
        outgoing.done.set_result(None)
        return outgoing.done

    def publish_retained(self, topic: str, payload: bytes) -> asyncio.Future[None] | None:
        """Publish state; it is published again on every connection.

        Returns:
            As `publish`; None while there is no connection.
        """
        self._retained[topic] = payload
        if not self._is_up:
            return None
        outgoing = self._outgoing(topic, payload, retain=True)
        self._send(outgoing)
        return outgoing.done

    def acknowledge(self, delivery: object) -> None:
        """Acknowledge a delivery; one of an earlier connection is ignored."""
        if isinstance(delivery, tuple) and self._client is not None and self._attempt is not None:
            epoch, mid = delivery
            if epoch == self._attempt.epoch:
                self._client.acknowledge(mid)
                self.counters.acknowledged += 1

    async def close(self, topic: str, payload: bytes) -> None:
        """Publish a last state, retained, and leave without the will."""
        self._is_closing = True
        attempt = self._attempt
        if self._client is None or attempt is None or not self._is_up:
            return
        last = self._outgoing(topic, payload, retain=True)
        self._send(last)
        with contextlib.suppress(TimeoutError, AdapterError):
            async with asyncio.timeout(GOODBYE_S):
                await last.done
        self._client.disconnect()
        await asyncio.wait([attempt.ended], timeout=GOODBYE_S)

    # -- one connection -------------------------------------------------------------------------

    async def _live_once(self) -> None:
        """Connect, stay as long as it lasts, and wait before the next attempt."""
        self._epoch += 1
        attempt = _Attempt(self._epoch, asyncio.get_running_loop().create_future())
        client = self._client_of_version()
        self._attempt = attempt
        client.start(attempt.epoch)
        while not attempt.ended.done():
            await asyncio.wait([attempt.ended], timeout=self._broker.turn_s)
            if not attempt.has_connack:
                self._handlers.on_progress()
                self._give_up_if_unanswered(attempt, client)
        self._attempt, self._is_up = None, False
        if attempt.has_connack:
            self._handlers.on_lost()
        if self._is_closing or self._choose_version(attempt):
            return
        self.tried.set()
        up_s = 0.0 if attempt.up_since_s is None else time.monotonic() - attempt.up_since_s
        delay_s = self._backoff.next_s(up_s, random.random())
        log.warning("mqtt.lost reason=%r retry_s=%.1f", attempt.ended.result(), delay_s)
        await self._pause(delay_s)

    def _give_up_if_unanswered(self, attempt: _Attempt, client: MqttClient) -> None:
        opened_s = attempt.opened_s
        if opened_s is not None and time.monotonic() - opened_s > CONNACK_TIMEOUT_S:
            attempt.is_unanswered = True
            client.disconnect()

    def _choose_version(self, attempt: _Attempt) -> bool:
        """Return whether to connect again at once, with another version."""
        is_other = False
        if attempt.is_version_refused:
            is_other = self._choice.refused()
        elif attempt.is_unanswered:
            is_other = self._choice.unanswered()
        elif attempt.opened_s is not None and not attempt.has_connack:
            self._choice.closed_silently()
        if is_other:
            log.info("mqtt.fallback version=%s", self._choice.version)
        return is_other

    async def _pause(self, delay_s: float) -> None:
        end_s = time.monotonic() + delay_s
        while not self._is_closing and (left_s := end_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, self._broker.turn_s))
            self._handlers.on_progress()

    def _client_of_version(self) -> MqttClient:
        """Return the client, made anew when the version changed."""
        if self._client is None or self._client.version != self._choice.version:
            self._waiting.extendleft(reversed(self._sent.values()))
            self._sent.clear()
            self._client = MqttClient(self._broker, self._choice.version, self._tell)
        return self._client

    # -- what happens ---------------------------------------------------------------------------

    def _tell(self, epoch: int, happening: Happening) -> None:
        """Bring a happening from the client's thread to the event loop."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens
                self._loop.call_soon_threadsafe(self._handle, epoch, happening)

    def _handle(self, epoch: int, happening: Happening) -> None:
        attempt = self._attempt
        if attempt is None or attempt.epoch != epoch:
            return
        match happening:
            case Incoming():
                self.counters.received += 1
                self.counters.redelivered += happening.is_redelivered
                self._handlers.on_message(happening)
            case Confirmed():
                self._confirmed(happening)
            case Opened():
                attempt.opened_s = time.monotonic()
            case Accepted():
                self._accepted(attempt, happening)
            case Refused():
                attempt.has_connack, attempt.is_version_refused = True, happening.is_version
                log.warning("mqtt.refused reason=%r", happening.reason)
            case Subscribed():
                self._subscribed(attempt, happening)
            case Ended():
                attempt.ended.set_result(happening.reason)
            case _:
                self._handlers.on_progress()

    def _accepted(self, attempt: _Attempt, happening: Accepted) -> None:
        attempt.has_connack = True
        self._choice.connected()
        self.counters.connects += 1
        self._max_packet_bytes = happening.max_packet_bytes
        log.info("mqtt.connected version=%s session=%d", self.version, happening.session_present)

    def _subscribed(self, attempt: _Attempt, happening: Subscribed) -> None:
        for topic, reason in happening.failures:
            log.error("mqtt.not_subscribed topic=%s reason=%r", topic, reason)
        self._is_up = True
        attempt.up_since_s = time.monotonic()
        for topic, payload in self._retained.items():
            self._send(self._outgoing(topic, payload, retain=True))
        while self._waiting:
            self._send(self._waiting.popleft())
        self.tried.set()
        self._handlers.on_connected()

    def _confirmed(self, happening: Confirmed) -> None:
        outgoing = self._sent.pop(happening.mid, None)
        if outgoing is None or outgoing.done.done():
            return
        if happening.error is None:
            self.counters.confirmed += 1
            outgoing.done.set_result(None)
            return
        self.counters.refused += 1
        log.warning("mqtt.publish_refused topic=%s reason=%r", outgoing.topic, happening.error)
        outgoing.fail(f"the broker refuses it: {happening.error}")

    # -- sending --------------------------------------------------------------------------------

    def _outgoing(
        self, topic: str, payload: bytes, *, retain: bool = False, correlation: bytes | None = None
    ) -> _Outgoing:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        return _Outgoing(topic, payload, retain, correlation, done)

    def _send_or_wait(self, outgoing: _Outgoing) -> None:
        if self._is_up:
            self._send(outgoing)
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append(outgoing)
        else:
            outgoing.fail(f"{MAX_WAITING} messages wait for the broker already")

    def _send(self, outgoing: _Outgoing) -> None:
        if self._client is None or outgoing.done.done():
            return
        # 64: fixed header, lengths and packet identifier, generously.
        size = len(outgoing.payload) + len(outgoing.topic) + len(outgoing.correlation or b"") + 64
        if self._max_packet_bytes is not None and size > self._max_packet_bytes:
            # Sent anyway, it would end the connection, and so would every repetition of it.
            outgoing.fail(f"has {size} bytes, the broker takes {self._max_packet_bytes}")
            return
        mid = self._client.publish(
            outgoing.topic, outgoing.payload, 1, outgoing.retain, outgoing.correlation
        )
        self._sent[mid] = outgoing
        self.counters.published += 1
