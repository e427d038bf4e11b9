import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.power.meter import MAX_GAP_S, MAX_HOLD_S, EnergyMeter
from edgeagent.power.samples import Sample

RAPL = {"energy_j": "rail: rapl package-0"}
VDD = {"power_w": "measured: hwmon ina3221 VDD_IN"}


def counted(time_s, energy_j):
    return Sample(time_s, energy_j=energy_j, sources=RAPL)


def drawn(time_s, power_w):
    return Sample(time_s, power_w=power_w, sources=VDD)


def meter_of(samples, **bounds):
    meter = EnergyMeter(**bounds)
    for sample in samples:
        meter.add(sample)
    return meter


# --- the counter


def test_the_counters_difference_is_the_energy():
    energy = meter_of([counted(0, 100.0), counted(1, 104.0), counted(2, 110.0)]).energy_between(
        0, 2
    )
    assert (energy.joules, energy.source, energy.reason) == (10.0, "rail: rapl package-0", None)


def test_the_ends_of_an_interval_are_interpolated():
    meter = meter_of([counted(0, 0.0), counted(1, 4.0), counted(2, 10.0)])
    assert meter.energy_between(0.5, 1.5).joules == pytest.approx(2.0 + 3.0)


def test_a_counter_that_fell_was_restarted_and_nothing_spans_that():
    meter = meter_of([counted(0, 50.0), counted(1, 60.0), counted(2, 1.0), counted(3, 4.0)])
    assert meter.energy_between(0, 1).joules == 10.0
    assert meter.energy_between(2, 3).joules == 3.0
    spanning = meter.energy_between(0, 3)
    assert spanning.joules is None
    assert "gap in the energy counter" in spanning.reason


def test_a_counter_counts_on_however_long_nobody_reads_it():
    assert meter_of([counted(0, 5.0), counted(500, 905.0)]).energy_between(0, 500).joules == 900.0


def test_after_a_long_time_without_the_counter_it_may_have_been_restarted():
    away = Sample(1.0, absent={"energy_j": "permission denied"})
    meter = meter_of([counted(0, 5.0), away, counted(1 + MAX_GAP_S, 99.0)])
    assert meter.energy_between(0, 5).joules is None


def test_one_failed_reading_does_not_lose_the_counter():
    assert (
        meter_of([counted(0, 5.0), Sample(1.0), counted(2, 9.0)]).energy_between(0, 2).joules == 4
    )


# --- the power


def test_power_is_integrated_by_trapezoids():
    meter = meter_of([drawn(0, 4.0), drawn(1, 6.0), drawn(2, 6.0)])
    energy = meter.energy_between(0, 2)
    assert energy.joules == pytest.approx(5.0 + 6.0)
    assert energy.source == "measured: hwmon ina3221 VDD_IN"


def test_a_long_gap_is_not_bridged():
    meter = meter_of([drawn(0, 5.0), drawn(1, 5.0), drawn(1 + MAX_GAP_S + 0.1, 5.0)])
    assert meter.energy_between(0, 1).joules == 5.0
    for t0_s, t1_s in [(0.5, 3.0), (3.0, 4.0), (3.0, 1 + MAX_GAP_S + 0.1)]:
        assert "gap" in meter.energy_between(t0_s, t1_s).reason


def test_a_source_that_changes_is_a_gap():
    other = Sample(2.0, power_w=9.0, sources={"power_w": "battery: power_supply BAT0"})
    meter = meter_of([drawn(0, 5.0), drawn(1, 5.0), other])
    assert meter.energy_between(0, 2).joules is None
    assert meter.energy_between(0, 1).source == "measured: hwmon ina3221 VDD_IN"


def test_the_nearest_power_is_held_for_a_moment_and_the_answer_says_so():
    energy = meter_of([drawn(0, 4.0), drawn(1, 6.0)]).energy_between(-0.5, 2.0)
    assert energy.joules == pytest.approx(2.0 + 5.0 + 6.0)
    assert energy.held_s == pytest.approx(1.5)


def test_an_interval_after_the_last_sample_is_held_whole():
    energy = meter_of([drawn(0, 4.0)]).energy_between(0.5, 1.0)
    assert (energy.joules, energy.held_s) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("t0_s", "t1_s", "words"),
    [(-MAX_HOLD_S - 1, 0, "after the start"), (0, 1 + MAX_HOLD_S + 1, "before the end")],
)
def test_power_is_not_held_for_longer(t0_s, t1_s, words):
    energy = meter_of([drawn(0, 4.0), drawn(1, 6.0)]).energy_between(t0_s, t1_s)
    assert energy.joules is None
    assert words in energy.reason


# --- both, none, bounds


def test_the_counter_is_preferred_and_power_answers_where_it_cannot():
    both = {**RAPL, **VDD}
    meter = meter_of([Sample(t, power_w=50.0, energy_j=3.0 * t, sources=both) for t in range(3)])
    assert meter.energy_between(0, 2).joules == 6.0
    later = meter.energy_between(0, 3)
    assert (later.joules, later.source, later.held_s) == (150.0, VDD["power_w"], 1.0)


