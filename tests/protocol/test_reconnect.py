import pytest

from edgeagent.protocol.reconnect import (
    MAX_DELAY_S,
    SILENT_CLOSES,
    STABLE_S,
    V5,
    V311,
    Backoff,
    VersionChoice,
)


def test_delays_double_up_to_a_cap():
    backoff = Backoff()
    delays = [backoff.next_s(0.0, 1.0) for _ in range(12)]
    assert delays[:4] == [0.5, 1.0, 2.0, 4.0]
    assert delays[-1] == MAX_DELAY_S
    assert Backoff(failures=10_000).next_s(0.0, 1.0) == MAX_DELAY_S


def test_chance_takes_up_to_half_of_a_delay():
    assert Backoff().next_s(0.0, 0.0) == 0.25


def test_only_a_connection_that_lasted_resets_the_delay():
    backoff = Backoff(failures=5)
    assert backoff.next_s(STABLE_S - 1, 1.0) == 16.0
    assert backoff.next_s(STABLE_S, 1.0) == 0.5


def test_mqtt_5_comes_first_and_3_1_1_when_it_is_refused():
    choice = VersionChoice()
    assert choice.version == V5
    assert choice.refused()
    assert choice.version == V311
    assert not choice.refused()


@pytest.mark.parametrize("wanted", [V5, V311])
def test_a_version_that_the_operator_chose_is_kept(wanted):
    choice = VersionChoice(wanted)
    assert not choice.refused()
    for _ in range(10):
        choice.closed_silently()
    assert choice.version == wanted


def test_silent_closes_try_the_other_version_in_turn():
    choice = VersionChoice()
    seen = []
    for _ in range(3 * SILENT_CLOSES):
        choice.closed_silently()
        seen.append(choice.version)
    assert seen == [V5] * 2 + [V311] * 3 + [V5] * 3 + [V311]


def test_a_broker_that_restarts_is_not_mistaken_for_3_1_1():
    choice = VersionChoice()
    choice.connected()
    for _ in range(10):
        choice.closed_silently()
    assert choice.version == V5


def test_no_answer_at_all_tries_3_1_1_at_once_and_then_5_after_a_pause():
    choice = VersionChoice()
    assert choice.unanswered()
    assert choice.version == V311
    assert not choice.unanswered()
    assert choice.version == V5
    choice.connected()
    assert not choice.unanswered()
    assert choice.version == V5
