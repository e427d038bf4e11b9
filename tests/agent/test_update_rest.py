import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.update_rest import GATE_CAP_S, NOTHING_LEFT_S, RETRY_S, Rests

POLL_S = 1000.0
GATE = {"stage": "stage", "reason": "temperature", "detail": "hot"}


def failed(retry_s, **more):
    return {"event": "failed", "code": "x", "message": "y", "retry_after_s": retry_s, **more}


def test_a_failure_that_trying_again_cannot_help_is_looked_at_once_a_day():
    rest = Rests(POLL_S).failed(failed(None), 0.5)
    assert 0.75 * NOTHING_LEFT_S <= rest.seconds <= NOTHING_LEFT_S
    assert rest.gate is None
    assert Rests(7 * NOTHING_LEFT_S).failed(failed(None), 0.0).seconds == 7 * NOTHING_LEFT_S


@pytest.mark.parametrize(
    ("asked", "got"), [(0, RETRY_S[0]), (100, 100.0), (10**9, RETRY_S[1]), (-5, RETRY_S[0])]
)
def test_what_is_asked_for_is_bounded(asked, got):
    assert Rests(POLL_S).failed(failed(asked), 0.0).seconds == got


def test_a_gate_is_watched_and_believed_more_slowly_each_time_until_something_else_happens():
    rests = Rests(POLL_S)
    waits = [rests.failed(failed(60, gate=GATE), 0.0).gate.least_s for _ in range(12)]
    assert waits == sorted(waits)
    assert waits[0] < 5 < waits[-1] <= GATE_CAP_S
    assert rests.failed(failed(60, gate=GATE), 0.0).seconds == POLL_S  # the agent watches
    rests.settled()
    assert rests.failed(failed(60, gate=GATE), 0.0).gate.least_s == waits[0]


@given(
    st.dictionaries(
        st.sampled_from(["retry_after_s", "gate", "code"]),
        st.none() | st.booleans() | st.integers() | st.text() | st.just({}) | st.just([1]),
    )
)
def test_whatever_an_updater_says_the_rest_is_bounded(message):
    rest = Rests(POLL_S).failed(message, 0.99)
    assert RETRY_S[0] <= rest.seconds <= max(RETRY_S[1], POLL_S)
