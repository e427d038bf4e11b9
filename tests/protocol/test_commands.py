import json

import pytest

from edgeagent.errors import ProtocolError
from edgeagent.protocol.commands import (
    Cancel,
    UpdateRequest,
    parse_cancel,
    parse_update_request,
)
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
    assert parse_update_request(incoming({"action": "check"})) == UpdateRequest("check")
    request = {"action": "install", "transaction": "t"}
    assert parse_update_request(incoming(request)) == UpdateRequest("install", "t")
    request = {"action": "forgive", "model": "1.1.0", "transaction": "t"}
    assert parse_update_request(incoming(request)) == UpdateRequest("forgive", "t", "1.1.0")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "action: expected one of check, install, cancel, rollback, status, history, report, "),
        ({"action": "downgrade"}, 'got "downgrade"'),
        ({"action": "check", "force": True}, 'unknown field "force"'),
        ({"action": "check", "transaction": 1}, "transaction: expected"),
        ({"action": "check", "model": "all"}, 'unknown field "model"; known are action, transact'),
        ({"action": "forgive"}, "model: expected all, or a version or root"),
        ({"action": "forgive", "model": ""}, "model: expected"),
        ({"action": "forgive", "model": "x" * 65}, "model: expected"),
        ({"action": "forgive", "model": ["all"]}, "got a list"),
        ({"action": ["forgive"]}, "action: expected one of check"),
    ],
)
def test_a_bad_request_for_an_update_gets_one_clear_line(body, text):
    with pytest.raises(ProtocolError) as refused:
        parse_update_request(incoming(body))
    assert text in str(refused.value)
