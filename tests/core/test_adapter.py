"""Low-rank additions beside the ternary product, against the reference and against themselves."""

import itertools

import numpy as np
import pytest

from edgeagent import _core
from tests.core.reference import F32_EFFECT, Reference
from tests.core.toy import Shape, lora_modules, lora_tensor, make_lora, make_toy

TOKENS = [1, 5, 9, 61, 33, 33, 2]
SHAPES = {
    "bitnet": Shape(),
    "odd": Shape(hidden=72, heads=3, kv_heads=1, head_dim=20, ffn=546, act="silu", layers=1),
    "float activations": Shape(act="silu", sub_norms=False, activation_bits=16),
    "groups": Shape(act="silu", group=128, activation_bits=16, output_major=(), layers=1),
    "minicpm": Shape(act="silu", sub_norms=False, minicpm=(12.0, 1.4, 64.0)),
    "base 3": Shape(hidden=200, ffn=341, heads=2, kv_heads=1, head_dim=100, layout=2, layers=1),
}


def away_from_ties(shape, **lora):
    """Return a toy, an adapter and their logits, where float32 cannot round another way."""
    for seed in range(300):
        toy, adapter = make_toy(shape, seed), make_lora(shape, seed=seed, **lora)
        run = Reference(toy, adapter=adapter).run(TOKENS)
        if run.margin > F32_EFFECT:
            return toy, adapter, run.logits
    raise AssertionError(f"no seed keeps {shape} away from rounding ties")


def evaluate(session, tokens=TOKENS):
    session.truncate(0)
    session.eval(tokens)
    return np.array(session.logits()).view(np.uint32)


