"""What the binding refuses, and with which words: nothing behind it checks again."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent import _core
from tests.core.toy import Shape, make_toy

TOY = make_toy(Shape(hidden=128, heads=2, kv_heads=1, ffn=256, layers=1, vocab=50))
AT = "model.layers.0"


def load(config=None, tensors=None):
    return _core.Model(TOY.config | (config or {}), TOY.tensors() | (tensors or {}))


CONFIGS = [
    ({"hidden_size": None}, "hidden_size: expected an integer from 1 to 65536, got None"),
    ({"hidden_size": 128.0}, "hidden_size: expected an integer .* got 128.0"),
    ({"hidden_size": True}, "hidden_size: expected an integer .* got True"),
    ({"vocab_size": 0}, "vocab_size: expected an integer .* got 0"),
    ({"num_key_value_heads": 3}, "num_key_value_heads: expected an integer from 1 to 2, got 3"),
    ({"head_dim": 63}, "head_dim: expected an even number, got 63"),
    ({"max_position_embeddings": 1 << 21}, "max_position_embeddings: .* 1 to 1048576"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps: expected a number .* got '1e-5'"),
    ({"rope_theta": float("nan")}, "rope_theta: expected a number .* got nan"),
    ({"rope_scaling": 2.0}, "rope_scaling: expected null or an object, got 2.0"),
    ({"hidden_act": "gelu"}, "hidden_act: expected one of relu2, silu, got 'gelu'"),
    ({"hidden_act": []}, r"hidden_act: expected one of relu2, silu, got \[\]"),
    ({"architectures": ["GPT2"]}, r"architectures: expected one of .* got \['GPT2'\]"),
    ({"architectures": None}, "architectures: expected one of .* got None"),
]


@pytest.mark.parametrize(("change", "message"), CONFIGS)
def test_a_wrong_config_is_refused(change, message):
    with pytest.raises(ValueError, match=rf"^config {message}"):
        load(change)


LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 32,
    "long_factor": [1.0] * 32,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

ROPES = [
    ({"type": "yarn"}, "rope_type: expected one of default, linear, llama3, longrope, got None"),
    ({"rope_type": "yarn"}, "rope_type: expected one of .* got 'yarn'"),
    ({"rope_type": "linear"}, "factor: expected a number from 1 to 1e[+]06, got None"),
    ({"rope_type": "linear", "factor": 0.5}, "factor: expected a number .* got 0.5"),
    (LLAMA3 | {"high_freq_factor": 1.0}, ".*low_freq_factor below high_freq_factor, got 1 and 1"),
    (LLAMA3 | {"original_max_position_embeddings": 1}, "original_max.* 2 to 1048576, got 1"),
    (LONG | {"short_factor": [1.0] * 31}, "short_factor: expected a list of 32 numbers"),
    (LONG | {"long_factor": [1.0] * 31 + [0.0]}, "long_factor: expected a list of 32 numbers"),
    (LONG | {"long_factor": [1.0] * 31 + ["1"]}, "long_factor: expected a list of 32 numbers"),
    (LONG | {"attention_factor": -1}, "attention_factor: expected a number .* got -1"),
    (LONG | {"factor": float("inf")}, "factor: expected a number .* got inf"),
]


@pytest.mark.parametrize(("rope", "message"), ROPES)
def test_a_wrong_rope_scaling_is_refused(rope, message):
    with pytest.raises(ValueError, match=rf"^rope_scaling:? ?{message}"):
        load({"rope_scaling": rope})


@pytest.mark.parametrize("key", ["scale_emb", "scale_depth", "dim_model_base"])
def test_minicpm_needs_its_factors(key):
    toy = make_toy(Shape(minicpm=(12.0, 1.4, 64.0), sub_norms=False, layers=1))
    for bad in (None, 0, "1", float("nan")):
        with pytest.raises(ValueError, match=f"^config {key}: expected a number from 1e-06 to 1e"):
            _core.Model(toy.config | {key: bad}, toy.tensors())


def test_qwen3_needs_its_head_norms():
    toy = make_toy(Shape(head_norms=True, sub_norms=False, layers=1))
    tensors = toy.tensors()
    del tensors[f"{AT}.self_attn.q_norm.weight"]
    with pytest.raises(ValueError, match=f"^tensor {AT}.self_attn.q_norm.weight: missing"):
        _core.Model(toy.config, tensors)


@pytest.mark.parametrize("bits", [0, 4, 32, "8", None, True])
def test_wrong_activation_bits_are_refused(bits):
    with pytest.raises(ValueError, match="^quantization_config activation_bits: expected 8 or 16"):
        load({"quantization_config": {"layout": 1, "activation_bits": bits}})


def test_float_activations_are_for_trits_only():
    with pytest.raises(ValueError, match=r"activation_bits: expected 8 in layout 5, got 16"):
        load({"quantization_config": {"layout": 5, "activation_bits": 16}})


def test_matrices_of_one_input_need_one_number_of_groups():
    name = f"{AT}.self_attn.k_proj.weight_scale"
    with pytest.raises(
        ValueError, match=rf"^tensor {AT}: expected one number of groups .* 1, 2, 1"
    ):
        load(tensors={name: ("F32", (2, 64), floats(2, 64))})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
ROPE_KEYS = sorted({*LONG, *LLAMA3, "attention_factor", "factor"})
ROPE_JSON = st.dictionaries(
    st.sampled_from(ROPE_KEYS), JSON | st.sampled_from([*LONG.values(), 8.0])
)
QUANTIZATION = st.dictionaries(st.sampled_from(["layout", "activation_bits"]), JSON)


@settings(deadline=None, max_examples=200)
@given(
    change=st.dictionaries(st.sampled_from([*TOY.config, "scale_emb", "rope_scaling"]), JSON),
    rope=ROPE_JSON,
    kind=st.sampled_from([None, "linear", "llama3", "longrope", "yarn"]),
    quantization=st.none() | QUANTIZATION,
)
def test_any_config_is_taken_or_refused_with_one_line(change, rope, kind, quantization):
    if kind is not None:
        change = change | {"rope_scaling": rope | {"rope_type": kind}}
    if quantization is not None:
        change = change | {"quantization_config": quantization}
    try:
        model = load(change)
    except ValueError as err:
        assert "\n" not in str(err)
    else:
        _core.Session(model, 2).eval([1, 2])


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="num_key_value_heads: expected a divisor of 3 heads"):
        load({"num_attention_heads": 3, "num_key_value_heads": 2})


def floats(*shape, dtype=np.float32):
    return memoryview(np.ones(shape, dtype)).cast("B")


TENSORS = [
    (f"{AT}.input_layernorm.weight", ("F16", (128,), floats(64)), "expected dtype F32, got F16"),
    (
        f"{AT}.input_layernorm.weight",
        ("F32", (64,), floats(64)),
        r"expected shape \(128,\), got \(64,\)",
    ),
    ("model.norm.weight", ("F32", (128,), floats(127)), "expected 512 bytes, got 508"),
    (
        "model.norm.weight",
        ("F32", (128,), floats(129)[2:514]),
        "expected its bytes aligned to 4, got an unaligned address",
    ),
    (
        f"{AT}.mlp.up_proj.weight",
        ("U8", (256, 33), memoryview(bytes(256 * 33))),
        r"expected shape \(256, 32\) \(rows\) or \(1, 128, 64\) \(lines\), "
        r"got \(256, 33\)",
    ),
    (
        f"{AT}.mlp.up_proj.weight",
        ("F32", (256, 32), floats(256, 32)),
        "expected dtype U8, got F32",
    ),
    (
        f"{AT}.mlp.up_proj.weight_scale",
        ("F32", (1,), memoryview(np.array([np.inf], "f4")).cast("B")),
        "expected a finite number above 0, got inf",
    ),
    (
        f"{AT}.mlp.up_proj.weight_scale",
        ("F32", (1,), memoryview(np.array([0], "f4")).cast("B")),
        "expected a finite number above 0, got 0",
    ),
    (
        f"{AT}.mlp.up_proj.weight_scale",
        ("F32", (1, 255), floats(255)),
        r"expected shape \(1,\) or \(G, 256\) with G a divisor of 128, got \(1, 255\)",
    ),
    (f"{AT}.mlp.up_proj.weight_scale", ("F32", (0, 256), floats(0)), r"expected shape \(1,\) or"),
    (f"{AT}.mlp.up_proj.weight_scale", ("F32", (3, 256), floats(768)), r"expected shape \(1,\) or"),
    (
        f"{AT}.mlp.up_proj.weight_scale",
        ("F32", (2, 256), floats(512)),
        r"expected a plane of lines \(layout 1\) for 2 groups, got rows",
    ),
    (
        f"{AT}.mlp.down_proj.weight_scale",
        ("F32", (128, 128), floats(128, 128)),
        "expected groups of a multiple of 4 inputs, got 128 groups of 2",
    ),
    (
        f"{AT}.mlp.down_proj.weight_scale",
        ("F32", (1, 128), memoryview(np.full(128, -1, "f4")).cast("B")),
        "expected a finite number from 0, got -1",
    ),
    ("lm_head.weight", ("F16", (50, 128), memoryview(bytes(12800))), r"unknown \(1 in all\)"),
]


@pytest.mark.parametrize(("name", "tensor", "message"), TENSORS)
def test_a_wrong_tensor_is_refused(name, tensor, message):
    with pytest.raises(ValueError, match=rf"^tensor {name}: {message}"):
        load(tensors={name: tensor})


@pytest.mark.parametrize("name", [n for n in TOY.tensors() if "sub_norm" not in n])
def test_every_tensor_is_needed(name):
    tensors = TOY.tensors()
    del tensors[name]
    with pytest.raises(ValueError, match=f"^tensor {name}: missing$"):
        _core.Model(TOY.config, tensors)


def test_sub_norms_exist_in_every_layer_or_in_none():
    toy = make_toy(Shape(layers=2))
    tensors = toy.tensors()
    del tensors["model.layers.1.mlp.ffn_sub_norm.weight"]
    with pytest.raises(ValueError, match=r"^tensor model.layers.1.mlp.ffn_sub_norm.weight: miss"):
        _core.Model(toy.config, tensors)
    tensors = toy.tensors()
    del tensors["model.layers.0.mlp.ffn_sub_norm.weight"]
    with pytest.raises(ValueError, match=r"^tensor model.layers.1.mlp.ffn_sub_norm.weight: unkn"):
        _core.Model(toy.config, tensors)


def test_an_untied_model_needs_its_head():
    with pytest.raises(ValueError, match=r"^tensor lm_head.weight: missing"):
        load({"tie_word_embeddings": False})


def test_an_unsupported_kernel_is_refused():
    with pytest.raises(ValueError, match=r"^kernel 'abacus' is unknown"):
        _core.Model(TOY.config, TOY.tensors(), "abacus")


@pytest.mark.parametrize("context", [0, -1, 513])
def test_a_context_outside_the_model_is_refused(context):
    with pytest.raises(ValueError, match=f"context: expected 1 to 512 positions, got {context}"):
        _core.Session(load(), context)


@pytest.mark.parametrize("threads", [0, -1, 65])
def test_a_wrong_number_of_threads_is_refused(threads):
    with pytest.raises(ValueError, match=f"threads: expected 1 to 64, got {threads}"):
        _core.Session(load(), 8, threads)
    session = _core.Session(load(), 8)
    with pytest.raises(ValueError, match="threads: expected 1 to 64"):
        session.threads = threads
    assert session.threads == 1


@pytest.fixture
def session():
    s = _core.Session(load(), 8)
    s.eval([1, 2, 3])
    return s


def assert_unchanged(session):
    assert session.n_past == 3
    fresh = _core.Session(load(), 8)
    fresh.eval([1, 2, 3])
    assert bytes(session.logits()) == bytes(fresh.logits())


@pytest.mark.parametrize("bad", [-1, 50, 1 << 40])
def test_a_bad_token_is_refused_and_nothing_changes(session, bad):
    with pytest.raises(ValueError, match=f"token 1: expected an id from 0 to 49, got {bad}"):
        session.eval([4, bad])
    assert_unchanged(session)


def test_too_many_tokens_are_refused_and_nothing_changes(session):
    message = r"expected at most 5 \(context 8, used 3\), got 6"
    with pytest.raises(OverflowError, match=message):
        session.eval([1] * 6)
    assert_unchanged(session)
    session.eval([1] * 5)
    assert session.n_past == 8


def test_no_tokens_are_refused(session):
    with pytest.raises(ValueError, match="expected at least one, got none"):
        session.eval([])
    assert_unchanged(session)


def test_a_token_that_is_no_integer_is_refused(session):
    with pytest.raises(TypeError):
        session.eval([1.0])
    assert_unchanged(session)


@pytest.mark.parametrize("n_past", [-1, 4])
def test_truncate_outside_the_past_is_refused(session, n_past):
    with pytest.raises(ValueError, match=f"n_past: expected 0 to 3, got {n_past}"):
        session.truncate(n_past)


def test_there_are_no_logits_before_eval_and_after_truncate(session):
    session.truncate(2)
    for s in (session, _core.Session(load(), 8)):
        with pytest.raises(RuntimeError, match="no logits: eval tokens first"):
            s.logits()
        with pytest.raises(RuntimeError, match="no logits"):
            _core.Sampler().sample(s)


def test_logits_are_read_only(session):
    with pytest.raises(TypeError):
        session.logits()[0] = 1.0


def test_a_session_in_use_refuses_a_second_thread():
    toy = make_toy(Shape(hidden=512, ffn=2048, layers=4, vocab=64))
    session = _core.Session(_core.Model(toy.config, toy.tensors(), "scalar"), 512)
    worker = threading.Thread(target=session.eval, args=([1] * 40,))
    worker.start()
    refused = 0
    while worker.is_alive():
        try:
            session.truncate(0)
        except RuntimeError as error:
            assert str(error) == "this session is in use by another thread"
            refused += 1
            break
    worker.join()
    assert refused


SAMPLERS = [
    ({"temperature": -0.1}, "temperature: expected 0 to 100, got -0.1"),
    ({"temperature": float("nan")}, "temperature: expected 0 to 100, got nan"),
    ({"top_k": -1}, "top_k: expected 0 to "),
    ({"top_p": 1.1}, "top_p: expected 0 to 1, got 1.1"),
    ({"min_p": -1}, "min_p: expected 0 to 1, got -1"),
    ({"repetition_penalty": 0}, "repetition_penalty: expected 0.01 to 100, got 0"),
]


@pytest.mark.parametrize(("arguments", "message"), SAMPLERS)
def test_a_wrong_sampler_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _core.Sampler(**arguments)


def test_a_recent_token_outside_the_vocabulary_is_refused(session):
    with pytest.raises(ValueError, match="token 0: expected an id from 0 to 49, got 50"):
        _core.Sampler().sample(session, [50])
