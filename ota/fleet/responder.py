"""The repository's end of the wire: answers pulls.  Keeps no state about devices.

Only objects that ``ota.wire.is_object`` allows are served, answers go only below the repository's
own reply prefix, and what waits in memory is bounded: above it requests are dropped, and devices
ask again.
"""

from __future__ import annotations

from pathlib import Path

from ota.errors import WireError
from ota.mqtt import Broker, Link, Message
from ota.wire import (
    MAX_CHUNK_BYTES,
    MAX_HEADER_BYTES,
    NOT_FOUND,
    OK,
    RANGE_NOT_SATISFIABLE,
    UNAVAILABLE,
    Request,
    Response,
    decode_request,
    encode_response,
    is_reply_topic,
    notice_topic,
    request_topic,
)

MAX_QUEUED_BYTES = 32 << 20  # 64 devices with a full window each; a second at 256 Mbit/s
EXPIRY_S = 30  # a device has asked again long before; later an answer is only in the way
PUBLISH_TIMEOUT_S = 15.0
OVERHEAD_BYTES = MAX_HEADER_BYTES + 512  # of a message: our header, topic, properties


class Responder:
    """Serves the repository at ``path`` as ``repo`` until ``close``."""

    def __init__(self, broker: Broker, repo: str, path: Path) -> None:
        self._repo = repo
        self._path = path
        # Only the network thread touches these: every callback of the link runs there.
        self._queued: dict[int, int] = {}
        self._queued_bytes = 0
        self.n_answers = 0
        self.n_refused = 0
        self._link = Link(
            broker,
            f"{repo}-responder",
            [request_topic(repo)],
            self._received,
            self._written,
            self._connected,
        )

    def open(self) -> None:
        """Connect and begin to answer."""
        self._link.open()

    def close(self) -> None:
        """Stop answering."""
        self._link.close()

    def _received(self, message: Message) -> None:
        if message.is_retained:
            return  # it would come again with every reconnect
        try:
            request = decode_request(message.payload)
        except WireError:
            self.n_refused += 1
            return
        if not is_reply_topic(request.reply_to, self._repo):
            self.n_refused += 1
            return
        payload = encode_response(self._answer(request))
        if self._queued_bytes + len(payload) > MAX_QUEUED_BYTES:
            self.n_refused += 1
            return
        info = self._link.publish(
            request.reply_to, payload, correlation=request.id.encode(), expiry_s=EXPIRY_S
        )
        self._queued[info.mid] = len(payload)
        self._queued_bytes += len(payload)
        self.n_answers += 1

    def _answer(self, request: Request) -> Response:
        try:
            with (self._path / request.object).open("rb") as file:
                total = file.seek(0, 2)
                if request.offset > total:
                    return _refusal(request, RANGE_NOT_SATISFIABLE)
                file.seek(request.offset)
                data = file.read(min(request.length, self._limit()))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return _refusal(request, NOT_FOUND)
        except OSError:
            return _refusal(request, UNAVAILABLE)
        return Response(request.id, OK, request.offset, total, data)

    def _limit(self) -> int:
        """Return how many bytes fit into one message; a device asks for the rest."""
        longest = self._link.max_packet_bytes
        return MAX_CHUNK_BYTES if longest is None else max(1, longest - OVERHEAD_BYTES)

    def _written(self, mid: int) -> None:
        self._queued_bytes -= self._queued.pop(mid, 0)

    def _connected(self) -> None:
        self._queued.clear()
        self._queued_bytes = 0


def publish_notice(broker: Broker, repo: str, notice: bytes) -> None:
    """Retain the notice at the broker, and return when the broker has it."""
    link = Link(broker, f"{repo}-publisher", [], lambda _: None)
    link.open()
    try:
        link.publish(notice_topic(repo), notice, qos=1, retain=True).wait_for_publish(
            PUBLISH_TIMEOUT_S
        )
    finally:
        link.close()


def _refusal(request: Request, status: int) -> Response:
    return Response(request.id, status, request.offset, 0, b"")
