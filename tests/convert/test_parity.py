"""Models that transformers wrote, and the logits that it computed for them in float32.

`make parity` compares many more, and larger ones; `bench/parity_reference.py --small` made these.
"""

from pathlib import Path

import numpy as np
import pytest

from bench.parity import compare, has_scales

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(path.stem for path in FIXTURES.glob("*.npz"))


def test_there_are_fixtures_of_every_mode():
    assert len(CASES) >= 4


@pytest.mark.parametrize("name", CASES)
def test_the_engine_computes_what_the_reference_computes(name):
    result = compare(FIXTURES / name, np.load(FIXTURES / f"{name}.npz"), invert=False)
    assert result["max_difference"] <= 1e-3
    assert result["greedy_tokens"] == 64


@pytest.mark.parametrize("name", [n for n in CASES if has_scales(FIXTURES / n)])
def test_the_inverted_rule_of_scales_fails(name):
    result = compare(FIXTURES / name, np.load(FIXTURES / f"{name}.npz"), invert=True)
    assert not result["passed"]
    assert result["max_difference"] > 0.05
