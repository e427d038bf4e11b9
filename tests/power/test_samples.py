import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.power.samples import QUANTITIES, Sample, trend_c_per_s


def test_every_quantity_is_a_field_that_is_none_unless_measured():
    sample = Sample(1.0)
    assert all(getattr(sample, quantity) is None for quantity in QUANTITIES)
    fields = {f.name for f in dataclasses.fields(Sample)}
    assert fields == set(QUANTITIES) | {"time_s", "sources", "absent"}


@given(
    st.floats(-5, 5),
    st.floats(0, 90),
    st.lists(st.integers(0, 1000), min_size=2, max_size=30, unique=True),
)
def test_the_trend_of_a_straight_line_is_its_slope(slope, start_c, times_s):
    samples = [Sample(float(t), start_c + slope * t) for t in times_s]
    assert trend_c_per_s(samples) == pytest.approx(slope, abs=1e-9)


def test_samples_without_a_temperature_do_not_bend_the_trend():
    samples = [Sample(0.0, 40.0), Sample(1.0), Sample(2.0, 44.0)]
    assert trend_c_per_s(samples) == 2.0


@pytest.mark.parametrize(
    "samples", [[], [Sample(0.0, 40.0)], [Sample(0.0), Sample(1.0)], [Sample(3.0, 1.0)] * 2]
)
def test_there_is_no_trend_without_two_moments(samples):
    assert trend_c_per_s(samples) is None
