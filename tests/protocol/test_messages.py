import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeagent.errors import ProtocolError
from edgeagent.protocol.messages import (
    FIELDS,
    MAX_CORRELATION_BYTES,
    MAX_MESSAGES,
    NUMBERS,
    Bounds,
    Incoming,
    Query,
    parse_body,
    parse_query,
    reply_address,
)
from edgeagent.protocol.topics import REPLY_PREFIXES, Topics

TOPICS = Topics("n1")
BOUNDS = Bounds()


def incoming(payload, **more):
    if not isinstance(payload, bytes):
        payload = json.dumps(payload).encode()
    return Incoming(TOPICS.query_request, payload, len(payload), **more)


def read(message, bounds=BOUNDS):
    body = parse_body(message, bounds)
    address, problem = reply_address(message, body, TOPICS, REPLY_PREFIXES, lambda: "made")
    if problem:
        raise problem
    return parse_query(message, body, address, bounds)


def refusal(message, bounds=BOUNDS):
    with pytest.raises(ProtocolError) as refused:
        read(message, bounds)
    text = str(refused.value)
    assert "\n" not in text
    assert len(text) < 400
    return refused.value.code, text


# -- what is accepted -----------------------------------------------------------------------------


def test_plain_text_is_one_user_message():
    query = read(incoming(b"  turn on the light\n"))
    assert query.messages == (("user", "  turn on the light\n"),)
    assert query.prompt is None
    assert query.id == "made"
    assert not query.address.is_named


def test_defaults_are_those_of_the_contract():
    query = read(incoming({"prompt": "x"}))
    assert query.params == {
        "max_tokens": 128,
        "temperature": 0.0,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 0,
        "stop": [],
        "zero_skip": True,
    }
    assert query.stream
    assert query.deadline_s == 120.0


def test_a_full_query_reaches_the_engine_as_it_was_meant():
    query = read(
        incoming(
            {
                "id": "q-1",
                "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "é"}],
                "max_tokens": 5,
                "temperature": 1,
                "top_k": 0,
                "top_p": 1,
                "min_p": 0.1,
                "repetition_penalty": 1.5,
                "seed": 2**63 - 1,
                "stop": ["\n", "END"],
                "stream": False,
                "zero_skip": False,
                "deadline_s": 0.5,
                "transaction": "t",
                "reply_to": "reply/me",
            }
        )
    )
    assert query.engine_request() == {
        "op": "generate",
        "id": "q-1",
        "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "é"}],
        "params": {
            "max_tokens": 5,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.1,
            "repetition_penalty": 1.5,
            "seed": 2**63 - 1,
            "stop": ["\n", "END"],
            "zero_skip": False,
        },
    }
    assert (query.deadline_s, query.stream) == (0.5, False)
    assert (query.address.topic, query.address.transaction) == ("reply/me", "t")


def test_a_prompt_goes_to_the_engine_as_a_prompt():
    assert read(incoming({"prompt": "Once"})).engine_request()["prompt"] == "Once"


def test_the_operator_sets_defaults_and_lowers_bounds():
    bounds = Bounds(default_max_tokens=7, default_deadline_s=9, max_deadline_s=20, zero_skip=False)
    query = read(incoming({"prompt": "x"}), bounds)
    assert query.params["max_tokens"] == 7
    assert query.params["zero_skip"] is False
    assert query.deadline_s == 9
    assert read(incoming({"prompt": "x", "deadline_s": 3000}), bounds).deadline_s == 20


def test_message_expiry_lowers_the_deadline_and_never_raises_it():
    assert read(incoming({"prompt": "x"}, expiry_s=3)).deadline_s == 3
    assert read(incoming({"prompt": "x", "deadline_s": 2}, expiry_s=3)).deadline_s == 2
    assert read(incoming({"prompt": "x"}, expiry_s=0)).deadline_s == 0


def test_response_topic_and_correlation_data_are_the_address():
    query = read(incoming(b"x", response_topic="reply/a", correlation=b"\x00\xff"))
    assert (query.address.topic, query.address.correlation) == ("reply/a", b"\x00\xff")
    assert query.address.is_named


