"""The forward pass against an independent reference, and against itself run in other ways."""

import dataclasses
import itertools

import numpy as np
import pytest

from edgeagent import _core
from tests.core.reference import Reference, toy_away_from_ties
from tests.core.toy import LLAMA3, LONG, PROJECTIONS, Shape, make_toy, pack_channels3

TOKENS = [1, 5, 9, 61, 33, 33, 2]

SHAPES = {
    "bitnet": Shape(),
    "bitnet untied": Shape(tied=False, layers=1),
    "llama": Shape(act="silu", sub_norms=False, tied=False),
    "silu with sub-norms": Shape(act="silu"),
    "relu2 without sub-norms": Shape(sub_norms=False),
    "head of 100, one KV head": Shape(hidden=200, heads=2, kv_heads=1, head_dim=100, ffn=341),
    "no multiple of anything": Shape(hidden=72, heads=3, kv_heads=1, head_dim=20, ffn=546),
    "attention wider than hidden": Shape(hidden=130, heads=6, kv_heads=3, head_dim=32, ffn=300),
    "tiny": Shape(hidden=2, heads=1, kv_heads=1, head_dim=2, ffn=1, vocab=70),
    "all output-major": Shape(output_major=PROJECTIONS),
    "all input-major": Shape(output_major=()),
    "high theta": Shape(theta=1000042.0, layers=1),
    "head norms": Shape(act="silu", sub_norms=False, head_norms=True, head_dim=48),
    "minicpm": Shape(act="silu", sub_norms=False, minicpm=(12.0, 1.4, 64.0)),
    "float activations": Shape(activation_bits=16),
    "float activations, silu, odd": Shape(
        activation_bits=16, act="silu", hidden=72, heads=3, kv_heads=1, head_dim=20, ffn=546
    ),
    "float activations, base 3": Shape(
        activation_bits=16, act="silu", sub_norms=False, ffn=341, layout=2, output_major=()
    ),
    "scales a row": Shape(group=0),
    "scales a row, float activations": Shape(group=0, activation_bits=16, layout=2),
    "groups": Shape(group=64, output_major=()),
    "groups of 128, float activations": Shape(
        act="silu",
        sub_norms=False,
        head_norms=True,
        group=128,
        activation_bits=16,
        ffn=384,
        tied=False,
        output_major=(),
    ),
    "odd groups, float activations": Shape(
        act="silu",
        hidden=72,
        heads=3,
        kv_heads=1,
        head_dim=20,
        ffn=540,
        group=12,
        activation_bits=16,
        output_major=(),
    ),
    "rope linear": Shape(rope={"rope_type": "linear", "factor": 2.5}),
    "rope llama3": Shape(rope=LLAMA3, theta=500000.0),
    "rope longrope, short": Shape(rope=LONG, head_dim=32),
    "rope longrope, long": Shape(rope=LONG | {"original_max_position_embeddings": 40}, head_dim=32),
    "rope longrope, its own attention factor": Shape(
        rope=LONG | {"attention_factor": 0.8, "factor": 4.0}, head_dim=32
    ),
}

shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))


def bits(session):
    """Logits as integers, so that equality means the same bits."""
    return np.array(session.logits()).view(np.uint32)


def evaluate(model, tokens, *, threads=1, zero_skip=True, pieces=None):
    session = _core.Session(model, 64, threads, zero_skip, kv_bits=32)
    for piece in pieces or [tokens]:
        session.eval(piece)
    assert session.n_past == len(tokens)
    return bits(session)


@shapes
def test_logits_match_the_reference(shape, variant):
    toy, want = toy_away_from_ties(shape, TOKENS)
    model = _core.Model(toy.config, toy.tensors(), variant)
    got = evaluate(model, TOKENS).view(np.float32)
    bound = 1e-3 if shape.activation_bits == 8 else 1e-4  # no rounding that float32 does not have
    assert np.abs(got - want.logits).max() < bound


def test_every_position_matches_the_reference(variant):
    toy, _ = toy_away_from_ties(SHAPES["bitnet"], TOKENS)
    session = _core.Session(_core.Model(toy.config, toy.tensors(), variant), 64, kv_bits=32)
    for i, token in enumerate(TOKENS):
        session.eval([token])
        want = Reference(toy).run(TOKENS[: i + 1]).logits
        assert np.abs(np.array(session.logits()) - want).max() < 1e-3


