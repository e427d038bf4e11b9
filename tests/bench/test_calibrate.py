"""Tuning: the secant alone, then the engine's own counters on a real model."""

import numpy as np
import pytest

from edgeagent.bench.calibrate import Secant, calibrate, make_norms, quantile
from edgeagent.bench.shapes import SHAPES
from edgeagent.bench.synthetic import steady_channels

TINY = SHAPES["tiny"]


def test_quantiles_of_nothing_and_all_are_finite():
    assert np.isfinite(quantile(np.array([0.0, 1.0]))).all()
    assert quantile(np.array([0.5]))[0] == pytest.approx(0.0)


def test_a_secant_finds_the_turn_of_every_layer_though_its_guess_is_wrong():
    steepness, offset = np.array([0.5, 1.0, 2.0]), np.array([0.3, 0.0, -0.2])
    knob = Secant(3, target=0.7, slope=1.0, limit=3.0)
    from statistics import NormalDist

    def shares():
        return np.array([NormalDist().cdf(z) for z in steepness * knob.value + offset])

    for _ in range(8):
        knob.turn(shares())
    assert shares() == pytest.approx(0.7, abs=0.01)


def test_a_secant_stops_at_its_limit():
    knob = Secant(1, target=0.99, slope=1.0, limit=0.5)
    for _ in range(20):
        knob.turn(np.array([0.01]))
    assert knob.value[0] == 0.5


def test_norms_carry_the_knobs_and_only_they_differ():
    zero = np.zeros(TINY.layers)
    plain, turned = make_norms(TINY, zero, zero), make_norms(TINY, zero - 0.5, zero + 0.7)
    steady = steady_channels(TINY)
    assert list(plain) == [name for name, _ in TINY.norms]
    post = "model.layers.0.post_attention_layernorm.weight"
    assert (turned[post][steady.shift] < 0).all()
    assert (plain[post][steady.all] == 0).all()
    others = np.setdiff1d(np.arange(TINY.hidden), steady.all)
    assert (plain[post][others] == turned[post][others]).all()
    sub = "model.layers.0.mlp.ffn_sub_norm.weight"
    assert turned[sub].std() > plain[sub].std()
    assert (turned["model.norm.weight"] == plain["model.norm.weight"]).all()


def test_the_best_run_is_kept_when_the_targets_are_out_of_reach():
    """An engine that never answers the knobs: the result must say what it really counted."""

    def measure(norms):
        return np.full(TINY.layers, 0.4), np.full(TINY.layers, 0.6)

    tuned = calibrate(TINY, measure, zero_act=0.9, closed_gates=0.2, report=lambda _: None)
    assert (tuned.closed_gates, tuned.zero_act) == (pytest.approx(0.4), pytest.approx(0.6))
