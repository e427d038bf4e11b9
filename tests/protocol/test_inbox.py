import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgeagent.errors import QueryRefused
from edgeagent.protocol.commands import Cancel
from edgeagent.protocol.inbox import (
    EARLY_CANCELS,
    REMEMBERED,
    REMEMBERED_S,
    RETRY_BOUNDS_S,
    TRANSITIONS,
    Arrival,
    Event,
    Inbox,
    State,
    Ticket,
    key_of,
)
from edgeagent.protocol.messages import Address, Query


def address(query_id="q", correlation=None, named=True):
    return Address(query_id, f"reply/{query_id}", correlation, None, named)


def arrive(inbox, where, delivery="d1", now_s=0.0, *, redelivered=False, digest=b"h"):
    """Return the ticket of a new request, or what it is."""
    key = key_of(where, digest)
    arrival = inbox.recognise(key, delivery, now_s, redelivered=redelivered)
    if arrival is not Arrival.NEW:
        return arrival
    return inbox.open(key, where, delivery, now_s)


def admit(inbox, query_id="q", now_s=0.0, deadline_s=10.0, **more):
    where = address(query_id, **more)
    ticket = arrive(inbox, where, delivery=f"d-{query_id}", now_s=now_s)
    inbox.admit(ticket, Query(where, deadline_s, True, "x"), now_s)
    return ticket


def answer(inbox, ticket, now_s=1.0, **more):
    inbox.close(ticket, now_s, **more)
    return inbox.confirm(ticket, now_s)


# -- the table ------------------------------------------------------------------------------------

ILLEGAL = sorted(set(itertools.product(State, Event)) - set(TRANSITIONS), key=str)


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_every_pair_that_is_not_a_row_is_refused_and_changes_nothing(state, event):
    ticket = Ticket(("", ""), address(), 0.0, state=state)
    with pytest.raises(RuntimeError, match="is not legal in"):
        ticket.handle(event)
    assert ticket.state is state


def test_an_answered_query_visits_every_state():
    inbox = Inbox(4)
    ticket = arrive(inbox, address())
    states = [ticket.state]
    inbox.admit(ticket, Query(address(), 10, True, "x"), 0.0)
    states.append(ticket.state)
    assert inbox.start(0.5) is ticket
    states.append(ticket.state)
    inbox.close(ticket, 1.0)
    states.append(ticket.state)
    assert inbox.confirm(ticket, 1.0) == ["d1"]
    states.append(ticket.state)
    assert states == list(State)


# -- admission ------------------------------------------------------------------------------------


def test_queries_start_in_the_order_they_came():
    inbox = Inbox(4)
    tickets = [admit(inbox, f"q{i}") for i in range(3)]
    assert [inbox.start(1.0) for _ in range(4)] == [*tickets, None]


def test_a_full_queue_is_busy_and_says_when_to_try_again():
    inbox = Inbox(2)
    admit(inbox, "a")
    admit(inbox, "b")
    with pytest.raises(QueryRefused, match="the queue is full with 2 queries") as refused:
        admit(inbox, "c")
    assert refused.value.code == "busy"
    low, high = RETRY_BOUNDS_S
    assert low <= refused.value.retry_after_s <= high
    assert len(inbox) == 2


def test_retry_after_follows_the_measured_pace():
    inbox = Inbox(8)
    for i in range(40):
        ticket = admit(inbox, f"q{i}", now_s=i * 100.0, deadline_s=1000)
        inbox.start(i * 100.0)
        answer(inbox, ticket, i * 100.0 + 40)
    admit(inbox, "last", now_s=5000.0)
    assert inbox.retry_after_s() == pytest.approx(40, rel=0.01)


def test_a_query_whose_time_is_up_is_expired_on_arrival():
    with pytest.raises(QueryRefused, match="expired before it arrived") as refused:
        admit(Inbox(4), deadline_s=0)
    assert refused.value.code == "expired"


def test_waiting_queries_expire_at_their_deadline_and_not_before():
    inbox = Inbox(4)
    late, later = admit(inbox, "a", deadline_s=1), admit(inbox, "b", deadline_s=2)
    assert inbox.next_deadline_s() == 1.0
    assert inbox.expired(0.99) == []
    assert inbox.expired(1.0) == [late]
    assert list(inbox.waiting()) == [later]
    assert inbox.next_deadline_s() == 2.0
    assert inbox.expired(9.0) == [later]
    assert inbox.next_deadline_s() is None


