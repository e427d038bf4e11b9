import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.power.counter import MAX_POWER_W, EnergyCounter

RANGE_UJ = 262_143_328_850


def test_a_counter_starts_at_the_registers_own_value():
    assert EnergyCounter(RANGE_UJ).add(0.0, 2_000_000) == 2.0


def test_a_smaller_value_is_one_wrap():
    counter = EnergyCounter(10_000_000)
    before = counter.add(0.0, 9_000_000)
    after = counter.add(0.01, 1_000_000)
    assert after - before == pytest.approx(2.0)


@given(st.lists(st.integers(0, 9_999_999), min_size=1, max_size=50), st.integers(0, 9_999_999))
def test_the_energy_is_the_sum_of_the_steps_however_often_the_register_wraps(steps_uj, start_uj):
    counter, register, first = EnergyCounter(10_000_000), start_uj, None
    first = counter.add(0.0, register)
    last, now_s = first, 0.0
    for step in steps_uj:
        register, now_s = (register + step) % 10_000_000, now_s + 0.01
        last = counter.add(now_s, register)
    assert last - first == pytest.approx(sum(steps_uj) / 1e6, abs=1e-6)


def test_a_reading_so_late_that_two_wraps_are_possible_is_refused_and_counting_starts_again():
    counter = EnergyCounter(RANGE_UJ)
    counter.add(0.0, 5)
    too_late_s = RANGE_UJ / 1e6 / MAX_POWER_W
    assert counter.add(too_late_s, 6_000_000) is None
    assert counter.add(too_late_s + 1, 7_000_000) == 7.0


def test_a_counter_without_a_range_may_not_fall():
    counter = EnergyCounter(None)
    assert counter.add(0.0, 5_000_000) == 5.0
    assert counter.add(1e6, 6_000_000) == 6.0
    assert counter.add(1e6 + 1, 1_000_000) is None
    assert counter.add(1e6 + 2, 2_000_000) == 2.0


def test_a_negative_register_is_no_counter():
    with pytest.raises(ValueError, match="microjoules"):
        EnergyCounter(None).add(0.0, -1)


@pytest.mark.parametrize("range_uj", [0, -1])
def test_a_range_that_is_not_positive_is_refused(range_uj):
    with pytest.raises(ValueError, match="positive"):
        EnergyCounter(range_uj)
