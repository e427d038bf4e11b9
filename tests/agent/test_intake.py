"""What comes in and how it is answered, without a broker."""

import asyncio
import json

import pytest

from edgeagent.intake import Intake
from edgeagent.protocol.inbox import Inbox, State
from edgeagent.protocol.messages import Bounds, Incoming
from edgeagent.protocol.topics import REPLY_PREFIXES, Topics
from tests.fakes import FakePublisher

TOPICS = Topics("n1")


class Desk:
    """An intake with a publisher that a test controls."""

    def __init__(self, max_queue=4):
        self.publisher = FakePublisher()
        self.intake = Intake(self.publisher, TOPICS, REPLY_PREFIXES, Bounds(), Inbox(max_queue))
        self.admitted = 0
        self.cancelled = []
        self.deliveries = 0
        self.intake.on_admitted = self._count
        self.intake.on_cancel_running = self.cancelled.append

    def _count(self):
        self.admitted += 1

    def request(self, payload, **more):
        if not isinstance(payload, bytes):
            payload = json.dumps(payload).encode()
        self.deliveries += 1
        delivery = more.pop("delivery", (1, self.deliveries))
        size = more.pop("size", len(payload))
        self.intake.on_request(
            Incoming(TOPICS.query_request, payload, size, delivery=delivery, **more)
        )
        return delivery

    def cancel(self, payload=b"", **more):
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.intake.on_cancel(Incoming(TOPICS.query_cancel, body, len(body), **more))

    async def only_error(self):
        await asyncio.sleep(0)
        (final,) = self.publisher.finals()
        assert final["status"] == "error"
        assert "\n" not in final["error"]["message"]
        return final


def in_loop(body):
    async def main():
        await body()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("payload", "more", "code", "topic"),
    [
        (b"{nonsense", {}, "bad_request", None),
        (b"\xff", {}, "bad_request", None),
        ({"prompt": "x", "colour": 1}, {"response_topic": "reply/a"}, "bad_request", "reply/a"),
        (b"", {"size": 10_000_000, "response_topic": "reply/a"}, "too_large", "reply/a"),
        ({"prompt": "x", "id": "q"}, {"response_topic": "a/#"}, "forbidden_reply_topic", "q"),
        ({"prompt": "x", "id": "q"}, {"response_topic": "$SYS/a"}, "forbidden_reply_topic", "q"),
        ({"prompt": "x", "id": "q"}, {"response_topic": "other/a"}, "forbidden_reply_topic", "q"),
        ({"prompt": "x", "id": "q", "reply_to": "other"}, {}, "forbidden_reply_topic", "q"),
        ({"prompt": "x", "id": "q"}, {"expiry_s": 0}, "expired", "q"),
    ],
)
def test_what_is_refused_gets_one_clear_line_and_changes_nothing(payload, more, code, topic):
    async def body():
        desk = Desk()
        delivery = desk.request(payload, **more)
        final = await desk.only_error()
        assert final["error"]["code"] == code
        where = desk.publisher.messages[0][0]
        if topic is None or "/" not in topic:
            assert where.startswith(TOPICS.query_replies)
            assert topic is None or where == TOPICS.query_reply(topic)
        else:
            assert where == topic
        assert desk.publisher.acknowledged == [delivery]
        assert (desk.admitted, len(desk.intake.inbox)) == (0, 0)
        assert desk.intake.refusals == {code: 1}

    in_loop(body)


def test_a_retained_request_is_ignored_without_a_word():
    async def body():
        desk = Desk()
        delivery = desk.request({"prompt": "x"}, is_retained=True)
        await asyncio.sleep(0)
        assert desk.publisher.messages == []
        assert desk.publisher.acknowledged == [delivery]
        assert desk.admitted == 0

    in_loop(body)


def test_a_full_queue_is_busy_and_the_queue_is_as_before():
    async def body():
        desk = Desk(max_queue=2)
        for name in ("a", "b"):
            desk.request({"prompt": "x", "id": name})
        delivery = desk.request({"prompt": "x", "id": "c"})
        final = await desk.only_error()
        assert final["error"]["code"] == "busy"
        assert final["error"]["retry_after_s"] >= 1
        assert desk.publisher.acknowledged == [delivery]
        assert len(desk.intake.inbox) == 2

    in_loop(body)