@pytest.mark.parametrize("rank", [1, 5, 16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_logits_match_the_reference(shape, rank, variant):
    toy, adapter, want = away_from_ties(shape, rank=rank)
    model = _core.Model(toy.config, toy.tensors(), variant)
    session = _core.Session(
        model, 64, kv_bits=32, adapter=_core.Adapter(model, lora_modules(adapter))
    )
    got = evaluate(session).view(np.float32)
    assert np.abs(got - want).max() < 1e-3
    session.set_adapter(None)
    assert np.abs(evaluate(session).view(np.float32) - want).max() > 0.01  # it does matter


@pytest.mark.parametrize("projections", [("q",), ("k", "v"), ("up",), ("gate",), ("o", "down")])
def test_some_projections_only(projections):
    toy, adapter, want = away_from_ties(Shape(layers=1), projections=projections)
    model = _core.Model(toy.config, toy.tensors())
    session = _core.Session(model, 64, kv_bits=32)
    session.set_adapter(_core.Adapter(model, lora_modules(adapter)))
    assert np.abs(evaluate(session).view(np.float32) - want).max() < 1e-3


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_bits_do_not_depend_on_how_it_is_run(shape):
    toy, adapter = make_toy(shape), lora_modules(make_lora(shape, rank=5))
    tokens = [(7 * i + 3) % shape.vocab for i in range(19)]
    want = None
    for variant in _core.supported_variants():
        model = _core.Model(toy.config, toy.tensors(), variant)
        lora = _core.Adapter(model, adapter)
        for threads, skip, step in itertools.product([1, 2, 3, 7], [True, False], [1, 5, 19]):
            session = _core.Session(model, 64, threads, skip, kv_bits=32, adapter=lora)
            for at in range(0, len(tokens), step):
                session.eval(tokens[at : at + step])
            got = np.array(session.logits()).view(np.uint32)
            want = got if want is None else want
            assert np.array_equal(got, want), (variant, threads, skip, step)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_what_its_float32_is(dtype):
    toy, adapter = make_toy(Shape()), make_lora(Shape())
    exact = {
        name: (scale, *(as_held(array, dtype) for array in pair))
        for name, (scale, *pair) in adapter.items()
    }
    model = _core.Model(toy.config, toy.tensors())
    session = _core.Session(model, 64, kv_bits=32)
    session.set_adapter(_core.Adapter(model, lora_modules(exact)))
    want = evaluate(session)
    session.set_adapter(_core.Adapter(model, lora_modules(adapter, dtype)))
    assert np.array_equal(evaluate(session), want)


def as_held(array, dtype):
    if dtype == "F16":
        return array.astype(np.float16).astype(np.float32)
    return (array.view(np.uint32) & 0xFFFF0000).view(np.float32)


def test_adapters_are_swapped_and_detached_without_a_trace():
    toy = make_toy(Shape())
    model = _core.Model(toy.config, toy.tensors())
    session = _core.Session(model, 64, kv_bits=32)
    plain = evaluate(session)
    small = _core.Adapter(model, lora_modules(make_lora(Shape(), rank=2, seed=1)))
    large = _core.Adapter(model, lora_modules(make_lora(Shape(), rank=24, seed=2)))
    seen = {}
    for name, adapter in [("small", small), ("large", large), ("small", small), ("none", None)]:
        session.set_adapter(adapter)
        assert session.adapter is adapter
        assert session.n_past == 0  # the keys and values of another function are gone
        with pytest.raises(RuntimeError, match="no logits"):
            session.logits()
        got = evaluate(session)
        assert np.array_equal(got, seen.setdefault(name, got))
    assert np.array_equal(seen["none"], plain)
    assert not np.array_equal(seen["small"], seen["large"])


def test_the_same_adapter_again_keeps_the_cache():
    toy = make_toy(Shape())
    model = _core.Model(toy.config, toy.tensors())
    adapter = _core.Adapter(model, lora_modules(make_lora(Shape())))
    session = _core.Session(model, 64, adapter=adapter)
    session.eval(TOKENS)
    session.set_adapter(adapter)
    assert session.n_past == len(TOKENS)


def test_an_adapter_is_for_its_own_model_only():
    toy = make_toy(Shape(layers=1))
    one, other = (_core.Model(toy.config, toy.tensors()) for _ in range(2))
    adapter = _core.Adapter(one, lora_modules(make_lora(toy.shape)))
    session = _core.Session(other, 64)
    session.eval(TOKENS)
    with pytest.raises(ValueError, match="adapter: expected one that was made for this session"):
        session.set_adapter(adapter)
    assert session.n_past == len(TOKENS)
    assert session.adapter is None


def test_it_outlives_the_callers_references():
    toy = make_toy(Shape(layers=1))
    model = _core.Model(toy.config, toy.tensors())
    session = _core.Session(model, 64, kv_bits=32)
    modules = lora_modules(make_lora(toy.shape))
    session.set_adapter(_core.Adapter(model, modules))
    want = evaluate(session)
    modules.clear()
    assert np.array_equal(evaluate(session), want)


SHAPE = Shape(layers=1)
NAME = "model.layers.0.self_attn.q_proj"
A, B = np.ones((4, 256), "f4"), np.ones((256, 4), "f4")

BAD = [
    ({}, "adapter: expected at least one module, got none"),
    (
        {"model.layers.1.self_attn.q_proj": (1.0, A, B)},
        "expected one of the seven projections of 1",
    ),
    ({"lm_head": (1.0, A, B)}, "adapter lm_head: expected one of the seven projections"),
    ({NAME: (1.0, A[:, :-1], B)}, r"q_proj lora_A: expected shape \(4, 256\), got \(4, 255\)"),
    ({NAME: (1.0, A, B[:-1])}, r"q_proj lora_B: expected shape \(256, 4\), got \(255, 4\)"),
    ({NAME: (1.0, A[:2], B)}, r"q_proj lora_B: expected shape \(256, 2\), got \(256, 4\)"),
    ({NAME: (1.0, A[:0], B)}, r"expected lora_A of \(1 to 1024, 256\), got \(0, 256\)"),
    ({NAME: (1.0, A[0], B)}, r"expected lora_A of \(1 to 1024, 256\), got \(256,\)"),
    ({NAME: (float("nan"), A, B)}, "expected a scale from -1e6 to 1e6, got nan"),
]


@pytest.mark.parametrize(("modules", "message"), BAD)
def test_a_wrong_adapter_is_refused(modules, message):
    toy = make_toy(SHAPE)
    model = _core.Model(toy.config, toy.tensors())
    given = {n: (s, lora_tensor(a), lora_tensor(b)) for n, (s, a, b) in modules.items()}
    with pytest.raises(ValueError, match=message):
        _core.Adapter(model, given)


def test_wrong_types_and_lengths_are_refused():
    toy = make_toy(SHAPE)
    model = _core.Model(toy.config, toy.tensors())
    good = lora_tensor(A), lora_tensor(B)
    with pytest.raises(ValueError, match="lora_A: expected one of F32, F16, BF16, got U8"):
        _core.Adapter(model, {NAME: (1.0, ("U8", *good[0][1:]), good[1])})
    with pytest.raises(ValueError, match="lora_A: expected 4096 bytes, got 4095"):
        _core.Adapter(model, {NAME: (1.0, (*good[0][:2], good[0][2][1:]), good[1])})


def test_wild_adapters_do_not_crash():
    toy = make_toy(SHAPE)
    lora = make_lora(SHAPE)
    for _, a, b in lora.values():
        a[0, :3] = [np.inf, np.nan, 3e38]
        b[0, 0] = -np.inf
    model = _core.Model(toy.config, toy.tensors())
    session = _core.Session(model, 16, adapter=_core.Adapter(model, lora_modules(lora)))
    session.eval(TOKENS)
    assert _core.Sampler(temperature=1.0).sample(session) < model.vocab_size
