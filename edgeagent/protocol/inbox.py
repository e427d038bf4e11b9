"""Admission: which requests run, wait, are refused, and which have been answered already.

Every request, refused ones too, is a `Ticket` from its arrival until the broker has confirmed its
final answer; only then may its delivery be acknowledged.  A ticket moves as the table says:

    OPEN --ADMITTED--> QUEUED --STARTED--> RUNNING --CLOSED--> CLOSING --CONFIRMED--> DONE
    OPEN, QUEUED ------CLOSED (refused; expired or cancelled in the queue)--> CLOSING

When the connection is lost, the deliveries of live tickets are void: the broker sends those
requests again, and `Inbox.recognise` knows them instead of answering twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from edgeagent.errors import QueryRefused
from edgeagent.protocol.commands import Cancel
from edgeagent.protocol.messages import Address, Query

REMEMBERED = 256
"""Answered requests kept for recognition: eight full queues, a few tens of KiB."""

REMEMBERED_S = 600.0
"""Longer than a broker's restart and its clients' back-off; shorter than a person who sends the
same id again on purpose."""

EARLY_CANCELS = 64
EARLY_CANCEL_S = 60.0
"""Cancellations may overtake their query, which waits for its turn in the broker."""

RETRY_BOUNDS_S = (1.0, 600.0)
FIRST_GUESS_S = 5.0
"""Seconds an answer takes, before one was measured."""

Key = tuple[str, str | bytes]
"""(reply topic, Correlation Data), else (reply topic, id), else ("", digest of the request)."""


class State(Enum):
    """Where a request stands."""

    OPEN = auto()
    QUEUED = auto()
    RUNNING = auto()
    CLOSING = auto()
    DONE = auto()


class Event(Enum):
    """What happened to a request."""

    ADMITTED = auto()
    STARTED = auto()
    CLOSED = auto()
    CONFIRMED = auto()


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.OPEN, Event.ADMITTED): State.QUEUED,
    (State.OPEN, Event.CLOSED): State.CLOSING,
    (State.QUEUED, Event.STARTED): State.RUNNING,
    (State.QUEUED, Event.CLOSED): State.CLOSING,
    (State.RUNNING, Event.CLOSED): State.CLOSING,
    (State.CLOSING, Event.CONFIRMED): State.DONE,
}


class Arrival(Enum):
    """What a request that comes in is."""

    NEW = auto()
    LIVE = auto()  # it waits or runs, or its answer is on the way
    ANSWERED = auto()  # acknowledge it, nothing else


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way."""

    key: Key
    address: Address
    arrived_s: float
    deliveries: list[object] = field(default_factory=list)  # to acknowledge when DONE
    state: State = State.OPEN
    query: Query | None = None
    is_refused: bool = False
    started_s: float = 0.0

    def handle(self, event: Event) -> None:
        """Advance by ``event``.

        Raises:
            RuntimeError: ``event`` is not legal in this state; a defect of the caller.
        """
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise RuntimeError(f"{event.name} is not legal in {self.state.name}") from None

    @property
    def deadline_s(self) -> float:
        """When its time is up, on the clock of ``now_s``."""
        return self.arrived_s + (self.query.deadline_s if self.query else 0.0)


def key_of(address: Address, digest: bytes) -> Key:
    """Return what identifies a request across redeliveries."""
    if address.correlation is not None:
        return address.topic, address.correlation
    return (address.topic, address.query_id) if address.is_named else ("", digest)


