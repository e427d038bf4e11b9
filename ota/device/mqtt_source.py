"""A repository behind a broker: pulls stretches of objects by request and response.

A window of requests is on its way at any time; its size and the length of each request adapt
(``ota.window``).  A request that stays without an answer is sent again, later each time, and at
once when the link had to connect again: its answers went with the old connection.  The same answer
twice, or late, is harmless.  The budget is silence: when less than ``PROGRESS_BYTES`` have come in
``PATIENCE_S`` and nothing was completed by them, the pull ends with a ``TransportError``, and the
caller decides when to come back.  So a sender that feeds us byte by byte is silent, too.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from ota.device.source import Piece, Source
from ota.errors import Cancelled, ObjectMissing, TransportError, WireError
from ota.mqtt import Broker, Link, Message
from ota.window import MAX_WAIT_S, MAX_WINDOW, Window
from ota.wire import (
    MAX_CHUNK_BYTES,
    MAX_HEADER_BYTES,
    MIN_CHUNK_BYTES,
    NOT_FOUND,
    OK,
    RANGE_NOT_SATISFIABLE,
    UNAVAILABLE,
    Request,
    Response,
    decode_response,
    encode_request,
    reply_topic,
    request_topic,
)

PATIENCE_S = 45.0  # a broker restart, or a dead link (20 s), plus a few tries to reconnect
PROGRESS_BYTES = 16 << 10  # 3 kbit/s: slower is an attack or no link
IN_FLIGHT_BYTES = 768 << 10
"""Asked for and not here yet: with what the disk may lose, the MiB that a cut may cost.  60 Mbit/s
at a round trip of 100 ms."""
MAX_WAITING_ANSWERS = 4 * MAX_WINDOW  # more than we asked for: somebody floods our topic
TICK_S = 0.2  # how soon a cancel is noticed
OVERHEAD_BYTES = MAX_HEADER_BYTES + 512  # of a message: our header, topic, properties


@dataclass(slots=True)
class _Waiting:
    """A request without an answer yet."""

    number: int
    request: Request
    range: tuple[int, int]
    """What the caller asked for; the request is all of it or a part."""
    sent_s: float
    wait_s: float
    due_s: float
    planned_end: int
    """Where the request ended when it was first sent; it may be shortened later."""
    n_sent: int = 1


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
        self._is_new_connection = threading.Event()
        self._link = Link(
            broker,
            f"{node}-ota",
            [self._reply_to],
            self._received,
            on_connected=self._is_new_connection.set,
        )
        self._session = f"{random.getrandbits(32):08x}"
        self._n_requests = 0
        self._is_open = False
        self._learnt: Window | None = None

    def fetch(self, name: str, offset: int, length: int) -> Piece:
        """Return up to ``length`` bytes of object ``name``; fewer only at its end."""
        return next(self.pull(name, [(offset, length)]))

    def pull(self, name: str, ranges: Iterable[tuple[int, int]]) -> Iterator[Piece]:
        """Fetch many (offset, length) of one object; pieces come in any order."""
        if not self._is_open:
            self._link.open()
            self._is_open = True
        window = self._window()
        parts = _Parts(ranges)
        waiting: dict[str, _Waiting] = {}
        quiet_until_s = time.monotonic() + PATIENCE_S
        came = 0
        while parts.todo or waiting:
            self._fill(name, parts, waiting, window)
            response = self._next_response(waiting)
            now_s = time.monotonic()
            if now_s > quiet_until_s:
                raise TransportError(f"{name}: nobody answered for {PATIENCE_S:g} s")
            if response is None or response.status == UNAVAILABLE:
                # Unavailable is sent again when due: the responder asked for patience.
                self._send_again(waiting.values(), now_s, window)
                continue
            entry = waiting.pop(response.id)
            window.answered(now_s - entry.sent_s, was_repeated=entry.n_sent > 1)
            if response.status == RANGE_NOT_SATISFIABLE and entry.request.offset > entry.range[0]:
                continue  # the range ends behind the object; the part before says where
            piece = _piece(entry, response)
            if 0 < len(piece.data) < min(entry.request.length, piece.total - piece.offset):
                # The other end's broker takes no more.  Anybody may say so: not below a sane size.
                window.limit(max(len(piece.data), MIN_CHUNK_BYTES))
            whole = parts.add(entry, piece)
            came += len(piece.data)
            if whole is not None:
                yield whole
            if whole is not None or came >= PROGRESS_BYTES:  # what the caller did is no silence
                quiet_until_s, came = time.monotonic() + PATIENCE_S, 0
        parts.check_done(name)

    def _fill(self, name: str, parts: _Parts, waiting: dict[str, _Waiting], window: Window) -> None:
        """Send requests until the window is full; all again, if their connection is gone."""
        if self._is_new_connection.is_set() and self._inbox.empty():
            self._is_new_connection.clear()
            now_s = time.monotonic()
            for entry in waiting.values():
                entry.due_s, entry.wait_s = now_s, window.wait_s / 2
            self._send_again(waiting.values(), now_s, window)
        on_their_way = sum(entry.request.length for entry in waiting.values())
        while parts.todo and len(waiting) < window.n_requests:
            part = parts.next(min(window.piece_bytes, IN_FLIGHT_BYTES))
            if waiting and on_their_way + part.length > IN_FLIGHT_BYTES:
                parts.todo.appendleft(part)
                return
            entry = self._first_try(name, part, window)
            waiting[entry.request.id] = entry
            on_their_way += part.length

    def _window(self) -> Window:
        """Return the window of a new pull: what was learnt in the one before is kept."""
        limit = MAX_CHUNK_BYTES
        if self._link.max_packet_bytes is not None:
            limit = min(limit, max(1, self._link.max_packet_bytes - OVERHEAD_BYTES))
        if self._learnt is None or self._learnt.piece_limit > limit:
            self._learnt = Window(limit)
        return self._learnt

    def close(self) -> None:
        """Disconnect."""
        self._link.close()
        self._is_open = False

    def _first_try(self, name: str, part: _Part, window: Window) -> _Waiting:
        self._n_requests += 1
        request_id = f"{self._session}-{self._n_requests:x}"
        request = Request(request_id, name, part.offset, part.length, self._reply_to)
        now_s = time.monotonic()
        due_s = now_s + window.wait_s
        end = part.offset + part.length
        entry = _Waiting(self._n_requests, request, part.range, now_s, window.wait_s, due_s, end)
        self._send(entry)
        return entry

    def _send_again(self, waiting: Iterable[_Waiting], now_s: float, window: Window) -> None:
        for entry in waiting:
            if now_s >= entry.due_s:
                window.lost(entry.number, self._n_requests)
                entry.wait_s = min(2 * entry.wait_s, MAX_WAIT_S)
                entry.due_s = now_s + entry.wait_s * random.uniform(0.5, 1.0)
                entry.n_sent += 1
                self._shorten(entry, window)
                self._send(entry)

    def _shorten(self, entry: _Waiting, window: Window) -> None:
        """Ask for less the next time; what is cut off is asked for after the answer."""
        if entry.request.length > window.piece_bytes:
            entry.request = replace(entry.request, length=window.piece_bytes)

    def _send(self, entry: _Waiting) -> None:
        if not self._link.is_up:
            return  # asked for again as soon as it is
        self._link.publish(
            self._topic,
            encode_request(entry.request),
            reply_to=self._reply_to,
            correlation=entry.request.id.encode(),
            expiry_s=int(entry.wait_s) + 1,
        )

    def _next_response(self, waiting: dict[str, _Waiting]) -> Response | None:
        """Return the next answer to a request of ours, or None after a tick of silence."""
        until_s = time.monotonic() + TICK_S  # whatever else comes: a flood must not hold us here
        while (left_s := until_s - time.monotonic()) > 0:
            if self._is_stopped():
                raise Cancelled("asked to stop while fetching; what came is kept")
            try:
                response = decode_response(self._inbox.get(timeout=left_s))
            except queue.Empty:
                return None
            except WireError:
                continue  # anybody may publish to our topic; what is not an answer is not ours
            if response.id in waiting:
                return response
        return None

    def _received(self, message: Message) -> None:
        with suppress(queue.Full):  # dropped; what was an answer to us is asked for again
            self._inbox.put_nowait(message.payload)


@dataclass(frozen=True, slots=True)
class _Part:
    """One request's share of a range that the caller asked for."""

    range: tuple[int, int]
    offset: int
    length: int