@shapes
def test_bits_do_not_depend_on_how_it_is_run(shape):
    toy = make_toy(shape)
    tokens = [(7 * i + 3) % shape.vocab for i in range(19)]  # more than one block of tokens
    splits = [[tokens], [[t] for t in tokens], [tokens[:5], tokens[5:6], tokens[6:]]]
    ways = itertools.product(_core.supported_variants(), [1, 2, 3, 7], [True, False], splits)
    want = None
    models = {v: _core.Model(toy.config, toy.tensors(), v) for v in _core.supported_variants()}
    for variant, threads, zero_skip, pieces in ways:
        got = evaluate(models[variant], tokens, threads=threads, zero_skip=zero_skip, pieces=pieces)
        want = got if want is None else want
        assert np.array_equal(got, want), (variant, threads, zero_skip, len(pieces))


@pytest.mark.parametrize("shape", [s for s in SHAPES.values() if not s.group])
def test_bits_do_not_depend_on_the_orientation(shape):
    toy = make_toy(shape)
    choices = [(), PROJECTIONS, ("up",), ("q", "o", "down"), ("k", "gate")]
    results = [evaluate(_core.Model(toy.config, toy.tensors(c)), TOKENS) for c in choices]
    assert all(np.array_equal(r, results[0]) for r in results)


@pytest.mark.parametrize("bits", [8, 16])
def test_equal_scales_a_row_are_one_scale(bits):
    """The three ways of writing one scale agree but for the order of the float products."""
    one = make_toy(Shape(activation_bits=bits, output_major=()))
    want = evaluate(_core.Model(one.config, one.tensors()), TOKENS).view(np.float32)
    for group in (0, 64):
        toy = dataclasses.replace(one, weights=dict(one.weights))
        for name, scale in one.weights.items():
            if name.endswith("weight_scale"):
                n_out, n_in = one.weights[name.removesuffix("_scale")].shape
                shape = dataclasses.replace(one.shape, group=group).scales(n_out, n_in)
                toy.weights[name] = np.full(shape, scale[0])
        got = evaluate(_core.Model(toy.config, toy.tensors()), TOKENS).view(np.float32)
        assert np.abs(got - want).max() < 1e-3, group


def test_longrope_counts_the_context_of_the_session():
    """The factors are those of the KV cache's size, whatever is in it."""
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 32,
        "long_factor": [4.0] * 32,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.0,
    }
    toy = make_toy(Shape(rope=rope))
    plain = make_toy(dataclasses.replace(toy.shape, rope=None))
    linear = make_toy(dataclasses.replace(toy.shape, rope={"rope_type": "linear", "factor": 4.0}))
    for context, same in ((32, plain), (33, linear)):
        got = logits_in(toy, context)
        assert np.array_equal(got, logits_in(same, context))


def logits_in(toy, context):
    session = _core.Session(_core.Model(toy.config, toy.tensors()), context, kv_bits=32)
    session.eval(TOKENS)
    return bits(session)


def test_truncate_then_eval_equals_a_fresh_session():
    toy = make_toy(Shape())
    model = _core.Model(toy.config, toy.tensors())
    session = _core.Session(model, 64, kv_bits=32)
    session.eval([1, 2, 3, 99, 98])
    session.truncate(3)
    assert session.n_past == 3
    session.eval([4, 5])
    assert np.array_equal(bits(session), evaluate(model, [1, 2, 3, 4, 5]))


def test_threads_and_zero_skip_can_change_between_tokens():
    toy = make_toy(Shape())
    model = _core.Model(toy.config, toy.tensors())
    session = _core.Session(model, 64, threads=1, kv_bits=32)
    for i, token in enumerate(TOKENS):
        session.threads = 1 + i % 4
        session.zero_skip = i % 2 == 0
        session.eval([token])
    assert (session.threads, session.zero_skip) == (3, True)
    assert np.array_equal(bits(session), evaluate(model, TOKENS))


def test_sessions_of_one_model_do_not_disturb_each_other():
    toy = make_toy(Shape())
    model = _core.Model(toy.config, toy.tensors())
    a, b = (_core.Session(model, context, kv_bits=32) for context in (64, 32))
    for token in TOKENS:
        a.eval([token])
        b.eval([token + 1])
    assert np.array_equal(bits(a), evaluate(model, TOKENS))
    assert np.array_equal(bits(b), evaluate(model, [t + 1 for t in TOKENS]))


def test_buffers_outlive_the_callers_references():
    toy = make_toy(Shape())
    want = evaluate(_core.Model(toy.config, toy.tensors()), TOKENS)
    copies = {
        name: (dtype, shape, memoryview(bytes(data)))
        for name, (dtype, shape, data) in toy.tensors().items()
    }
    session = _core.Session(_core.Model(toy.config, copies), 64, kv_bits=32)
    copies.clear()
    session.eval(TOKENS)
    assert np.array_equal(bits(session), want)