def test_without_a_topic_the_answer_goes_below_the_node():
    assert read(incoming({"prompt": "x", "id": "q"})).address.topic == TOPICS.query_reply("q")


@pytest.mark.parametrize("name", NUMBERS)
def test_both_ends_of_every_range_are_accepted(name):
    rule = NUMBERS[name]
    for value in (rule.low, rule.high):
        value = int(value) if rule.is_integer else value
        read(incoming({"prompt": "x", name: value}))


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"{", "payload is not JSON"),
        (b'{"prompt": "x"', "payload is not JSON"),
        (b' {"prompt" "x"}', "text that begins with '{' must be JSON"),
        (b"", "payload is empty"),
        (b" \n ", "payload is empty"),
        (b"\xff\xfe", "payload is not UTF-8: byte 0"),
        (b'{"prompt": "\xff"}', "payload is not UTF-8: byte 12"),
        (b'{"prompt": "\\ud800"}', "half a surrogate pair"),
        (b'{"prompt": "a", "prompt": "b"}', 'field "prompt" is given twice'),
        (b'{"prompt": "x", "top_p": NaN}', "NaN is not a JSON number"),
        (b'{"prompt": "x", "top_p": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"prompt": "x", "top_p": 1e999}', "top_p: expected a number from 0 to 1"),
        (b'{"a": ' * 30000 + b"1" + b"}" * 30000, "too large"),
        (b'{"a":' + b"[" * 60000, "nested too deep"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "not JSON that we read"),
        ({}, "exactly one of prompt and messages, got neither"),
        ({"prompt": "x", "messages": []}, "exactly one of prompt and messages, got both"),
        ({"prompt": ""}, 'prompt: expected a text, got ""'),
        ({"prompt": 1}, "prompt: expected a text, got 1"),
        ({"promt": "x"}, 'unknown field "promt"; known are deadline_s, id,'),
        ({"prompt": "x", "a": 1, "b": 2}, 'unknown fields "a", "b"'),
        ({"messages": {}}, "messages: expected a list of 1 to 64 objects, got an object of 0"),
        ({"messages": []}, "messages: expected a list"),
        ({"messages": ["x"]}, 'messages[0]: expected {"role", "content"}, got "x"'),
        ({"messages": [{"role": "user"}]}, 'messages[0]: expected {"role", "content"}'),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            'messages[0].role: expected one of system, user, assistant, got "tool"',
        ),
        ({"messages": [{"role": [], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content: expected a text"),
        ({"prompt": "x", "id": ""}, "id: expected 1 to 64 of"),
        ({"prompt": "x", "id": "a/b"}, "id: expected"),
        ({"prompt": "x", "id": "a" * 65}, "id: expected"),
        ({"prompt": "x", "id": 5}, "id: expected"),
        ({"prompt": "x", "id": "é"}, "id: expected"),
        ({"prompt": "x", "id": "a\n"}, "id: expected"),
        ({"prompt": "x", "transaction": "t" * 65}, "transaction: expected at most 64"),
        ({"prompt": "x", "transaction": None}, "transaction: expected at most 64"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens: expected an integer from 1 to 4096"),
        ({"prompt": "x", "max_tokens": 1.0}, "max_tokens: expected an integer"),
        ({"prompt": "x", "temperature": "hot"}, "temperature: expected a number from 0 to 2"),
        ({"prompt": "x", "stop": "END"}, "stop: expected up to 8 texts"),
        ({"prompt": "x", "stop": [""]}, "stop: expected up to 8 texts"),
        ({"prompt": "x", "stop": ["a"] * 9}, "stop: expected up to 8 texts"),
        ({"prompt": "x", "stop": ["a" * 65]}, "stop: expected up to 8 texts"),
        ({"prompt": "x", "stream": 1}, "stream: expected true or false, got 1"),
        ({"prompt": "x", "zero_skip": None}, "zero_skip: expected true or false, got null"),
        ({"prompt": "x", "reply_to": 5}, "reply_to: expected a topic, got 5"),
    ],
)
def test_a_bad_query_gets_one_clear_line(payload, text):
    code, line = refusal(incoming(payload))
    assert text in line or (code, text) == ("too_large", "too large")


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_beyond_their_range_are_refused(name):
    rule = NUMBERS[name]
    step = 1 if rule.is_integer else 0.01
    for value in (rule.low - step, int(rule.high) + 1):
        code, line = refusal(incoming({"prompt": "x", name: value}))
        assert code == "bad_request"
        assert line.startswith(f"{name}: expected ")


def test_too_many_messages_are_refused():
    turn = {"role": "user", "content": "x"}
    read(incoming({"messages": [turn] * MAX_MESSAGES}))
    assert "1 to 64" in refusal(incoming({"messages": [turn] * (MAX_MESSAGES + 1)}))[1]


def test_a_large_query_is_refused_by_its_size_alone():
    message = Incoming(TOPICS.query_request, b"", 10_000_000)
    code, line = refusal(message)
    assert code == "too_large"
    assert line == "query has 10000000 bytes, at most 65536 are allowed"


@pytest.mark.parametrize("topic", ["reply/#", "$SYS/x", "homeassistant/x"])
def test_an_error_about_the_reply_topic_goes_to_the_node_itself(topic):
    for message in (
        incoming({"id": "q", "prompt": "x"}, response_topic=topic),
        incoming({"id": "q", "prompt": "x", "reply_to": topic}),
    ):
        body = parse_body(message, BOUNDS)
        address, problem = reply_address(message, body, TOPICS, REPLY_PREFIXES, lambda: "made")
        assert address.topic == TOPICS.query_reply("q")
        assert problem.code == "forbidden_reply_topic"


def test_two_addresses_are_one_too_many():
    message = incoming({"prompt": "x", "reply_to": "reply/a"}, response_topic="reply/b")
    assert "both given" in refusal(message)[1]


def test_correlation_data_is_bounded():
    read(incoming(b"x", correlation=b"c" * MAX_CORRELATION_BYTES))
    message = incoming(b"x", correlation=b"c" * (MAX_CORRELATION_BYTES + 1))
    assert "at most 256" in refusal(message)[1]


def test_an_unreadable_request_still_has_an_address():
    message = incoming(b"{", response_topic="reply/a", correlation=b"c")
    address, problem = reply_address(message, {}, TOPICS, REPLY_PREFIXES, lambda: "made")
    assert problem is None
    assert (address.topic, address.correlation, address.query_id) == ("reply/a", b"c", "made")


# -- fuzz -----------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
QUERIES = st.dictionaries(st.sampled_from(sorted(FIELDS)), JSON, max_size=6)


def survives(message):
    """Either a query within all bounds or one line of refusal; never anything else."""
    try:
        query = read(message)
    except ProtocolError as err:
        assert "\n" not in str(err)
        assert err.code in {"bad_request", "too_large", "forbidden_reply_topic"}
        return
    assert isinstance(query, Query)
    json.dumps(query.engine_request(), allow_nan=False).encode()
    for name, rule in NUMBERS.items():
        if name != "deadline_s":
            assert rule.low <= query.params[name] <= rule.high


@given(st.binary(max_size=200))
@example(b"{}")
@example(b'{"prompt":"\\u0000"}')
def test_any_bytes_are_a_query_or_one_clear_line(payload):
    survives(incoming(payload))


@given(st.binary(max_size=60))
def test_any_bytes_after_a_brace_are_a_query_or_one_clear_line(payload):
    survives(incoming(b"{" + payload))


@given(QUERIES)
def test_any_values_in_known_fields_are_a_query_or_one_clear_line(body):
    survives(incoming(json.dumps(body).encode()))


@given(QUERIES, st.text(max_size=20), st.binary(max_size=300))
def test_any_properties_are_a_query_or_one_clear_line(body, topic, correlation):
    message = incoming(
        json.dumps(body).encode(), response_topic=topic, correlation=correlation, expiry_s=1
    )
    survives(message)
