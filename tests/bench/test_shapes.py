import pytest

from edgeagent.bench.shapes import SHAPES, token_ids


def test_2b4t_has_the_bytes_of_the_flagship():
    shape = SHAPES["2b4t"]
    assert shape.trits / 4 == pytest.approx(521e6, rel=0.01)
    assert shape.vocab * shape.hidden * 2 == pytest.approx(657e6, rel=0.01)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_heads_divide_and_every_norm_is_named_once(shape):
    assert shape.heads % shape.kv_heads == 0
    names = [name for name, _ in shape.norms]
    assert len(names) == len(set(names)) == 4 * shape.layers + 1


def test_prompts_are_prefixes_of_each_other_and_do_not_repeat():
    ids = token_ids(32_000, 128)
    assert len(set(ids)) == 128
    assert token_ids(32_000, 8) == ids[:8]
    assert max(ids) < 32_000
