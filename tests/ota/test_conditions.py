import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ota.conditions import (
    CHECKS,
    DAY_MIN,
    FETCH,
    STAGE,
    TRIAL,
    Hold,
    Limits,
    Samples,
    decide,
    may_resume,
    parse_limits,
    parse_samples,
)
from ota.errors import ConfigError

STRICT = Limits(0.5, 60, False, False, 22 * 60, 6 * 60, False)
GOOD = Samples(0.9, False, 40.0, False, False, 23 * 60, False)


@pytest.mark.parametrize("stage", [FETCH, STAGE, TRIAL])
def test_what_is_not_known_holds_nothing_back(stage):
    assert decide(stage, Samples(), STRICT) is None
    assert decide(stage, GOOD, STRICT) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"battery": 0.4}, "battery"),
        ({"temperature_c": 60.5}, "temperature"),
        ({"is_throttled": True}, "throttled"),
        ({"is_metered": True}, "metered"),
        ({"is_busy": True}, "busy"),
        ({"minute": 12 * 60}, "window"),
    ],
)
def test_each_condition_holds_back_the_stages_that_it_concerns(change, reason):
    from dataclasses import replace

    for stage, checks in CHECKS.items():
        hold = decide(stage, replace(GOOD, **change), STRICT)
        assert (hold is not None) is (reason in checks)
        assert hold is None or (hold.reason == reason and hold.retry_after_s > 0)


def test_a_charging_battery_may_be_flat():
    assert decide(FETCH, Samples(battery=0.01, is_charging=True), Limits()) is None
    assert isinstance(decide(FETCH, Samples(battery=0.01, is_charging=False), Limits()), Hold)


@pytest.mark.parametrize(
    ("start", "end", "minute", "wait_min"),
    [
        (60, 120, 60, None),
        (60, 120, 119, None),
        (60, 120, 120, 1380),
        (60, 120, 59, 1),
        (1380, 60, 1439, None),
        (1380, 60, 0, None),
        (1380, 60, 60, 1320),
        (0, DAY_MIN, 777, None),
    ],
)
def test_a_window_may_pass_midnight(start, end, minute, wait_min):
    limits = Limits(window_from=start, window_to=end)
    hold = decide(FETCH, Samples(minute=minute), limits)
    assert (hold and hold.retry_after_s) == (wait_min and 60 * wait_min)


values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*Samples.__slots__, "other"]), values))
def test_samples_of_any_shape_are_read(table):
    samples = parse_samples(table)
    for stage in CHECKS:
        decide(stage, samples, Limits())


@given(values | st.dictionaries(st.sampled_from([*Limits.__slots__, "other"]), values))
def test_limits_of_any_shape_are_read_or_refused(table):
    with contextlib.suppress(ConfigError):
        decide(FETCH, GOOD, parse_limits(table))


@given(
    st.sampled_from([FETCH, STAGE, TRIAL]),
    st.builds(Samples, st.floats(0, 1), st.booleans(), st.floats(-40, 120)),
    st.builds(Limits, st.floats(0, 1), st.floats(0, 125)),
)
def test_what_may_resume_may_begin(stage, samples, limits):
    if may_resume(stage, samples, limits):
        assert decide(stage, samples, limits) is None


def test_a_board_at_its_limit_is_not_clear_of_it():
    at_limit = Samples(0.5, False, 60.0)
    assert decide(STAGE, at_limit, Limits(0.5, 60)) is None
    assert not may_resume(STAGE, at_limit, Limits(0.5, 60))
    assert may_resume(STAGE, Samples(1.0, False, 20.0), Limits(1.0, 60))  # full is full


def test_a_stage_of_another_version_is_left_to_its_updater():
    assert may_resume("polish", Samples(0.0, False, 99.0), Limits())