class _Parts:
    """Cuts ranges into requests, and puts the answers together again."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.todo = deque(_Part(each, *each) for each in ranges)
        self._got: dict[tuple[int, int], dict[int, bytes]] = {}

    def next(self, piece_bytes: int) -> _Part:
        """Return the next request to send, at most ``piece_bytes`` long."""
        part = self.todo.popleft()
        if part.length > piece_bytes:
            rest = part.length - piece_bytes
            self.todo.appendleft(_Part(part.range, part.offset + piece_bytes, rest))
            part = _Part(part.range, part.offset, piece_bytes)
        return part

    def add(self, entry: _Waiting, piece: Piece) -> Piece | None:
        """Take an answer; returns the whole range when nothing of it is missing any more."""
        offset, length = entry.range
        length = min(length, max(0, piece.total - offset))
        if piece.offset == offset and len(piece.data) >= length:
            return piece
        if piece.offset >= offset + length:
            return None  # nothing of the object is there
        got = self._got.setdefault(entry.range, {})
        got[piece.offset] = piece.data
        end = piece.offset + len(piece.data)
        stop = min(entry.planned_end, offset + length)
        if end < stop:  # it was shortened, here or there
            self.todo.appendleft(_Part(entry.range, end, stop - end))
        if sum(map(len, got.values())) < length:
            return None
        del self._got[entry.range]
        data = b"".join(got[start] for start in sorted(got))
        return Piece(offset, data[:length], piece.total)

    def check_done(self, name: str) -> None:
        """Raise ``TransportError`` if a range was left open: answers contradict each other."""
        if self._got:
            offset, length = next(iter(self._got))
            raise TransportError(f"{name}: expected {length} bytes at {offset}, a part is missing")


def _piece(entry: _Waiting, response: Response) -> Piece:
    request = entry.request
    asked = entry.planned_end - request.offset  # an answer may be to the first, longer request
    if response.status == NOT_FOUND:
        raise ObjectMissing(f"{request.object}: no such object in the repository")
    if response.status != OK or response.offset != request.offset:
        raise TransportError(f"{request.object}: expected status {OK}, got {response.status}")
    expected = max(0, min(asked, response.total - request.offset))
    if len(response.data) > expected or (expected and not response.data):
        raise TransportError(
            f"{request.object}: expected {expected} bytes at {request.offset}, "
            f"got {len(response.data)}"
        )
    return Piece(response.offset, response.data, response.total)
