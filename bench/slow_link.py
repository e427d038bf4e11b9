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
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

SEGMENT_BYTES = 1460


@dataclass(frozen=True)
class Link:
    bits_per_s: float
    round_trip_s: float
    loss: float
    seed: int = 1


class SlowLink:
    """Listens on ``port`` and forwards to ``target``; a context manager."""

    def __init__(self, target: tuple[str, int], link: Link) -> None:
        self._target = target
        self._link = link
        self._random = random.Random(link.seed)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        self.is_frozen = False
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Let nothing through any more, and close nothing: half-open sockets."""
        self.is_frozen = True

    def __enter__(self) -> SlowLink:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.close()
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for sock in (near, far):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for one, other in ((near, far), (far, near)):
                    _Direction(self, one, other, self._link, self._random)


class _Direction:
    def __init__(self, owner: SlowLink, source, sink, link: Link, chance: random.Random) -> None:
        self._owner = owner
        self._source, self._sink, self._link, self._chance = source, sink, link, chance
        self._queue: deque[tuple[float, bytes]] = deque()
        self._changed = threading.Condition()
        self._limit = 2 * int(link.bits_per_s / 8 * link.round_trip_s) + (256 << 10)
        self._queued = 0
        self._is_over = False
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._write, daemon=True).start()

    def _read(self) -> None:
        line_free_s = arrives_s = 0.0
        link = self._link
        with suppress(OSError):
            while data := self._source.recv(SEGMENT_BYTES):
                line_free_s = max(line_free_s, time.monotonic()) + 8 * len(data) / link.bits_per_s
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
        with suppress(OSError):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue or self._is_over)
                    if not self._queue:
                        break
                    arrives_s, _ = self._queue[0]
                time.sleep(max(0.0, arrives_s - time.monotonic()))
                now_s = time.monotonic()
                with self._changed:
                    ready = []
                    while self._queue and self._queue[0][0] <= now_s:
                        ready.append(self._queue.popleft()[1])
                    data = b"".join(ready)
                    self._queued -= len(data)
                    self._changed.notify_all()
                if not self._owner.is_frozen:
                    self._sink.sendall(data)
        with suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)
