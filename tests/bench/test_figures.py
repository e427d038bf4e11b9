import pytest

from edgeagent.bench.figures import Series, fraction, roofline, share_of, spread, ternary_bytes


def test_a_figure_is_the_median_with_its_spread():
    series = Series()
    for value in (9.0, 1.0, 2.0):
        series.add(tok_s=value, ms=None)
    assert series.median("tok_s") == 2.0
    assert series.summary() == {"tok_s": {"median": 2.0, "min": 1.0, "max": 9.0, "repetitions": 3}}


def test_what_was_not_measured_is_none_and_not_zero():
    series = Series()
    series.add(ms=None)
    assert series.median("ms") is None
    assert series.values("ms") == []
    assert share_of(None, 3.0) is None
    assert share_of(3.0, None) is None
    assert share_of(3.0, 0.0) is None


def test_an_even_number_of_values_has_its_median_between():
    assert spread([1.0, 2.0])["median"] == 1.5


def test_counters_become_fractions_and_bytes():
    layers = [
        {"weight_bytes": 100, "weight_bytes_skipped": 40},
        {"weight_bytes": 300, "weight_bytes_skipped": 60},
    ]
    assert fraction(layers, "weight_bytes_skipped", "weight_bytes") == 0.25
    assert fraction([], "weight_bytes_skipped", "weight_bytes") == 0.0
    assert ternary_bytes(layers, 3) == 100


def test_the_roofline_is_bandwidth_over_bytes():
    assert roofline(685e6, 20.0) == pytest.approx(29.2, abs=0.1)
