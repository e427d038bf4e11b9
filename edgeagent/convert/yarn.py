"""YaRN as the longrope that it is the same function as.

YaRN (arXiv 2309.00071) stretches each frequency by a factor that depends on how often it turns
within the context of the first training, and cosines and sines by one number.  Both are known from
the config, so they are lists of longrope: the same one for short and for long texts.
Source of defaults and rounding: transformers, `modeling_rope_utils`; llama.cpp has the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: Turns within the first training's context: above, a frequency stays; below, it is divided.
BETA_FAST, BETA_SLOW = 32.0, 1.0
LARGEST_FACTOR = 1e6  # of the engine


def _magnitude(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def attention_factor(scaling: Mapping[str, Any], factor: float) -> float:
    """Return what cosines and sines are multiplied by."""
    stated = scaling.get("attention_factor")
    if stated is not None:
        return float(stated)
    numerator, denominator = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if numerator and denominator:
        return _magnitude(factor, float(numerator)) / _magnitude(factor, float(denominator))
    return _magnitude(factor)


def factors(
    head_dim: int,
    theta: float,
    factor: float,
    original: int,
    *,
    beta: tuple[float, float] = (BETA_FAST, BETA_SLOW),
    truncate: bool = True,
) -> list[float]:
    """Return what each frequency is divided by, (head_dim / 2,).

    Args:
        head_dim: channels of a head.
        theta: base of the frequencies, above 1.
        factor: of the stretch.
        original: positions of the first training.
        beta: turns above which a frequency stays, and below which it is divided by `factor`.
        truncate: whether the two channels of these turns are rounded outwards.
    """

    def channel(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(beta[0]), channel(beta[1])
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    out = []
    for i in range(head_dim // 2):
        divided = min(max((i - low) / width, 0.0), 1.0)
        out.append(1 / (divided / factor + (1 - divided)))
    return out
