"""Find the gains that give a random model its closed gates and its zeros at down_proj.

Both shares are read from the engine's own counters.  All layers are tuned at once: a layer's shares
follow its own gains, and hardly those of the layers before it.  In units of the normal quantile the
shares answer a gain almost linearly, so that a secant step gets there in a handful of runs.

    gates    the gain of the `shift` channels, in standard deviations of a gate
    zeros    above 0 the width of log-normal gains of the sub-norm before down_proj: one large value
             makes the small ones round to zero.  Below 0 the gain of the `spread` channels: open
             gates that are far open are alike, and fewer of them round to zero

ReLU² alone leaves about 81 % zeros at 70 % closed gates: the default needs almost no help.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent import _core
from edgeagent.bench.shapes import Shape
from edgeagent.bench.synthetic import BRANCH_GAIN, TRIT_POWER, Report, rng_of, steady_channels

Floats = NDArray[np.float64]
Norms = dict[str, NDArray[np.float32]]
#: (closed gates, zeros at down_proj) of every layer.
Shares = tuple[Floats, Floats]
Measure = Callable[[Norms], Shares]

TOKENS = 32
MAX_RUNS = 14
LAYER_TOLERANCE = 0.01  # of every layer, in shares of 1
MEAN_TOLERANCE = 0.002  # of the model
MIN_TURN = 0.1  # of a knob, to learn a slope from
MAX_SLOPE = 4.0  # and its inverse, times the guess: what a slope may be
#: Shares of exactly 0 or 1 have no quantile.
MIN_SHARE = 1e-4
JITTER = 0.1  # of gains that nothing depends on

_quantiles = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])


def quantile(shares: Floats) -> Floats:
    """Return the normal quantiles of shares."""
    clipped: Floats = _quantiles(np.clip(shares, MIN_SHARE, 1 - MIN_SHARE))
    return clipped


class Secant:
    """One knob a layer, turned until its measured share is the target."""

    def __init__(self, layers: int, target: float, slope: float, limit: float) -> None:
        """Start at 0; `slope` is the guess of quantiles a turn, `limit` the furthest turn."""
        self.value: Floats = np.zeros(layers)
        self._target = float(quantile(np.array(target)))
        self._guess = slope
        self._slope: Floats = np.full(layers, slope)
        self._limit = limit
        self._last: tuple[Floats, Floats] | None = None

    def turn(self, shares: Floats) -> None:
        """Take what was measured at the present values, and move towards the target."""
        at = quantile(shares)
        if self._last is not None:
            moved, answered = self.value - self._last[0], at - self._last[1]
            seen = np.divide(answered, moved, out=np.zeros_like(at), where=np.abs(moved) > MIN_TURN)
            # The two knobs touch each other: what a small turn answers is mostly the other one.
            sound = (seen / self._guess > 1 / MAX_SLOPE) & (seen / self._guess < MAX_SLOPE)
            self._slope = np.where(sound, seen, self._slope)
        self._last = (self.value.copy(), at)
        move = np.clip((self._target - at) / self._slope, -self._limit / 3, self._limit / 3)
        self.value = np.clip(self.value + move, -self._limit, self._limit)


def make_norms(shape: Shape, gates: Floats, zeros: Floats) -> Norms:
    """Return every norm's gains for these knobs, one a layer each."""
    steady, norms = steady_channels(shape), {}
    for name, width in shape.norms:
        rng = rng_of(shape, name)
        gains = 1 + JITTER * rng.standard_normal(width)
        if name == "model.norm.weight":
            gains *= rng.choice([-1.0, 1.0], width)
        elif name.endswith("post_attention_layernorm.weight"):
            layer = int(name.split(".")[2])
            # One standard deviation of a gate, shared by the channels that carry it.
            stream = np.sqrt(1 + (2 * layer + 1) * BRANCH_GAIN**2)
            sigma = np.sqrt(TRIT_POWER * shape.hidden) / len(steady.shift) * stream
            gains[steady.shift] = gates[layer] * sigma
            gains[steady.spread] = max(0.0, -zeros[layer]) * sigma
        elif name.endswith("ffn_sub_norm.weight"):
            layer = int(name.split(".")[2])
            gains = np.exp(max(0.0, zeros[layer]) * rng.standard_normal(width))
            gains /= np.sqrt(np.mean(gains**2))
        norms[name] = gains.astype("<f4")
    return norms


def measure_with(
    config: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...], memoryview]]
) -> Measure:
    """Return a function that runs the engine with given norms beside these tensors."""
    vocab = int(config["vocab_size"])
    tokens = np.random.default_rng(1).integers(0, vocab, TOKENS).tolist()

    def measure(norms: Norms) -> Shares:
        given = {name: ("F32", gains.shape, gains.data.cast("B")) for name, gains in norms.items()}
        session = _core.Session(_core.Model(config, tensors | given), TOKENS, 1)
        session.eval(tokens)
        layers = session.counters()
        closed = np.array([n["closed_gates"] / n["gates"] for n in layers])
        zero = np.array([n["zero_down_inputs"] / n["down_inputs"] for n in layers])
        return closed, zero

    return measure


@dataclass(frozen=True, slots=True)
class Calibration:
    """The norms, and the shares that the engine counted with them."""

    norms: Norms
    closed_gates: float
    zero_act: float
    runs: int


def _distance(shares: Floats, target: float) -> tuple[float, float]:
    return float(np.abs(shares - target).max()), abs(float(shares.mean()) - target)


def untuned(shape: Shape, measure: Measure) -> Calibration:
    """Return plain norms: where no gate can close there is nothing to tune."""
    norms = make_norms(shape, np.zeros(shape.layers), np.zeros(shape.layers))
    closed, zero = measure(norms)
    return Calibration(norms, float(closed.mean()), float(zero.mean()), 1)


def calibrate(
    shape: Shape, measure: Measure, zero_act: float, closed_gates: float, report: Report
) -> Calibration:
    """Tune until every layer is near both targets, or as near as it gets in `MAX_RUNS` runs."""
    gates = Secant(shape.layers, closed_gates, slope=-1.0, limit=2.4)
    zeros = Secant(shape.layers, zero_act, slope=0.3, limit=2.4)
    best, least = None, float("inf")
    for run in range(1, MAX_RUNS + 1):
        norms = make_norms(shape, gates.value, zeros.value)
        closed, zero = measure(norms)
        report(
            f"{shape.name}: tuning, run {run}: {closed.mean():.1%} closed gates, "
            f"{zero.mean():.1%} zeros at down_proj"
        )
        distances = (_distance(closed, closed_gates), _distance(zero, zero_act))
        worst = max(worst + 3 * mean for worst, mean in distances)
        if best is None or worst < least:
            least, best = worst, Calibration(norms, float(closed.mean()), float(zero.mean()), run)
        if all(worst < LAYER_TOLERANCE and mean < MEAN_TOLERANCE for worst, mean in distances):
            break
        gates.turn(closed)
        zeros.turn(zero)
    if best is None:
        raise RuntimeError("MAX_RUNS must be at least 1")
    return best
