"""How many requests are on their way, and how long each one is: AIMD.  Pure.

The window grows by one an answer until the first loss, later by one a window of answers; a loss
halves it.  Losses that are the same accident (requests sent before the window last shrank) count
once.  A loss at window 1 means that one message is too much for the path (a broker that closes the
connection above a size it does not tell, a link of a few kbit/s): then the pieces are halved, and
tried longer again after a long run without a loss.  Below the wire there is TCP, which turns loss
into delay; so growth also ends when answers take much longer than they did at first.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_WINDOW = 1
FIRST_WINDOW = 4
MAX_WINDOW = 32  # 2 MiB of answers: 160 Mbit/s at a round trip of 100 ms
MIN_PIECE_BYTES = 4 << 10  # below, headers outweigh the bytes
GROW_AFTER = 64  # answers in a row without a loss before longer pieces are tried again
MAX_QUEUE_S = 1.0  # added by our own requests waiting in the path: they would delay a cancel, too
FIRST_WAIT_S = 2.0  # a window of 512 KiB needs 2 s at 2 Mbit/s
MAX_WAIT_S = 16.0
SMOOTHING = 0.125  # of RFC 6298
_WAIT_FACTOR = 3.0  # answers vary by a window's length; 3 round trips are no accident


@dataclass(slots=True)
class Window:
    """State of one pull; ``piece_limit`` is what both brokers and the protocol allow."""

    piece_limit: int
    size: float = FIRST_WINDOW
    threshold: float = MAX_WINDOW
    piece_bytes: int = 0
    round_trip_s: float | None = None
    shortest_s: float = float("inf")
    backoff: float = 1.0
    _answers: int = 0
    _shrunk_at: int = -1

    def __post_init__(self) -> None:
        self.piece_bytes = self.piece_bytes or self.piece_limit

    @property
    def n_requests(self) -> int:
        """How many requests may be on their way."""
        return int(self.size)

    @property
    def wait_s(self) -> float:
        """How long an answer may take before it is asked for again.

        Longer after each loss until an answer tells the time again (RFC 6298, 5.5): answers to
        repeated requests tell none, and a path that became slow would be asked twice for all.
        """
        known = 0.0 if self.round_trip_s is None else _WAIT_FACTOR * self.round_trip_s
        return min(MAX_WAIT_S, self.backoff * max(FIRST_WAIT_S, known))

    def answered(self, took_s: float, *, was_repeated: bool) -> None:
        """Count an answer that came ``took_s`` after its request; a repeated one tells no time."""
        if not was_repeated:
            self.backoff = 1.0
            old = took_s if self.round_trip_s is None else self.round_trip_s
            self.round_trip_s = old + SMOOTHING * (took_s - old)
            self.shortest_s = min(self.shortest_s, took_s)
        self._answers += 1
        if self._answers % GROW_AFTER == 0:
            self.piece_bytes = min(2 * self.piece_bytes, self.piece_limit)
        if self.round_trip_s is None or self.round_trip_s <= self.shortest_s + MAX_QUEUE_S:
            step = 1.0 if self.size < self.threshold else 1.0 / self.size
            self.size = min(self.size + step, MAX_WINDOW)

    def lost(self, request: int, newest: int) -> None:
        """Count the loss of request number ``request``, when ``newest`` were sent."""
        if request <= self._shrunk_at:
            return
        self._shrunk_at = newest
        self._answers = 0
        self.backoff = min(2 * self.backoff, MAX_WAIT_S / FIRST_WAIT_S)
        if self.n_requests == MIN_WINDOW:
            self.piece_bytes = max(self.piece_bytes // 2, min(MIN_PIECE_BYTES, self.piece_limit))
        self.size = max(self.size / 2, MIN_WINDOW)
        self.threshold = self.size

    def limit(self, piece_bytes: int) -> None:
        """Learn that no piece may be longer than ``piece_bytes``."""
        self.piece_limit = max(1, min(self.piece_limit, piece_bytes))
        self.piece_bytes = min(self.piece_bytes, self.piece_limit)