# -- redelivery -----------------------------------------------------------------------------------


def test_a_live_query_that_comes_again_is_answered_once_and_both_deliveries_acknowledged():
    inbox = Inbox(4)
    ticket = admit(inbox)
    assert arrive(inbox, address(), "d2", redelivered=True) is Arrival.LIVE
    inbox.start(0.0)
    assert answer(inbox, ticket) == ["d-q", "d2"]


def test_an_answered_query_that_comes_again_is_known():
    inbox = Inbox(4)
    ticket = admit(inbox)
    inbox.start(0.0)
    answer(inbox, ticket)
    assert arrive(inbox, address(), redelivered=True) is Arrival.ANSWERED
    assert arrive(inbox, address(), redelivered=False) is Arrival.ANSWERED
    assert isinstance(arrive(inbox, address(), now_s=REMEMBERED_S + 2), Ticket)


def test_correlation_data_identifies_a_query_rather_than_its_id():
    inbox = Inbox(4)
    assert isinstance(arrive(inbox, Address("x", "reply/a", b"1")), Ticket)
    assert arrive(inbox, Address("y", "reply/a", b"1")) is Arrival.LIVE
    assert isinstance(arrive(inbox, Address("x", "reply/a", b"2")), Ticket)
    assert isinstance(arrive(inbox, Address("x", "reply/b", b"1")), Ticket)


def test_a_refused_query_may_be_tried_again_by_its_sender_but_not_by_the_broker():
    inbox = Inbox(4)
    ticket = arrive(inbox, address())
    answer(inbox, ticket, is_refused=True)
    assert arrive(inbox, address(), redelivered=True) is Arrival.ANSWERED
    assert isinstance(arrive(inbox, address(), redelivered=False), Ticket)


def test_deliveries_of_a_lost_connection_are_never_acknowledged():
    inbox = Inbox(4)
    ticket = admit(inbox)
    inbox.connection_lost()
    assert arrive(inbox, address(), "new", redelivered=True) is Arrival.LIVE
    inbox.start(0.0)
    assert answer(inbox, ticket) == ["new"]


def test_the_same_text_twice_without_a_name_is_two_queries():
    inbox = Inbox(4)
    first = arrive(inbox, address("made1", named=False), "d1")
    second = arrive(inbox, address("made2", named=False), "d2")
    assert first is not second
    inbox.connection_lost()
    for delivery in ("n1", "n2"):
        again = arrive(inbox, address("made3", named=False), delivery, redelivered=True)
        assert again is Arrival.LIVE
    assert answer(inbox, first, is_refused=True) == ["n1"]
    assert answer(inbox, second, is_refused=True) == ["n2"]


def test_a_text_without_a_name_that_was_answered_is_known_only_as_a_redelivery():
    inbox = Inbox(4)
    answer(inbox, arrive(inbox, address("made1", named=False)))
    nameless = address("made2", named=False)
    assert arrive(inbox, nameless, redelivered=True) is Arrival.ANSWERED
    assert isinstance(arrive(inbox, nameless, redelivered=False), Ticket)


def test_what_is_remembered_is_bounded():
    inbox = Inbox(4)
    for i in range(REMEMBERED + 1):
        answer(inbox, arrive(inbox, address(f"q{i}")))
    assert isinstance(arrive(inbox, address("q0")), Ticket)
    assert arrive(inbox, address(f"q{REMEMBERED}")) is Arrival.ANSWERED


def test_a_query_of_this_machine_has_no_delivery():
    inbox = Inbox(4)
    ticket = arrive(inbox, address(), delivery=None)
    assert arrive(inbox, address(), delivery=None) is Arrival.LIVE
    assert answer(inbox, ticket) == []


# -- cancelling -----------------------------------------------------------------------------------


def test_a_queued_query_is_cancelled_out_of_the_queue():
    inbox = Inbox(4)
    ticket = admit(inbox)
    assert inbox.cancel(Cancel("q", None, None), 0.0) is ticket
    assert ticket.state is State.QUEUED
    assert inbox.start(0.0) is None


def test_a_running_query_is_found_and_left_running():
    inbox = Inbox(4)
    ticket = admit(inbox)
    inbox.start(0.0)
    assert inbox.cancel(Cancel("q", None, None), 0.0) is ticket
    assert ticket.state is State.RUNNING


