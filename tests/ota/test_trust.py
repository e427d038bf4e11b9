import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.errors import (
    AgentTooOld,
    Downgrade,
    NoPayload,
    NoRoom,
    Quarantined,
    UntrustedMetadata,
    WrongHardware,
)
from ota.quarantine import GivenUp
from ota.trust import (
    Device,
    Offer,
    Payload,
    accept,
    choose_payload,
    parse_channel,
    parse_offer,
    parse_payload,
)

OLD, NEW, OTHER = "aa" * 32, "bb" * 32, "cc" * 32
OFFER = Offer("tiny", "1.1.0", 2, NEW, 1000, 900, (), "0")
DEVICE = Device("pi5", "0.1.0", OLD, 1, {})
GIVEN_UP = GivenUp(OLD, "1.1.0", 2, "health_logits", "logits differ", 1_700_000_000)
UNKNOWN = GivenUp(reason="logits differ")
FULL = Payload("full", 900, "11" * 32, None, NEW, 65536, "22" * 32, 1000)
DELTA = Payload("delta", 90, "33" * 32, OLD, NEW, 65536, "44" * 32, 500)


def test_a_newer_release_is_accepted():
    assert accept(OFFER, DEVICE)


def test_what_is_running_is_not_installed_again():
    running = dataclasses.replace(DEVICE, active_root=NEW, counter=2)
    assert not accept(OFFER, running)


@pytest.mark.parametrize(
    ("offer", "device", "error", "says"),
    [
        ({"hardware": ("pi4",)}, {}, WrongHardware, "expected hardware pi4, this is 'pi5'"),
        ({"min_agent": "0.2"}, {}, AgentTooOld, "upgrade the agent"),
        ({}, {"counter": 2}, Downgrade, "counter above 2, got 2"),
        ({}, {"counter": 9}, Downgrade, "counter above 9, got 2"),
        ({}, {"counter": 2, "newest": OTHER}, Downgrade, "counter above 2, got 2"),
        ({}, {"counter": 3, "newest": NEW}, Downgrade, "counter above 3, got 2"),
        ({}, {"quarantine": {NEW: GIVEN_UP}}, Quarantined, "logits differ"),
        ({"counter": 1}, {"quarantine": {NEW: GIVEN_UP}}, Quarantined, "forgive bbbbbbbbbbbbbbbb"),
        ({"counter": 9}, {"quarantine": {NEW: UNKNOWN}}, Quarantined, "publish a newer release"),
    ],
)
def test_a_release_that_is_not_for_this_device_is_refused(offer, device, error, says):
    with pytest.raises(error, match=says):
        accept(dataclasses.replace(OFFER, **offer), dataclasses.replace(DEVICE, **device))


def test_the_same_bytes_released_again_with_a_higher_counter_get_another_trial():
    device = dataclasses.replace(DEVICE, quarantine={NEW: GIVEN_UP})
    assert accept(dataclasses.replace(OFFER, counter=3), device)


def test_the_very_release_that_was_committed_last_is_no_step_back():
    """It was given up, and somebody lifted that; or its slot was lost."""
    assert accept(OFFER, dataclasses.replace(DEVICE, counter=2, newest=NEW))


def test_a_named_board_and_a_new_enough_agent_pass():
    offer = dataclasses.replace(OFFER, hardware=("pi4", "pi5"), min_agent="0.1")
    assert accept(offer, DEVICE)
    assert accept(offer, dataclasses.replace(DEVICE, agent_version="0.1.0.dev3"))


def test_the_smallest_payload_from_our_base_is_chosen():
    assert choose_payload(OFFER, [FULL, DELTA], OLD, 10_000) is DELTA


def test_without_a_delta_from_our_base_the_full_image_is_chosen():
    assert choose_payload(OFFER, [FULL, DELTA], OTHER, 10_000) is FULL


def test_a_payload_of_another_result_is_never_chosen():
    with pytest.raises(NoPayload, match="edgeota delta"):
        choose_payload(OFFER, [dataclasses.replace(DELTA, root=OTHER)], OLD, 10_000)


def test_too_little_room_names_what_is_needed():
    with pytest.raises(NoRoom, match="expected 590 bytes.*got 589"):
        choose_payload(OFFER, [FULL, DELTA], OLD, 589)


GOOD_OFFER = {
    "name": "tiny",
    "version": "1.1.0",
    "counter": 2,
    "root": NEW,
    "bytes": 1000,
    "full_bytes": 900,
    "hardware": [],
    "min_agent": "0",
}
GOOD_PAYLOAD = {
    "base": None,
    "root": NEW,
    "chunk_bytes": 65536,
    "chunks_sha256": "22" * 32,
    "written_bytes": 1000,
}


def test_custom_fields_become_an_offer_and_a_payload():
    assert parse_offer(GOOD_OFFER, "tiny", "1.1.0") == OFFER
    assert parse_payload(GOOD_PAYLOAD, "full", 900, "11" * 32) == FULL


@pytest.mark.parametrize("key", ["counter", "root", "bytes", "full_bytes", "name", "version"])
def test_an_offer_without_a_field_is_refused(key):
    fields = {k: v for k, v in GOOD_OFFER.items() if k != key}
    with pytest.raises(UntrustedMetadata):
        parse_offer(fields, "tiny", "1.1.0")


@pytest.mark.parametrize("key", ["root", "chunk_bytes", "chunks_sha256", "written_bytes"])
def test_a_payload_without_a_field_is_refused(key):
    fields = {k: v for k, v in GOOD_PAYLOAD.items() if k != key}
    with pytest.raises(UntrustedMetadata):
        parse_payload(fields, "full", 900, "11" * 32)


@pytest.mark.parametrize(("length", "chunk"), [(0, 65536), (1 << 40, 65536), (9, 1), (9, 1 << 20)])
def test_a_payload_beyond_the_limits_is_refused(length, chunk):
    with pytest.raises(UntrustedMetadata):
        parse_payload(GOOD_PAYLOAD | {"chunk_bytes": chunk}, "full", length, "11" * 32)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(json_values, st.sampled_from(sorted(GOOD_OFFER)), json_values)
def test_custom_fields_of_any_shape_are_parsed_or_refused(anything, key, value):
    for custom in (anything, GOOD_OFFER | {key: value}, GOOD_PAYLOAD | {key: value}):
        for parse in (
            lambda c: parse_channel(c, "tiny"),
            lambda c: parse_offer(c, "tiny", "1.1.0"),
            lambda c: parse_payload(c, "full", 900, "11" * 32),
        ):
            with contextlib.suppress(UntrustedMetadata):
                parse(custom)
