import json
import queue

import pytest

from ota.fleet.responder import Responder
from ota.mqtt import Broker, Link
from ota.wire import Request, decode_response, encode_request, request_topic

REPLY = "ota/v1/tests/reply/me"

pytestmark = pytest.mark.system


@pytest.fixture
def ask(mosquitto, tmp_path):
    """Publish a payload to the responder and return the next answer."""
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "x").write_bytes(b"0123456789")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "root.pem").write_bytes(b"secret")
    broker = Broker(mosquitto.host, mosquitto.port)
    responder = Responder(broker, "tests", tmp_path)
    responder.open()
    answers = queue.SimpleQueue()
    link = Link(broker, "asker", ["ota/v1/tests/reply/#", "elsewhere"], answers.put)
    link.open()

    def ask(*payloads):
        for payload in payloads:
            link.publish(request_topic("tests"), payload, qos=1).wait_for_publish(5)
        return decode_response(answers.get(timeout=10).payload)

    ask.responder = responder
    yield ask
    link.close()
    responder.close()


def request(name="targets/x", offset=2, length=3, reply_to=REPLY):
    return encode_request(Request("r1", name, offset, length, reply_to))


@pytest.mark.parametrize(
    ("asked", "status", "data"),
    [
        (request(), 200, b"234"),
        (request(offset=8, length=100), 200, b"89"),
        (request(offset=10), 200, b""),
        (request(offset=11), 416, b""),
        (request(name="targets/y"), 404, b""),
        (request(name="targets/x/y"), 404, b""),
    ],
)
def test_every_request_gets_its_status(ask, asked, status, data):
    answer = ask(asked)
    assert (answer.id, answer.status, answer.data) == ("r1", status, data)


def test_what_is_no_request_or_leads_out_is_not_answered(ask):
    fields = json.loads(request())
    bad = [
        b"",
        b"{",
        *(
            json.dumps(fields | {"object": name}).encode()
            for name in ("keys/root.pem", "targets/../keys/root.pem", "/etc/passwd", "metadata")
        ),
        *(request(reply_to=topic) for topic in ("elsewhere", "ota/v1/tests/get", "ota/v1/tests/#")),
    ]
    assert ask(*bad, request()).status == 200  # the first answer is the one to the last request
    assert ask.responder.n_refused == len(bad)
    assert ask.responder.n_answers == 1
