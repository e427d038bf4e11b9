import json

import pytest

from edgeagent.errors import ProtocolError
from edgeagent.protocol.commands import Cancel, parse_cancel, parse_update_request
from edgeagent.protocol.messages import Incoming


def incoming(body, **more):
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Incoming("topic", payload, len(payload), **more)


def test_a_cancellation_names_a_query_by_id_or_by_correlation_data():
    assert parse_cancel(incoming({"id": "q"})) == Cancel("q", None, None)
    message = incoming(b"", correlation=b"c", response_topic="reply/a")
    assert parse_cancel(message) == Cancel(None, b"c", "reply/a")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "needs Correlation Data or an id"),
        (b"q1", "payload is not JSON"),
        ({}, 'a cancellation is {"id"}'),
        ({"id": "q", "reason": "x"}, "nothing else"),
        ({"id": "+"}, "id: expected"),
        (b"[]", "payload must be a JSON object, got a list"),
        (b"null", "got null"),
        (b"true", "got a truth value"),
        (b'"x"', "got a text"),
        (b"1", "got a number"),
    ],
)
def test_a_bad_cancellation_gets_one_clear_line(body, text):
    with pytest.raises(ProtocolError) as refused:
        parse_cancel(incoming(body))
    assert text in str(refused.value)


def test_an_update_is_checked_for_or_installed():
    assert parse_update_request(incoming({"action": "check"})) == ("check", None)
    request = {"action": "install", "transaction": "t"}
    assert parse_update_request(incoming(request)) == ("install", "t")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "action: expected one of check, install, cancel, rollback, status, history, got null"),
        ({"action": "downgrade"}, 'got "downgrade"'),
        ({"action": "check", "force": True}, 'unknown field "force"'),
        ({"action": "check", "transaction": 1}, "transaction: expected"),
    ],
)
def test_a_bad_request_for_an_update_gets_one_clear_line(body, text):
    with pytest.raises(ProtocolError) as refused:
        parse_update_request(incoming(body))
    assert text in str(refused.value)
