"""The KV cache: what its formats cost in accuracy, and that nothing else about them shows."""

import itertools

import numpy as np
import pytest

from edgeagent import _core
from tests.core.toy import Shape, make_toy

BITS = (32, 16, 8, 4)
CHUNK = 256  # positions whose softmax is taken at once: TERN_KV_CHUNK
PROMPT = [(37 * i + 5) % 290 for i in range(CHUNK + 40)]  # more than one chunk

# Root of the mean squared error of the logits over their standard deviation, for random models of
# two layers: twice the largest that was measured (0.018, 0.029, 0.127).  Most of the first is not
# the cache's: the smallest change of a float lets a few int8 activations round the other way.
ERRORS = {16: 0.036, 8: 0.06, 4: 0.26}

SHAPES = {
    "GQA, heads of 64": Shape(),
    "MQA, heads of 80": Shape(heads=3, kv_heads=1, head_dim=80),
    "MHA, heads of 96": Shape(heads=2, kv_heads=2, head_dim=96),
    "GQA, heads of 100": Shape(heads=4, kv_heads=2, head_dim=100),
    "GQA, heads of 128": Shape(heads=4, kv_heads=1, head_dim=128),
    "MHA, heads of 256": Shape(heads=1, kv_heads=1, head_dim=256),
    "MQA, more heads than queries in a call": Shape(heads=20, kv_heads=1, head_dim=20),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
formats = pytest.mark.parametrize("kv_bits", BITS)


def session_of(toy, kv_bits, *, variant=None, context=400, **how):
    return _core.Session(
        _core.Model(toy.config, toy.tensors(), variant), context, kv_bits=kv_bits, **how
    )


def logits(session, *pieces):
    """Logits after the pieces, as integers so that equality means the same bits."""
    for piece in pieces:
        session.eval(piece)
    return np.array(session.logits()).view(np.uint32)


@shapes
def test_the_logits_error_is_within_its_bound(shape):
    toy = make_toy(shape)
    want = logits(session_of(toy, 32), PROMPT).view(np.float32)
    for kv_bits, bound in ERRORS.items():
        got = logits(session_of(toy, kv_bits), PROMPT).view(np.float32)
        error = np.sqrt(np.mean((got - want) ** 2)) / np.std(want)
        assert 0 < error < bound, kv_bits


@formats
@shapes
def test_bits_do_not_depend_on_how_it_is_run(shape, kv_bits):
    toy = make_toy(shape)
    splits = [
        [PROMPT],
        [PROMPT[:250], PROMPT[250:251], PROMPT[251:270], PROMPT[270:]],
        [PROMPT[:240], *([token] for token in PROMPT[240:])],
    ]
    want = logits(session_of(toy, kv_bits, variant="scalar"), PROMPT)
    ways = itertools.product(_core.supported_variants()[:-1], [1, 2, 5], splits)
    for variant, threads, pieces in ways:
        session = session_of(toy, kv_bits, variant=variant, threads=threads)
        assert np.array_equal(logits(session, *pieces), want), (variant, threads, len(pieces))


@formats
@pytest.mark.parametrize("kept", [0, 1, 15, 16, 200, CHUNK - 1, CHUNK, CHUNK + 1])
def test_truncate_then_eval_equals_a_fresh_session(kv_bits, kept):
    toy = make_toy(Shape(layers=1))
    session = session_of(toy, kv_bits)
    session.eval([(5 * i + 1) % 300 for i in range(390)])  # leaves its codes in every tile
    session.truncate(0)
    session.eval([*PROMPT[:kept], *([9] * (len(PROMPT) - kept))])
    session.truncate(kept)
    assert np.array_equal(logits(session, PROMPT[kept:]), logits(session_of(toy, kv_bits), PROMPT))


def test_the_group_size_changes_int8_and_int4_only():
    toy = make_toy(Shape(head_dim=128))
    for kv_bits in BITS:
        by_size = [
            logits(session_of(toy, kv_bits, kv_group_size=size), PROMPT).tobytes()
            for size in (32, 64, 128)
        ]
        assert len(set(by_size)) == (3 if kv_bits < 16 else 1)


def test_smaller_groups_are_more_exact():
    toy = make_toy(Shape(head_dim=256, heads=2, kv_heads=1))
    want = logits(session_of(toy, 32), PROMPT).view(np.float32)
    errors = [
        np.std(logits(session_of(toy, 4, kv_group_size=s), PROMPT).view(np.float32) - want)
        for s in (32, 256)
    ]
    assert errors[0] < errors[1]


def test_a_session_tells_the_size_of_its_cache():
    toy = make_toy(Shape(head_dim=128))
    shape, tiles = toy.shape, 7  # of 16 positions: 100 of them
    numbers = 2 * shape.layers * shape.kv_heads * tiles * 16 * 128
    sessions = {kv_bits: session_of(toy, kv_bits, context=100) for kv_bits in BITS}
    assert sessions[32].kv_bytes == 4 * numbers
    assert sessions[16].kv_bytes == 2 * numbers
    assert sessions[8].kv_bytes == numbers + numbers * 2 // 64  # a float16 scale a group
    assert sessions[4].kv_bytes == numbers // 2 + numbers * 4 // 64  # and a float16 minimum
    assert (sessions[8].context, sessions[8].n_past, sessions[8].threads) == (100, 0, 1)
    assert (sessions[8].kv_bits, sessions[8].kv_group_size) == (8, 64)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"kv_bits": 5}, "kv_bits: expected 4, 8, 16 or 32, got 5"),
        ({"kv_bits": 0}, "kv_bits: expected 4, 8, 16 or 32, got 0"),
        ({"kv_bits": 4, "kv_group_size": 0}, "kv_group_size: expected a multiple of 32"),
        ({"kv_bits": 4, "kv_group_size": 48}, "kv_group_size: expected a multiple of 32"),
        ({"kv_bits": 4, "kv_group_size": 2048}, "up to 1024, got 2048"),
    ],
)
def test_a_wrong_format_is_refused(how, error):
    toy = make_toy(Shape(layers=1))
    with pytest.raises(ValueError, match=error):
        session_of(toy, **how)
