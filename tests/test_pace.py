import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.pace import MAX_REST_S, MIN_DUTY, check_duty, rest_s


@given(st.floats(0, 100), st.floats(MIN_DUTY, 1))
def test_work_and_rest_keep_the_share(busy, duty):
    rest = rest_s(busy, duty)
    assert 0 <= rest <= MAX_REST_S
    if rest < MAX_REST_S:
        assert busy == pytest.approx(duty * (busy + rest))


@pytest.mark.parametrize("duty", [0, MIN_DUTY / 2, 1.01, float("nan")])
def test_a_duty_outside_is_refused(duty):
    with pytest.raises(ValueError, match=r"duty: expected 0.05 to 1, got "):
        check_duty(duty)
