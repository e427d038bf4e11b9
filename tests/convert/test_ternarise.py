import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeagent.convert.checkpoint import TritMatrix
from edgeagent.convert.pack import MIN_SCALE, ternarise_absmean
from edgeagent.convert.ternarise import (
    CLASS_ALPHAS,
    Calibrated,
    Recipe,
    Ternarised,
    parse_alpha,
    ternarise_threshold,
)
from edgeagent.errors import ConfigError, ModelError

Q = "model.layers.0.self_attn.q_proj.weight"
O = "model.layers.0.self_attn.o_proj.weight"  # noqa: E741
UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"

MATRICES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.floats(-8, 8, width=32),
)


class Floats:
    """A checkpoint of a few float matrices."""

    activation_bits = 8
    identity = "floats"

    def __init__(self, tensors, ternary=()):
        self.tensors, self.ternary = tensors, dict.fromkeys(ternary)
        self.config = {"num_attention_heads": 4, "num_key_value_heads": 2}

    def shapes(self):
        return {name: values.shape for name, values in self.tensors.items()}

    def is_ternary(self, name):
        return name in self.ternary

    def trits(self, name):
        values = self.tensors[name]
        scale = np.abs(values).max()
        return TritMatrix(np.sign(values).astype(np.int8), np.full((1, 1), scale, np.float32))

    def floats(self, name, begin=0, end=None):
        return self.tensors[name][begin:end]

    def tokenizer(self):
        return None


def random_floats(**ternary):
    rng = np.random.default_rng(3)
    return Floats(
        {
            Q: rng.standard_normal((32, 24), np.float32),
            O: rng.standard_normal((24, 32), np.float32),
            UP: rng.standard_normal((40, 24), np.float32),
            EMBEDDING: rng.standard_normal((50, 24), np.float32),
        },
        **ternary,
    )


@given(MATRICES, st.floats(0, 3))
@settings(max_examples=200, deadline=None)
def test_threshold_keeps_what_is_above_and_its_scale_is_the_best(weights, alpha):
    trits, scale = ternarise_threshold(weights, alpha)
    limit = alpha * np.abs(weights).mean(dtype=np.float64)
    assert np.array_equal(trits != 0, np.abs(weights) > limit)
    assert (trits * weights >= 0).all()
    assert scale >= MIN_SCALE or not trits.any()
    wide, signs = weights.astype(np.float64), trits.astype(np.float64)
    if trits.any() and scale > 2 * MIN_SCALE:
        error = ((wide - scale * signs) ** 2).sum()
        for other in (0.99, 1.01):
            assert error <= ((wide - other * scale * signs) ** 2).sum() * (1 + 1e-6)


@given(MATRICES)
@settings(max_examples=100, deadline=None)
def test_binary_weights_become_trits_without_a_zero_by_every_scheme(weights):
    binary = np.where(weights < 0, -0.75, 0.75).astype(np.float32)
    for scheme in ("absmean", "threshold", "twn"):
        matrix = Ternarised(Floats({UP: binary}), Recipe(scheme)).trits(UP)
        assert np.array_equal(matrix.trits * matrix.scales[0, 0], binary)


def test_absmean_is_the_reference_bit_for_bit():
    source = random_floats()
    matrix = Ternarised(source, Recipe()).trits(Q)
    trits, scale = ternarise_absmean(source.tensors[Q])
    assert np.array_equal(matrix.trits, trits)
    assert matrix.scales.tobytes() == np.float32(scale).tobytes()


@pytest.mark.parametrize(
    ("scheme", "share"), [("absmean", 0.310), ("twn", 0.424), ("threshold", 0.0508)]
)
def test_normal_weights_have_the_zeros_that_theory_says(scheme, share):
    weights = np.random.default_rng(1).standard_normal((512, 512), np.float32)
    trits = Ternarised(Floats({Q: weights}), Recipe(scheme)).trits(Q).trits
    assert (trits == 0).mean() == pytest.approx(share, abs=0.005)


