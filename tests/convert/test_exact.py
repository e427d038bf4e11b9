import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.convert.exact import exact_ternary, fold_scales
from edgeagent.convert.gguf import dequantise


def trits(seed, shape):
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)


def scales(seed, shape):
    return np.random.default_rng(seed + 1).uniform(0.01, 0.1, shape).astype(np.float16).astype("f4")


@given(st.integers(0, 50), st.sampled_from([(1, 1), (1, 40), (2, 40), (4, 40)]))
def test_scales_are_found_by_equality_one_a_row_or_one_a_group(seed, shape):
    matrix = trits(seed, (40, 64))
    sizes = scales(seed, shape)
    values = matrix * np.repeat(np.broadcast_to(sizes, (shape[0], 40)), 64 // shape[0], axis=0).T
    found = exact_ternary(values.astype(np.float32))
    assert found is not None
    assert found.scales.shape == shape
    assert np.array_equal(found.trits, matrix)
    assert np.array_equal(dequantise(found), values)


def test_floats_are_not_ternary_and_neither_is_one_odd_number():
    rng = np.random.default_rng(0)
    assert exact_ternary(rng.standard_normal((70, 64)).astype(np.float32)) is None
    values = trits(3, (200, 64)).astype(np.float32)
    values[1, 5] = 0.5  # a row that the sample may miss
    found = exact_ternary(values)
    assert found is None or np.array_equal(dequantise(found), values)
    values[1, 5] = np.nan
    assert exact_ternary(values) is None


def test_a_dead_row_takes_no_scale_from_others():
    values = trits(4, (8, 16)) * np.arange(8, dtype=np.float32)[:, None]
    found = exact_ternary(values)
    assert found is not None
    assert found.scales[0, 0] == 0
    assert exact_ternary(np.zeros((4, 8), np.float32)).scales.shape == (1, 1)


@given(st.integers(0, 50))
def test_blocks_fold_to_as_few_scales_as_say_the_same(seed):
    matrix = trits(seed, (8, 64))
    matrix[0, :16] = 0  # a block that needs no scale
    for blocks, want in ((np.full((8, 4), 0.5), (1, 1)),
                         (np.arange(1, 9)[:, None] * np.ones((8, 4)), (1, 8)),
                         (np.array([[1, 1, 2, 2]] * 8), (2, 8)),
                         (np.array([[1, 2, 3, 4]] * 8), (4, 8))):  # fmt: skip
        blocks = blocks.astype(np.float32)
        noisy = blocks.copy()
        noisy[0, 0] = 0
        found = fold_scales(matrix, noisy)
        assert found.scales.shape == want
        assert np.array_equal(dequantise(found), matrix * np.repeat(blocks, 16, axis=1))


def test_a_negative_scale_turns_its_trits_around():
    matrix = trits(1, (4, 32))
    found = fold_scales(matrix, np.full((4, 1), -2, np.float32))
    assert np.array_equal(found.trits, -matrix)
    assert found.scales.tolist() == [[2.0]]