@pytest.mark.parametrize(
    ("cancel", "hits"),
    [
        (Cancel(None, b"c", None), True),
        (Cancel(None, b"c", "reply/q"), True),
        (Cancel(None, b"c", "reply/other"), False),
        (Cancel(None, b"x", None), False),
        (Cancel("other", b"c", None), False),
    ],
)
def test_correlation_data_names_the_query_to_cancel(cancel, hits):
    inbox = Inbox(4)
    ticket = admit(inbox, correlation=b"c")
    assert (inbox.cancel(cancel, 0.0) is ticket) is hits


def test_a_cancellation_that_overtakes_its_query_still_counts():
    inbox = Inbox(4)
    inbox.cancel(Cancel("q", None, None), 0.0)
    with pytest.raises(QueryRefused, match="cancelled before it arrived") as refused:
        admit(inbox)
    assert refused.value.code == "cancelled"
    admit(inbox, "r")


def test_an_early_cancellation_is_forgotten_in_time_and_in_number():
    inbox = Inbox(400)
    inbox.cancel(Cancel("q", None, None), 0.0)
    admit(inbox, now_s=61.0)
    for i in range(EARLY_CANCELS + 1):
        inbox.cancel(Cancel(f"e{i}", None, None), 62.0)
    admit(inbox, "e0", now_s=62.0)
    with pytest.raises(QueryRefused):
        admit(inbox, "e1", now_s=62.0)


def test_a_cancellation_that_comes_too_late_harms_no_later_query():
    inbox = Inbox(4)
    ticket = admit(inbox)
    inbox.start(0.0)
    answer(inbox, ticket)
    assert inbox.cancel(Cancel("q", None, None), 1.0) is None
    admit(inbox, now_s=REMEMBERED_S + 5)


# -- any order ------------------------------------------------------------------------------------


class InboxMachine(RuleBasedStateMachine):
    """Requests, redeliveries, outages and answers in any order.

    Every accepted request gets exactly one final answer, and no delivery is acknowledged before
    its answer or after its connection.
    """

    def __init__(self):
        super().__init__()
        self.inbox = Inbox(3)
        self.now_s = 0.0
        self.epoch = 0
        self.n = 0
        self.with_broker = {}  # query id -> delivery that the broker waits for
        self.answers = {}  # query id -> number of final answers
        self.tickets = {}
        self.running = None
        self.closing = []

    @rule(query=st.integers(0, 5))
    def request(self, query):
        name = f"q{query}"
        if name in self.with_broker or name in self.answers:
            return
        self.deliver(name, redelivered=False)

    def deliver(self, name, *, redelivered):
        self.n += 1
        delivery = (self.epoch, self.n)
        self.with_broker[name] = delivery
        result = arrive(self.inbox, address(name), delivery, self.now_s, redelivered=redelivered)
        if result is Arrival.ANSWERED:
            del self.with_broker[name]
        elif isinstance(result, Ticket):
            assert name not in self.answers
            self.tickets[name] = result
            try:
                self.inbox.admit(result, Query(address(name), 100, True, "x"), self.now_s)
            except QueryRefused:
                self.inbox.close(result, self.now_s)
                self.closing.append(result)

    @precondition(lambda self: self.running is None)
    @rule()
    def start(self):
        self.running = self.inbox.start(self.now_s)

    @precondition(lambda self: self.running is not None)
    @rule()
    def finish(self):
        self.inbox.close(self.running, self.now_s)
        self.closing.append(self.running)
        self.running = None

    @precondition(lambda self: self.closing)
    @rule()
    def confirm(self):
        ticket = self.closing.pop(0)
        name = ticket.address.query_id
        self.answers[name] = self.answers.get(name, 0) + 1
        for delivery in self.inbox.confirm(ticket, self.now_s):
            assert delivery[0] == self.epoch
            if self.with_broker.get(name) == delivery:
                del self.with_broker[name]

    @rule()
    def outage(self):
        self.epoch += 1
        self.inbox.connection_lost()
        for name in list(self.with_broker):
            self.deliver(name, redelivered=True)

    @invariant()
    def nothing_is_answered_twice(self):
        assert all(count == 1 for count in self.answers.values())

    @invariant()
    def what_is_answered_is_not_kept_by_the_broker(self):
        assert not set(self.answers) & set(self.with_broker)

    @invariant()
    def the_queue_is_bounded(self):
        assert len(self.inbox) <= 3


TestInboxMachine = InboxMachine.TestCase
TestInboxMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
