"""A repository behind a broker: pulls stretches of objects by request and response.

A window of requests is on its way at any time.  A request that stays without an answer is sent
again, later each time; the same answer twice, or late, is harmless.  The budget is silence: when
nothing at all has come for ``PATIENCE_S`` the pull ends with a ``TransportError``, and the caller
decides when to come back.  Reconnecting is the link's business and looks like silence from here.
"""

from __future__ import annotations

import queue
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from ota.device.source import Piece, Source
from ota.errors import Cancelled, ObjectMissing, TransportError, WireError
from ota.mqtt import Broker, Link, Message
from ota.wire import (
    NOT_FOUND,
    OK,
    UNAVAILABLE,
    Request,
    Response,
    decode_response,
    encode_request,
    reply_topic,
    request_topic,
)

WINDOW = 8  # 512 KiB on the way: 5 MB/s at a round trip of 100 ms, far below any broker's queue
FIRST_WAIT_S = 2.0  # a window of 512 KiB needs 2 s at 2 Mbit/s
MAX_WAIT_S = 16.0
PATIENCE_S = 45.0  # a broker restart plus the longest pause between two reconnects
MAX_WAITING_ANSWERS = 4 * WINDOW  # more than we asked for: somebody floods our topic
TICK_S = 0.2  # how soon a cancel is noticed


@dataclass(slots=True)
class _Waiting:
    """A request without an answer yet."""

    request: Request
    wait_s: float
    due_s: float


class MqttSource(Source):
    """Pulls from the responder of repository ``repo``.

    Args:
        broker: where to connect, as client ``<node>-ota``
        repo: name of the repository
        node: name of this device
        is_stopped: asked at least every ``TICK_S``; True ends a pull with ``Cancelled``
    """

    def __init__(
        self,
        broker: Broker,
        repo: str,
        node: str,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._topic = request_topic(repo)
        self._reply_to = reply_topic(repo, node)
        self._is_stopped = is_stopped
        self._inbox: queue.Queue[bytes] = queue.Queue(MAX_WAITING_ANSWERS)
        self._link = Link(broker, f"{node}-ota", [self._reply_to], self._received)
        self._session = f"{random.getrandbits(32):08x}"
        self._n_requests = 0
        self._is_open = False

    def fetch(self, name: str, offset: int, length: int) -> Piece:
        """Return up to ``length`` bytes of object ``name``; fewer only at its end."""
        return next(self.pull(name, [(offset, length)]))

    def pull(self, name: str, ranges: Iterable[tuple[int, int]]) -> Iterator[Piece]:
        """Fetch many (offset, length) of one object; pieces come in any order."""
        if not self._is_open:
            self._link.open()
            self._is_open = True
        todo = deque(ranges)
        waiting: dict[str, _Waiting] = {}
        quiet_until_s = time.monotonic() + PATIENCE_S
        while todo or waiting:
            while todo and len(waiting) < WINDOW:
                entry = self._first_try(name, *todo.popleft())
                waiting[entry.request.id] = entry
            response = self._next_response(waiting)
            now_s = time.monotonic()
            if response is None:
                if now_s > quiet_until_s:
                    raise TransportError(f"{name}: nobody answered for {PATIENCE_S:g} s")
                self._send_again(waiting.values(), now_s)
                continue
            if response.status == UNAVAILABLE:
                continue  # it is sent again when due: the responder asked for patience
            quiet_until_s = now_s + PATIENCE_S
            yield _piece(waiting.pop(response.id).request, response)

    def close(self) -> None:
        """Disconnect."""
        self._link.close()
        self._is_open = False

    def _first_try(self, name: str, offset: int, length: int) -> _Waiting:
        self._n_requests += 1
        request_id = f"{self._session}-{self._n_requests:x}"
        request = Request(request_id, name, offset, length, self._reply_to)
        entry = _Waiting(request, FIRST_WAIT_S, time.monotonic() + FIRST_WAIT_S)
        self._send(entry)
        return entry

    def _send_again(self, waiting: Iterable[_Waiting], now_s: float) -> None:
        for entry in waiting:
            if now_s >= entry.due_s:
                entry.wait_s = min(2 * entry.wait_s, MAX_WAIT_S)
                entry.due_s = now_s + entry.wait_s * random.uniform(0.5, 1.0)
                self._send(entry)

    def _send(self, entry: _Waiting) -> None:
        self._link.publish(
            self._topic,
            encode_request(entry.request),
            reply_to=self._reply_to,
            correlation=entry.request.id.encode(),
            expiry_s=int(entry.wait_s) + 1,
        )

    def _next_response(self, waiting: dict[str, _Waiting]) -> Response | None:
        """Return the next answer to a request of ours, or None after a tick of silence."""
        while True:
            if self._is_stopped():
                raise Cancelled("asked to stop while fetching; what came is kept")
            try:
                response = decode_response(self._inbox.get(timeout=TICK_S))
            except queue.Empty:
                return None
            except WireError:
                continue  # anybody may publish to our topic; what is not an answer is not ours
            if response.id in waiting:
                return response

    def _received(self, message: Message) -> None:
        with suppress(queue.Full):  # dropped; what was an answer to us is asked for again
            self._inbox.put_nowait(message.payload)


def _piece(request: Request, response: Response) -> Piece:
    if response.status == NOT_FOUND:
        raise ObjectMissing(f"{request.object}: no such object in the repository")
    if response.status != OK or response.offset != request.offset:
        raise TransportError(f"{request.object}: expected status {OK}, got {response.status}")
    expected = max(0, min(request.length, response.total - request.offset))
    if len(response.data) != expected:
        raise TransportError(
            f"{request.object}: expected {expected} bytes at {request.offset}, "
            f"got {len(response.data)}"
        )
    return Piece(response.offset, response.data, response.total)
