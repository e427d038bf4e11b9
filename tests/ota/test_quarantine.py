import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.quarantine import (
    MAX_ENTRIES,
    MAX_REASON_CHARS,
    GivenUp,
    listed,
    nothing_selected,
    parse,
    selected,
    to_fields,
    with_entry,
)

ONE, TWO, BASE = "ab" * 32, "abababab" + "cd" * 28, "ee" * 32
FIRST = GivenUp(BASE, "1.1.0", 2, "health_logits", "logits differ", 1_700_000_000)
SECOND = GivenUp(ONE, "1.2.0", 3, "soak_crashes", "3 failures", 1_700_000_009)
BOTH = {ONE: FIRST, TWO: SECOND}


def test_what_is_written_is_read_again_in_order():
    read = parse(json.loads(json.dumps(to_fields(BOTH))))
    assert read == BOTH
    assert list(read) == [ONE, TWO]


def test_a_list_has_the_pair_and_the_newest_of_it():
    assert listed(BOTH, 1) == [
        {
            "root": TWO,
            "base": ONE,
            "version": "1.2.0",
            "counter": 3,
            "code": "soak_crashes",
            "reason": "3 failures",
            "time_s": 1_700_000_009,
        }
    ]


def test_the_same_bytes_are_refused_up_to_their_counter():
    assert FIRST.refuses(1) and FIRST.refuses(2)
    assert not FIRST.refuses(3)
    assert GivenUp(reason="not known").refuses(1 << 50)


def test_a_reason_alone_is_an_entry_that_refuses_everything():
    assert parse({ONE: "logits differ"}) == {ONE: GivenUp(reason="logits differ")}


@pytest.mark.parametrize("fields", [None, [], "x", 3, True])
def test_what_is_no_quarantine_is_none(fields):
    assert parse(fields) is None


@pytest.mark.parametrize(
    "entry",
    [{}, {"base": "../etc"}, {"counter": True}, {"counter": -1}, {"time_s": "now"}, {"code": 7}],
)
def test_a_field_that_is_damaged_is_not_known(entry):
    assert parse({ONE: entry}) == {ONE: GivenUp()}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
ENTRY = st.dictionaries(st.sampled_from(list(to_fields(BOTH)[ONE])), JSON)


@given(st.dictionaries(st.text(), ENTRY | JSON))
def test_any_json_is_read_into_bounded_entries(fields):
    read = parse(fields)
    assert read is not None
    assert parse(to_fields(read)) == read
    for entry in read.values():
        texts = entry.version + entry.code + entry.reason
        assert len(texts) <= 3 * MAX_REASON_CHARS
        assert entry.refuses(0)


def test_the_oldest_are_forgotten_and_a_second_failure_makes_an_entry_the_newest():
    quarantine = {}
    for k in range(MAX_ENTRIES + 1):
        quarantine = with_entry(quarantine, f"{k:064x}", FIRST)
    assert len(quarantine) == MAX_ENTRIES
    assert f"{0:064x}" not in quarantine
    again = with_entry(quarantine, f"{5:064x}", SECOND)
    assert list(again)[-1] == f"{5:064x}" and again[f"{5:064x}"] == SECOND


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("all", [ONE, TWO]),
        ("1.1.0", [ONE]),
        (TWO, [TWO]),
        (ONE[:16], [ONE]),
        (ONE[:8], [ONE, TWO]),
        (ONE[:7], []),
        ("1.1", []),
        ("", []),
        (BASE, []),
    ],
)
def test_models_are_named_by_version_root_or_all(what, found):
    assert selected(BOTH, what) == found


def test_a_version_that_is_not_known_is_not_chosen_by_no_name():
    assert selected({ONE: GivenUp()}, "") == []


def test_who_names_nothing_is_told_what_there_is():
    assert nothing_selected({}, "all") == "all: nothing is in quarantine here"
    said = nothing_selected(BOTH, "2.0.0")
    assert said.endswith(f"1.1.0 ({ONE[:16]}), 1.2.0 ({TWO[:16]})")