def test_a_request_is_acknowledged_only_when_its_answer_was_confirmed():
    async def body():
        desk = Desk()
        desk.publisher.confirms_at_once = False
        delivery = desk.request({"prompt": "x", "id": "q"})
        assert desk.publisher.acknowledged == []
        ticket = desk.intake.inbox.start(0.0)
        desk.intake.finish(ticket, b'{"final": true}')
        await asyncio.sleep(0)
        assert desk.publisher.acknowledged == []
        assert ticket.state is State.CLOSING
        desk.publisher.waiting[0].set_result(None)
        await asyncio.sleep(0)
        assert desk.publisher.acknowledged == [delivery]
        assert ticket.state is State.DONE

    in_loop(body)


def test_a_redelivered_request_is_answered_once_and_both_are_acknowledged():
    async def body():
        desk = Desk()
        request = {"prompt": "x", "id": "q"}
        first = desk.request(request)
        second = desk.request(request, is_redelivered=True)
        assert desk.admitted == 1
        ticket = desk.intake.inbox.start(0.0)
        desk.intake.finish(ticket, b'{"final": true}')
        await asyncio.sleep(0)
        third = desk.request(request, is_redelivered=True)
        await asyncio.sleep(0)
        assert desk.publisher.acknowledged == [first, second, third]
        assert len(desk.publisher.messages) == 1

    in_loop(body)


def test_after_an_outage_only_the_new_delivery_is_acknowledged():
    async def body():
        desk = Desk()
        desk.request({"prompt": "x", "id": "q"}, delivery=(1, 7))
        desk.intake.connection_lost()
        desk.request({"prompt": "x", "id": "q"}, delivery=(2, 3), is_redelivered=True)
        desk.intake.finish(desk.intake.inbox.start(0.0), b'{"final": true}')
        await asyncio.sleep(0)
        assert desk.publisher.acknowledged == [(2, 3)]

    in_loop(body)


def test_an_answer_that_the_broker_refuses_becomes_a_short_error_and_is_acknowledged():
    from edgeagent.errors import AdapterError

    async def body():
        desk = Desk()
        desk.publisher.confirms_at_once = False
        delivery = desk.request({"prompt": "x", "id": "q"})
        desk.intake.finish(desk.intake.inbox.start(0.0), b'{"final": true, "text": "long"}')
        desk.publisher.waiting[0].set_exception(AdapterError("has 9 bytes, the broker takes 5"))
        await asyncio.sleep(0.01)
        error = desk.publisher.messages[-1][1]["error"]
        assert error == {
            "code": "internal",
            "message": "the answer has 9 bytes, the broker takes 5",
        }
        desk.publisher.waiting[1].set_exception(AdapterError("no"))
        await asyncio.sleep(0.01)
        assert desk.publisher.acknowledged == [delivery]

    in_loop(body)


def test_a_queued_query_is_cancelled_and_a_running_one_is_reported():
    async def body():
        desk = Desk()
        desk.request({"prompt": "x", "id": "a"})
        desk.request({"prompt": "x", "id": "b"})
        running = desk.intake.inbox.start(0.0)
        desk.cancel({"id": "b"})
        final = await desk.only_error()
        assert (final["id"], final["error"]["code"]) == ("b", "cancelled")
        desk.cancel({"id": "a"})
        assert desk.cancelled == [running]

    in_loop(body)


def test_a_cancellation_that_names_nothing_or_is_retained_changes_nothing():
    async def body():
        desk = Desk()
        desk.request({"prompt": "x", "id": "a"})
        desk.cancel(b"nonsense")
        desk.cancel({"id": "other"})
        desk.cancel({"id": "a"}, is_retained=True)
        await asyncio.sleep(0)
        assert desk.publisher.messages == []
        assert len(desk.intake.inbox) == 1

    in_loop(body)


def test_a_query_that_waits_too_long_is_answered_with_expired():
    async def body():
        desk = Desk()
        delivery = desk.request({"prompt": "x", "id": "a", "deadline_s": 0.1})
        desk.intake.expire()
        assert desk.publisher.messages == []
        await asyncio.sleep(0.12)
        desk.intake.expire()
        assert (await desk.only_error())["error"]["code"] == "expired"
        assert desk.publisher.acknowledged == [delivery]

    in_loop(body)