def test_alpha_of_a_class_a_layer_a_matrix_and_a_head():
    recipe = Recipe("threshold", parse_alpha("ffn=0.2,layers.0=0.3,layers.0.q_proj.1=0.9,o_proj=1"))
    assert recipe.alpha(Q) == 0.3
    assert recipe.alpha(Q, 1) == 0.9
    assert recipe.alpha(UP) == 0.2
    assert recipe.alpha(EMBEDDING) == CLASS_ALPHAS["embedding"]
    assert Recipe("threshold").alpha(Q) == 0.08
    assert Recipe("threshold").alpha(UP) == 0.06
    assert Recipe("twn").alpha(UP) == 0.7
    assert Recipe().alpha(UP) is None


def test_one_alpha_a_head_gives_one_scale_a_head():
    source = random_floats()
    matrix = Ternarised(source, Recipe("threshold", parse_alpha("*=0.1,layers.0.q_proj.2=1.5")))
    found = matrix.trits(Q)
    assert found.scales.shape == (1, 32)
    for head in range(4):
        rows = slice(8 * head, 8 * head + 8)
        trits, scale = ternarise_threshold(source.tensors[Q][rows], 1.5 if head == 2 else 0.1)
        assert np.array_equal(found.trits[rows], trits)
        assert (found.scales[0, rows] == scale).all()
    assert matrix.trits(UP).scales.shape == (1, 1)
    assert np.array_equal(matrix.floats(Q, 3, 9), (found.trits * found.scales.T)[3:9])


def test_calibrated_alphas_and_scales_hold():
    source = random_floats()
    chosen = {UP: Calibrated((0.4,), (2.5,))}
    matrix = Ternarised(source, Recipe("threshold"), chosen).trits(UP)
    assert np.array_equal(matrix.trits, ternarise_threshold(source.tensors[UP], 0.4)[0])
    assert matrix.scales == np.float32(2.5)


def test_ternary_matrices_pass_through():
    source = random_floats(ternary=[Q])
    wrapped = Ternarised(source, Recipe("twn"))
    assert np.array_equal(wrapped.trits(Q).trits, source.trits(Q).trits)
    assert not wrapped.is_ours(Q)
    assert wrapped.is_ours(UP)


def test_the_embedding_is_ternary_only_when_asked_and_exact_in_float16():
    source = random_floats()
    plain = Ternarised(source, Recipe("threshold"))
    assert np.array_equal(plain.floats(EMBEDDING), source.tensors[EMBEDDING])
    for scheme, alpha in (("absmean", 0.5), ("threshold", 0.05), ("twn", 0.7)):
        found = Ternarised(source, Recipe(scheme, embedding=True)).floats(EMBEDDING, 5, 9)
        magnitudes = np.unique(np.abs(Ternarised(source, Recipe(scheme, embedding=True)).floats(
            EMBEDDING)))  # fmt: skip
        assert len(magnitudes) == 2
        assert magnitudes[0] == 0
        assert np.float16(magnitudes[1]) == magnitudes[1]
        values = source.tensors[EMBEDDING]
        live = np.abs(values) > alpha * np.abs(values).mean(dtype=np.float64)
        assert np.array_equal(found != 0, live[5:9])


def test_weights_that_are_not_finite_are_refused():
    source = random_floats()
    source.tensors[Q] = np.full((32, 24), np.nan, np.float32)
    with pytest.raises(ModelError, match="finite"):
        Ternarised(source, Recipe()).trits(Q)


@pytest.mark.parametrize("text", ["-1", "x", "5", "nan", "foo=1", "layers.x=1", "ffn=", "ffn=0.1,"])
def test_alphas_that_mean_nothing_are_refused(text):
    with pytest.raises(ConfigError, match="--alpha"):
        parse_alpha(text)


def test_alphas_of_a_scheme_without_one_are_refused():
    with pytest.raises(ConfigError, match="--scheme threshold"):
        Recipe("absmean", {"*": 0.1})
    with pytest.raises(ConfigError, match="expected one of"):
        Recipe("nearest")


def test_the_identity_depends_on_the_recipe():
    source = random_floats()
    found = {
        Ternarised(source, recipe).identity
        for recipe in (Recipe(), Recipe("twn"), Recipe("threshold"), Recipe(embedding=True))
    }
    assert len(found) == 4
