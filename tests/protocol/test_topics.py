import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.errors import ProtocolError
from edgeagent.protocol.topics import (
    MAX_TOPIC_CHARS,
    REPLY_PREFIXES,
    Topics,
    check_reply_topic,
    check_topic_name,
    update_notice,
)

TOPICS = Topics("kitchen")
ALLOWED = (TOPICS.query_replies, *REPLY_PREFIXES)


def test_every_topic_is_below_the_node_and_no_two_are_equal():
    names = [name for name, value in vars(Topics).items() if isinstance(value, property)]
    values = [getattr(TOPICS, name) for name in names]
    assert len(values) == 12
    assert len(set(values)) == len(values)
    assert all(value.startswith("edge/v1/kitchen/") for value in values)


def test_topics_have_few_enough_levels_for_aws_iot_core():
    assert TOPICS.query_reply("q" * 64).count("/") <= 7


def test_the_prefix_can_be_another():
    assert Topics("a", "home/llm").state == "home/llm/a/state"
    assert update_notice("main") == "ota/v1/main/notice"


@pytest.mark.parametrize(
    ("topic", "why"),
    [
        ("", "is empty"),
        ("$SYS/broker", "starts with '$'"),
        ("$share/g/reply/x", "starts with '$'"),
        ("reply/+", "wildcard"),
        ("reply/#", "wildcard"),
        ("reply/a\x00b", "control character"),
        ("reply/a\nb", "control character"),
        ("reply//x", "empty level"),
        ("reply/x/", "empty level"),
        ("/reply/x", "empty level"),
        ("r" * (MAX_TOPIC_CHARS + 1), f"at most {MAX_TOPIC_CHARS}"),
    ],
)
def test_a_name_that_must_not_be_published_to_is_refused(topic, why):
    with pytest.raises(ProtocolError, match=r".*") as refused:
        check_topic_name(topic)
    assert why in str(refused.value)
    assert refused.value.code == "forbidden_reply_topic"


@pytest.mark.parametrize(
    "topic",
    [
        "homeassistant/light/kitchen/set",
        "edge/v1/other/query/request",
        "edge/v1/other/query/reply/q1",
        "edge/v1/kitchen/state",
        "edge/v1/kitchen/query/request",
        "replyx/y",
        "reply",
        "ota/v1/main/notice",
    ],
)
def test_a_foreign_topic_is_refused(topic):
    with pytest.raises(ProtocolError, match="is not below one of") as refused:
        check_reply_topic(topic, ALLOWED)
    assert refused.value.code == "forbidden_reply_topic"


@pytest.mark.parametrize(
    "topic", ["reply/me", "edge/v1/reply/me/1", "edge/v1/kitchen/query/reply/q1"]
)
def test_an_allowed_topic_is_returned(topic):
    assert check_reply_topic(topic, ALLOWED) == topic


@given(st.text(max_size=40))
def test_what_passes_is_always_below_an_allowed_prefix_and_a_plain_name(text):
    try:
        topic = check_reply_topic(text, ALLOWED)
    except ProtocolError:
        return
    assert topic.startswith(ALLOWED)
    assert not set("+#\x00") & set(topic)