class Inbox:
    """The bounded queue of one engine."""

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._queue: list[Ticket] = []  # oldest first
        self._live: OrderedDict[Key, Ticket] = OrderedDict()
        self._answered: OrderedDict[Key, tuple[float, bool]] = OrderedDict()  # time, is_refused
        self._early: OrderedDict[str | bytes, float] = OrderedDict()
        self._answer_s = FIRST_GUESS_S

    def __len__(self) -> int:
        return len(self._queue)

    # -- arrival --------------------------------------------------------------------------------

    def recognise(self, key: Key, delivery: object, now_s: float, *, redelivered: bool) -> Arrival:
        """Say whether a request is known; ``delivery`` of a live one is attached to its ticket.

        A refused request may be tried again by its sender, and the same text without a name may be
        meant twice: of those only the broker's own repetition is recognised.
        """
        self._forget(now_s)
        is_anonymous = key[0] == ""
        live = self._orphan(key) if is_anonymous and redelivered else self._live.get(key)
        if live is not None and (not is_anonymous or redelivered):
            if delivery is not None:
                live.deliveries.append(delivery)
            return Arrival.LIVE
        known = self._answered.get(key)
        if known is None or not (redelivered or not (known[1] or is_anonymous)):
            return Arrival.NEW
        return Arrival.ANSWERED

    def open(self, key: Key, address: Address, delivery: object, now_s: float) -> Ticket:
        """Begin a ticket for a request that is `Arrival.NEW`."""
        ticket = Ticket(key, address, now_s)
        if delivery is not None:
            ticket.deliveries.append(delivery)
        self._live[_slot(ticket)] = ticket
        return ticket

    def admit(self, ticket: Ticket, query: Query, now_s: float) -> None:
        """Put a request into the queue.

        Raises:
            QueryRefused: The queue is full (``busy``), its time is up already (``expired``), or a
                cancellation came before it (``cancelled``).
        """
        ticket.query = query
        if query.deadline_s <= 0:
            raise QueryRefused("the query expired before it arrived", code="expired")
        if self._take_early_cancel(query.address):
            raise QueryRefused("cancelled before it arrived", code="cancelled")
        if len(self._queue) >= self._max_queue:
            raise QueryRefused(
                f"the queue is full with {self._max_queue} queries",
                retry_after_s=self.retry_after_s(),
            )
        ticket.handle(Event.ADMITTED)
        self._queue.append(ticket)

    def retry_after_s(self) -> float:
        """Return when half of the queue will have been answered, at the present pace."""
        low, high = RETRY_BOUNDS_S
        return min(max(self._answer_s * (len(self._queue) + 1) / 2, low), high)

    # -- the way through ------------------------------------------------------------------------

    def start(self, now_s: float) -> Ticket | None:
        """Take the oldest query out of the queue, if there is one."""
        if not self._queue:
            return None
        ticket = self._queue.pop(0)
        ticket.handle(Event.STARTED)
        ticket.started_s = now_s
        return ticket

    def expired(self, now_s: float) -> list[Ticket]:
        """Take out of the queue what waited too long; the caller closes and answers them."""
        late = [t for t in self._queue if t.deadline_s <= now_s]
        self._queue = [t for t in self._queue if t.deadline_s > now_s]
        return late

    def next_deadline_s(self) -> float | None:
        """Return when `expired` has something to say next."""
        return min((t.deadline_s for t in self._queue), default=None)

    def cancel(self, cancel: Cancel, now_s: float) -> Ticket | None:
        """Find the query that ``cancel`` names; a queued one is taken out of the queue.

        The caller closes a queued one and tells the engine about a running one.  A name that is
        unknown is remembered for a query that is still in the broker's queue.
        """
        for ticket in self._live.values():
            if ticket.state in {State.QUEUED, State.RUNNING} and _names(cancel, ticket.address):
                if ticket.state is State.QUEUED:
                    self._queue.remove(ticket)
                return ticket
        name = cancel.query_id if cancel.query_id is not None else cancel.correlation
        is_late = any(key[1] == name for key in (*self._answered, *self._live))
        if name is not None and not is_late:
            self._early[name] = now_s
            while len(self._early) > EARLY_CANCELS:
                self._early.popitem(last=False)
        return None

    def close(self, ticket: Ticket, now_s: float, *, is_refused: bool = False) -> None:
        """Note that the final answer of ``ticket`` is being published."""
        if ticket.state is State.RUNNING:  # a moving average over about four answers
            self._answer_s += 0.25 * (now_s - ticket.started_s - self._answer_s)
        ticket.is_refused = is_refused
        ticket.handle(Event.CLOSED)

    def confirm(self, ticket: Ticket, now_s: float) -> list[object]:
        """Note that the broker has the final answer; return the deliveries to acknowledge."""
        ticket.handle(Event.CONFIRMED)
        del self._live[_slot(ticket)]
        self._answered[ticket.key] = (now_s, ticket.is_refused)
        while len(self._answered) > REMEMBERED:
            self._answered.popitem(last=False)
        return ticket.deliveries

    def connection_lost(self) -> None:
        """Forget deliveries: their packet identifiers mean nothing to the next connection."""
        for ticket in self._live.values():
            ticket.deliveries.clear()

    def waiting(self) -> Iterator[Ticket]:
        """Return the queued tickets, oldest first."""
        return iter(tuple(self._queue))

    # -- inside ---------------------------------------------------------------------------------

    def _orphan(self, key: Key) -> Ticket | None:
        """Return the ticket of an unnamed request that lost its delivery."""
        same = (t for t in self._live.values() if t.key == key and not t.deliveries)
        return next(same, None)

    def _forget(self, now_s: float) -> None:
        while self._answered:
            key, (answered_s, _) = next(iter(self._answered.items()))
            if now_s - answered_s <= REMEMBERED_S:
                break
            del self._answered[key]
        while self._early:
            name, cancelled_s = next(iter(self._early.items()))
            if now_s - cancelled_s <= EARLY_CANCEL_S:
                break
            del self._early[name]

    def _take_early_cancel(self, address: Address) -> bool:
        names = (address.query_id, address.correlation)
        return any(self._early.pop(name, None) is not None for name in names if name is not None)


def _slot(ticket: Ticket) -> Key:
    """Return where a ticket is kept; requests without a name may be equal, so by their own id."""
    return ("", ticket.address.query_id) if ticket.key[0] == "" else ticket.key


def _names(cancel: Cancel, address: Address) -> bool:
    if cancel.query_id is not None:
        return cancel.query_id == address.query_id
    if cancel.response_topic not in {None, address.topic}:
        return False
    return cancel.correlation == address.correlation
