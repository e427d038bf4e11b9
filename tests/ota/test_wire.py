import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.errors import WireError
from ota.wire import (
    MAX_CHUNK_BYTES,
    MAX_NOTICE_BYTES,
    Request,
    Response,
    decode_request,
    decode_response,
    encode_notice,
    encode_request,
    encode_response,
    is_object,
    is_reply_topic,
    ranges,
    reply_topic,
)

REQUEST = Request("a-1", "targets/models/x/1.0.0/full.etd", 65536, 65536, "ota/v1/r/reply/dev1")


def test_a_request_survives_the_wire():
    assert decode_request(encode_request(REQUEST)) == REQUEST


@given(st.binary(max_size=200), st.integers(0, 1 << 40))
def test_a_response_survives_the_wire(data, offset):
    response = Response("a-1", 200, offset, 1 << 40, data)
    assert decode_response(encode_response(response)) == response


def test_the_bytes_of_a_request_are_those_of_the_document():
    assert encode_request(REQUEST) == (
        b'{"id":"a-1","object":"targets/models/x/1.0.0/full.etd","offset":65536,'
        b'"length":65536,"reply_to":"ota/v1/r/reply/dev1"}'
    )


@pytest.mark.parametrize(
    "name",
    [
        "",
        "metadata",
        "metadata/",
        "metadata/..",
        "metadata/../keys/root.pem",
        "metadata/./x",
        "targets/.hidden",
        "/etc/passwd",
        "keys/root.pem",
        "repository.json",
        "targets//x",
        "targets/x\0",
        "targets/x\n",
        "targets/ü",
        "targets/" + "a" * 300,
        "targets/" + "a/" * 9 + "b",
        "targets\\x",
    ],
)
def test_a_name_that_could_leave_the_repository_is_no_object(name):
    assert not is_object(name)


@pytest.mark.parametrize("name", ["metadata/1.root.json", REQUEST.object])
def test_names_that_repositories_have_are_objects(name):
    assert is_object(name)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "x",
        "ota/v1/r/reply/",
        "ota/v1/r/reply/a/b",
        "ota/v1/r/reply/+",
        "ota/v1/r/reply/#",
        "ota/v1/other/reply/a",
        "ota/v1/r/get",
        "$SYS/x",
    ],
)
def test_answers_go_only_below_the_reply_prefix(topic):
    assert not is_reply_topic(topic, "r")


def test_a_node_may_have_its_answers():
    assert is_reply_topic(reply_topic("r", "dev1"), "r")


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"id": "a" * 33},
        {"id": 1},
        {"object": "keys/root.pem"},
        {"offset": -1},
        {"offset": 1.5},
        {"offset": True},
        {"length": MAX_CHUNK_BYTES + 1},
        {"reply_to": None},
        {"reply_to": "x" * 257},
    ],
)
def test_a_request_that_breaks_a_rule_is_refused(change):
    fields = json.loads(encode_request(REQUEST)) | change
    with pytest.raises(WireError, match="expected"):
        decode_request(json.dumps(fields).encode())


@given(st.binary(max_size=2000))
def test_any_bytes_are_decoded_or_refused(payload):
    for decode in (decode_request, decode_response):
        with contextlib.suppress(WireError):
            decode(payload)


@pytest.mark.parametrize("payload", [b"[" * 1000, b"{}" * 1000, b"1\n", b"null\n"])
def test_json_that_is_no_message_is_refused(payload):
    for decode in (decode_request, decode_response):
        with pytest.raises(WireError):
            decode(payload)


def test_a_response_that_is_too_long_is_refused():
    response = Response("a", 200, 0, 1, bytes(MAX_CHUNK_BYTES + 1))
    with pytest.raises(WireError, match="up to"):
        decode_response(encode_response(response))


@given(st.integers(0, 10_000), st.integers(1, 3000))
def test_ranges_cover_a_length_exactly_once(length, chunk):
    cut = ranges(length, chunk)
    assert [offset for offset, _ in cut] == list(range(0, length, chunk))
    assert sum(n for _, n in cut) == length
    assert all(n == chunk for _, n in cut[:-1])


def test_a_notice_names_as_many_models_as_fit():
    models = {f"model-{k:03}": "1.0.0" for k in range(100)}
    notice = encode_notice(7, models)
    assert len(notice) <= MAX_NOTICE_BYTES
    named = json.loads(notice)["models"]
    assert len(named) > 30 and named.items() <= models.items()