def test_without_sensors_the_reason_is_the_sensors_own():
    absent = {"power_w": "no power sensor found", "energy_j": "no energy counter"}
    energy = meter_of([Sample(0.0, absent=absent)]).energy_between(0, 1)
    assert (energy.joules, energy.source, energy.reason) == (None, None, "no power sensor found")


def test_with_a_counter_alone_the_reason_is_about_the_counter():
    reason = meter_of([counted(0, 1.0), counted(1, 2.0)]).energy_between(0, 9).reason
    assert reason == "the last energy counter sample is 8.0 s before the end"


def test_without_samples_there_is_a_reason_too():
    assert EnergyMeter().energy_between(0, 1).reason == "no power sample yet"


def test_an_interval_that_ends_before_it_starts_has_no_energy():
    assert "before the start" in meter_of([drawn(0, 1.0)]).energy_between(2, 1).reason


def test_samples_that_are_not_newer_are_ignored():
    meter = meter_of([drawn(0, 2.0), drawn(1, 2.0), drawn(1, 99.0), drawn(0.5, 99.0)])
    assert meter.energy_between(0, 1).joules == 2.0


def test_the_history_is_bounded_and_what_was_forgotten_has_no_energy():
    meter = meter_of([drawn(t, 5.0) for t in range(100)], max_samples=10)
    assert meter.energy_between(90, 99).joules == pytest.approx(45.0)
    assert "first power sample kept" in meter.energy_between(0, 99).reason
    assert meter.total().joules == pytest.approx(99 * 5.0)


def test_totals_are_in_joules_and_watt_hours_and_leave_gaps_out():
    meter = meter_of([drawn(0, 3600.0), drawn(5, 3600.0), drawn(100, 1.0), drawn(101, 1.0)])
    total = meter.total()
    assert total.joules == pytest.approx(5 * 3600 + 1)
    assert total.watt_hours == pytest.approx(5 + 1 / 3600)
    assert total.known_s == 6.0
    assert total.source == VDD["power_w"]


def test_a_meter_without_samples_has_a_total_of_nothing():
    assert (EnergyMeter().total().joules, EnergyMeter().total().source) == (0.0, None)


def test_joules_a_token_need_joules_and_a_token():
    energy = meter_of([counted(0, 0.0), counted(1, 8.0)]).energy_between(0, 1)
    assert energy.per_token(4) == 2.0
    assert energy.per_token(0) is None
    assert EnergyMeter().energy_between(0, 1).per_token(4) is None


# --- properties

STEPS = st.lists(
    st.tuples(st.floats(0.01, MAX_GAP_S - 0.1), st.floats(0, 100)), min_size=2, max_size=40
)


def timeline(steps):
    """Turn (step, value) pairs into times and values."""
    times, now_s = [], 0.0
    for step_s, _ in steps:
        now_s += step_s
        times.append(now_s)
    return times, [value for _, value in steps]


@given(STEPS, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_energy_is_additive_for_power(steps, a, b, c):
    times, watts = timeline(steps)
    meter = meter_of([drawn(t, w) for t, w in zip(times, watts, strict=True)])
    t0, t1, t2 = sorted(times[0] + x * (times[-1] - times[0]) for x in (a, b, c))
    whole = meter.energy_between(t0, t2).joules
    parts = meter.energy_between(t0, t1).joules + meter.energy_between(t1, t2).joules
    assert math.isclose(whole, parts, abs_tol=1e-6)


@given(STEPS, st.floats(0, 1), st.floats(0, 1))
def test_energy_is_never_negative_and_never_more_than_the_peak_allows(steps, a, b):
    times, watts = timeline(steps)
    meter = meter_of([drawn(t, w) for t, w in zip(times, watts, strict=True)])
    t0, t1 = sorted(times[0] + x * (times[-1] - times[0]) for x in (a, b))
    energy = meter.energy_between(t0, t1)
    assert -1e-9 <= energy.joules <= max(watts) * (t1 - t0) + 1e-6
    assert energy.held_s == pytest.approx(0.0, abs=1e-9)


@given(STEPS, st.floats(0.1, 100))
def test_constant_power_agrees_with_a_counter_of_the_same_power(steps, watts):
    times, _ = timeline(steps)
    t0, t1 = times[0], times[-1]
    by_power = meter_of([drawn(t, watts) for t in times]).energy_between(t0, t1).joules
    by_counter = meter_of([counted(t, watts * t) for t in times]).energy_between(t0, t1).joules
    assert by_power == pytest.approx(by_counter, rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 100), st.none() | st.floats(0, 1e6)), max_size=40))
def test_any_stream_of_samples_gives_joules_or_a_reason_and_never_both(stream):
    meter = meter_of([counted(t, j) if j is not None else Sample(t) for t, j in stream])
    energy = meter.energy_between(10, 20)
    assert (energy.joules is None) != (energy.reason is None)
