"""A TCP proxy that is a bad link: a rate, a delay, and stalls that model loss.

The kernel's own emulation (netem) is not there in every container, so this works on the byte
stream, in pieces of one segment.  A lost segment holds back itself and all that follow it for one
round trip more, as selective acknowledgement and a fast retransmit do (head-of-line blocking).  The
sender's congestion window is *not* modelled: the figures are what the protocol above TCP makes of a
link that TCP keeps full.  A loss-based TCP sender alone would fall to about 1 Mbit/s here (MSS /
RTT x 1.22 / sqrt(loss), Mathis et al. 1997), whatever is carried over it.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

SEGMENT_BYTES = 1460


@dataclass(frozen=True)
class Link:
    bits_per_s: float
    round_trip_s: float
    loss: float
    seed: int = 1


class Cut(Enum):
    """How a connection ends, or does not."""

    RESET = "reset"  # RST to both ends; what was on its way is lost
    CLOSE = "close"  # FIN to both ends, what was on its way is lost
    HALF_OPEN = "half-open"  # the far end hears of it, the near end never does
    BLACK_HOLE = "black-hole"  # nobody hears of it and nothing passes any more


class SlowLink:
    """Listens on ``port`` and forwards to ``target``; a context manager.

    ``n_down`` counts the bytes that were handed to clients, ``n_connections`` the connections that
    reached the target.
    """

    def __init__(self, target: tuple[str, int], link: Link) -> None:
        self._target = target
        self._link = link
        self._random = random.Random(link.seed)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._pairs: list[_Pair] = []
        self._lock = threading.Lock()
        self._down_until_s = 0.0
        self.n_down = 0
        self.n_connections = 0
        self.is_frozen = False
        self.bits_per_s = link.bits_per_s
        """May be changed: it holds for what comes from then on."""
        self._silent: list[_Pair] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def freeze(self) -> None:
        """Let nothing through any more, and close nothing: half-open sockets."""
        self.is_frozen = True

    def cut(self, how: Cut, down_s: float = 0.0) -> None:
        """End every connection; whoever connects in the next ``down_s`` is reset."""
        self._down_until_s = time.monotonic() + down_s
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.cut(how)
        if how in (Cut.HALF_OPEN, Cut.BLACK_HOLE):
            self._silent += pairs

    def delivered(self, n_bytes: int) -> None:
        with self._lock:
            self.n_down += n_bytes

    def __enter__(self) -> SlowLink:
        return self

    def __exit__(self, *_exc: object) -> None:
        # A closed listener that a thread waits on lives on, and its number may be another's soon.
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._server.close()
        self.cut(Cut.CLOSE)
        for pair in self._silent:
            pair.cut(Cut.CLOSE)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return  # closed
            try:
                if time.monotonic() < self._down_until_s:
                    raise ConnectionRefusedError
                far = socket.create_connection(self._target)
            except OSError:  # the broker is away just now
                _close(near, is_reset=True)
                continue
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.n_connections += 1
                self._pairs.append(_Pair(self, near, far, self._link, self._random))


class _Pair:
    """One connection: two sockets, four threads; the last of them closes the sockets.

    A socket that another thread waits on cannot be closed: the kernel keeps the connection until
    that thread returns, and nobody is told.  So a cut wakes the readers first.
    """

    def __init__(self, owner: SlowLink, near, far, link: Link, chance: random.Random) -> None:
        self._sockets = near, far
        self._how: Cut | None = None
        self._n_threads = 4
        self._lock = threading.Lock()
        _Direction(self, owner, near, far, link, chance, is_down=False)
        _Direction(self, owner, far, near, link, chance, is_down=True)

    @property
    def is_cut(self) -> bool:
        return self._how is not None

    def cut(self, how: Cut) -> None:
        self._how = how
        ends = {Cut.HALF_OPEN: self._sockets[1:], Cut.BLACK_HOLE: ()}.get(how, self._sockets)
        for sock in ends:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RD if how is Cut.RESET else socket.SHUT_RDWR)

    def left(self) -> None:
        """Count a thread that ended."""
        with self._lock:
            self._n_threads -= 1
            if self._n_threads:
                return
        for sock in self._sockets:
            _close(sock, is_reset=self._how is Cut.RESET)


def _close(sock: socket.socket, *, is_reset: bool) -> None:
    with suppress(OSError):
        if is_reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


class _Direction:
    def __init__(
        self,
        pair: _Pair,
        owner: SlowLink,
        source,
        sink,
        link: Link,
        chance: random.Random,
        *,
        is_down: bool,
    ) -> None:
        self._pair, self._owner, self._is_down = pair, owner, is_down
        self._source, self._sink, self._link, self._chance = source, sink, link, chance
        self._queue: deque[tuple[float, bytes]] = deque()
        self._changed = threading.Condition()
        self._limit = 2 * int(link.bits_per_s / 8 * link.round_trip_s) + (256 << 10)
        self._queued = 0
        self._is_over = False
        for work in (self._read, self._write):
            threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work) -> None:
        work()
        self._pair.left()

    def _read(self) -> None:
        line_free_s = arrives_s = 0.0
        link = self._link
        with suppress(OSError):
            while data := self._source.recv(SEGMENT_BYTES):
                line_free_s = (
                    max(line_free_s, time.monotonic()) + 8 * len(data) / self._owner.bits_per_s
                )
                late_s = link.round_trip_s if self._chance.random() < link.loss else 0.0
                arrives_s = max(arrives_s, line_free_s + link.round_trip_s / 2 + late_s)
                with self._changed:
                    self._changed.wait_for(lambda: self._queued < self._limit)
                    self._queue.append((arrives_s, data))
                    self._queued += len(data)
                    self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _write(self) -> None:
        while data := self._arrived():
            if self._owner.is_frozen or self._pair.is_cut:
                continue  # read on, so that the sender is not told by a full buffer
            with suppress(OSError):
                self._sink.sendall(data)
                if self._is_down:
                    self._owner.delivered(len(data))
        if not self._pair.is_cut:
            with suppress(OSError):
                self._sink.shutdown(socket.SHUT_WR)

    def _arrived(self) -> bytes:
        """Wait for what has come over the link; empty: that was all."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_over)
            if not self._queue:
                return b""
            arrives_s, _ = self._queue[0]
        time.sleep(max(0.0, arrives_s - time.monotonic()))
        now_s = time.monotonic()
        ready = []
        with self._changed:
            while self._queue and self._queue[0][0] <= now_s:
                ready.append(self._queue.popleft()[1])
            data = b"".join(ready)
            self._queued -= len(data)
            self._changed.notify_all()
        return data