def count(toy, session, tokens):
    """One at a time: a block of tokens is a GEMM, which visits everything."""
    session.reset_counters()
    for token in tokens:
        session.eval([token])
    return session.counters()


def test_counters_book_what_zeros_saved():
    toy = make_toy(Shape())
    model = _core.Model(toy.config, toy.tensors())
    session = _core.Session(model, 64)
    layers = count(toy, session, TOKENS)
    sizes = toy.shape.sizes.values()
    assert len(layers) == toy.shape.layers
    for layer in layers:
        assert layer["multiplications"] == len(TOKENS) * sum(o * i for o, i in sizes)
        assert layer["weight_bytes"] * toy.shape.layers == len(TOKENS) * model.ternary_bytes
        assert layer["activations"] == len(TOKENS) * sum(i for _, i in sizes)
        assert layer["gates"] == len(TOKENS) * toy.shape.ffn
        assert 0.3 < layer["closed_gates"] / layer["gates"] < 0.7  # relu2 of a random gate
        assert layer["zero_activations"] > layer["closed_gates"]  # they are down's inputs
        assert 0 < layer["multiplications_skipped"] < layer["multiplications"]
        assert 0 < layer["weight_bytes_skipped"] < layer["weight_bytes"]
    session.reset_counters()
    assert not any(value for layer in session.counters() for value in layer.values())


def test_without_zero_skip_nothing_is_skipped_and_zeros_are_still_counted():
    toy = make_toy(Shape())
    session = _core.Session(_core.Model(toy.config, toy.tensors()), 64, zero_skip=False)
    for layer in count(toy, session, TOKENS):
        assert layer["multiplications_skipped"] == layer["weight_bytes_skipped"] == 0
        assert layer["closed_gates"] > 0
        assert layer["zero_activations"] > 0


def test_a_model_tells_its_size():
    toy = make_toy(Shape(tied=False))
    model = _core.Model(toy.config, toy.tensors())
    ternary = sum(a.size for a in toy.weights.values() if a.dtype == np.int8)
    floats = [a for a in toy.weights.values() if a.dtype != np.int8]
    scales = 7 * toy.shape.layers
    assert model.n_parameters == ternary + sum(a.size for a in floats) - scales
    assert model.other_bytes == sum(a.nbytes for a in floats)
    assert model.ternary_bytes == sum(len(t[2]) for t in toy.tensors().values() if t[0] == "U8")
    assert (model.vocab_size, model.n_layers, model.hidden_size) == (300, 2, 256)
    assert model.context == 512


@pytest.mark.parametrize("kv_bits", [32, 16, 8, 4])
def test_wild_weights_do_not_crash(kv_bits):
    """Infinities and NaNs in a model's floats give useless logits, never undefined behaviour."""
    toy = make_toy(Shape())
    toy.weights["model.layers.0.input_layernorm.weight"][:3] = [np.inf, np.nan, 3e38]
    toy.weights["model.layers.1.mlp.ffn_sub_norm.weight"][:] = 3e38
    model = _core.Model(toy.config, toy.tensors())
    session = _core.Session(model, 16, kv_bits=kv_bits)
    session.eval(TOKENS)
    assert _core.Sampler(temperature=1.0).sample(session) < model.vocab_size


@pytest.mark.parametrize("act", ["relu2", "silu"])
@pytest.mark.parametrize("variant", _core.supported_variants())
def test_base_3_gives_the_logits_of_2_bit(variant, act):
    shape = Shape(hidden=200, ffn=341, heads=2, kv_heads=1, head_dim=100, act=act)
    two_bit, base_3 = make_toy(shape), make_toy(dataclasses.replace(shape, layout=2))
    want = logits_of(two_bit, variant)
    for threads in (1, 3):
        for zero_skip in (True, False):
            for split in (1, len(TOKENS)):
                got = logits_of(base_3, variant, threads, zero_skip, split)
                assert np.array_equal(got, want), (threads, zero_skip, split)


def logits_of(toy, variant, threads=1, zero_skip=True, split=1):
    model = _core.Model(toy.config, toy.tensors(), variant)
    session = _core.Session(model, 64, threads, zero_skip)
    for at in range(0, len(TOKENS), split):
        session.eval(TOKENS[at : at + split])
    return bits(session)


def test_channels_are_for_o_and_down_only():
    toy = make_toy(Shape(layout=2))
    tensors = toy.tensors()
    name = "model.layers.0.mlp.gate_proj.weight"
    plane = pack_channels3(toy.weights[name])
    tensors[name] = ("U8", plane.shape, memoryview(plane).cast("B").toreadonly())
    with pytest.raises(ValueError, match=r"gate_proj.weight: expected shape .*\(tiles\), got"):
        _core.Model(toy.config, tensors)
