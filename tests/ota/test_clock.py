from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.clock import BUILD_TIME, MAX_AHEAD, reference_time

SIGNED = BUILD_TIME + timedelta(days=100)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2500, 1, 1)).map(  # noqa: DTZ001
    lambda moment: moment.replace(tzinfo=UTC)
)


@pytest.mark.parametrize(
    ("now", "expected", "is_trusted"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), SIGNED, False),
        (SIGNED - timedelta(seconds=1), SIGNED, False),
        (SIGNED, SIGNED, True),
        (SIGNED + timedelta(days=3), SIGNED + timedelta(days=3), True),
        (datetime(2099, 1, 1, tzinfo=UTC), SIGNED, False),
    ],
)
def test_a_clock_is_believed_between_the_floor_and_what_can_be_signed(now, expected, is_trusted):
    reference = reference_time(now, None, SIGNED)
    assert (reference.time, reference.is_trusted) == (expected, is_trusted)


def test_without_anything_known_the_build_is_the_floor():
    assert reference_time(datetime(1970, 1, 1, tzinfo=UTC)).time == BUILD_TIME


@given(moments, moments, moments)
def test_the_reference_is_never_before_what_has_passed_nor_absurdly_after(now, one, other):
    floor = max(BUILD_TIME, one, other)
    assert floor <= reference_time(now, one, other).time <= floor + MAX_AHEAD
