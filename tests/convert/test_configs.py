import json

import pytest

from edgeagent.convert.configs import check_tensors, expected_tensors, normalise, settle_tying
from edgeagent.errors import ModelError
from tests.convert.published import LLAMA3_8B_TEXT, PUBLISHED

BASE = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
}  # fmt: skip


def normal(**changes):
    return normalise(BASE | changes, "config.json")


def test_what_a_config_leaves_out_is_the_family_s_default():
    llama = normal()
    assert (llama["num_key_value_heads"], llama["head_dim"]) == (4, 16)
    assert (llama["hidden_act"], llama["rope_theta"], llama["rms_norm_eps"]) == ("silu", 1e4, 1e-6)
    bitnet = normal(architectures=["BitNetForCausalLM"])
    assert (bitnet["hidden_act"], bitnet["rope_theta"]) == ("relu2", 500000.0)
    assert normal(architectures=["Qwen3ForCausalLM"])["head_dim"] == 128


def test_null_is_as_good_as_absent_and_the_last_of_two_keys_holds():
    assert normal(head_dim=None, num_key_value_heads=None, rope_scaling=None) == normal()
    raw = json.loads('{"rope_theta": 1.0, "rope_theta": 500000.0}')
    assert normal(**raw)["rope_theta"] == 500000.0


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
    ],
)
def test_three_spellings_of_a_scaling_are_one(spelling):
    got = normal(**spelling)
    assert got["rope_theta"] == 5e5
    assert got["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_a_scaling_that_changes_nothing_is_none():
    assert normal(rope_scaling={"type": "linear", "factor": 1.0})["rope_scaling"] is None
    assert normal(rope_parameters={"rope_type": "default"})["rope_scaling"] is None


def test_longrope_takes_its_old_name_and_the_length_from_beside_it():
    lists = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    got = normal(rope_scaling={"type": "su", **lists}, original_max_position_embeddings=4096)
    assert got["rope_scaling"] == {
        "rope_type": "longrope", **lists, "original_max_position_embeddings": 4096,
    }  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_config_of_every_published_family_is_taken_as_it_is(name):
    raw = PUBLISHED[name]
    config = normalise(raw, "config.json")
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "vocab_size", "rms_norm_eps", "eos_token_id"):  # fmt: skip
        assert config[key] == raw[key]
    assert config["rope_theta"] == raw.get("rope_theta", 10000.0)
    assert config["hidden_act"] == raw["hidden_act"]
    settle_tying(config, raw.get("tie_word_embeddings") is False, "config.json")
    assert config["tie_word_embeddings"] is raw.get("tie_word_embeddings", True)


def test_of_a_key_that_stands_twice_the_last_one_holds():
    assert LLAMA3_8B_TEXT.count("quantization_config") == 2
    assert PUBLISHED["Llama3-8B-1.58"]["quantization_config"]["quant_method"] == "bitnet"


#: transformers 5.24, modeling_rope_utils: plain frequencies divided by those of YaRN, to 6 digits.
YARN = [
    (
        {"factor": 4.0, "original_max_position_embeddings": 32}, 10000.0, 1.138629436111989,
        [1.0, 1.6, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0],
    ),
    (
        {"factor": 8.0, "original_max_position_embeddings": 512, "beta_fast": 16.0,
         "beta_slow": 2.0, "truncate": False}, 10000.0, 1.2079441541679836,
        [1.0, 1.0, 1.396483, 4.317104, 8.0, 8.0, 8.0, 8.0],
    ),
    (
        {"factor": 8.0, "original_max_position_embeddings": 512, "mscale": 1.0,
         "mscale_all_dim": 0.5}, 10000.0, 1.094179988101349,
        [1.0, 1.28, 1.777778, 2.909091, 8.0, 8.0, 8.0, 8.0],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("scaling", "theta", "attention", "factors"), YARN)
def test_yarn_is_longrope_with_the_numbers_of_the_reference(scaling, theta, attention, factors):
    config = normal(rope_theta=theta, rope_scaling={"rope_type": "yarn"} | scaling)
    got = config["rope_scaling"]
    assert got["rope_type"] == "longrope"
    assert got["attention_factor"] == pytest.approx(attention, rel=1e-12)
    assert got["short_factor"] == got["long_factor"] == pytest.approx(factors, rel=1e-6)
    # what was made of it is taken again, and is the same
    assert normalise(BASE | config, "x")["rope_scaling"] == got


def test_ternary_bonsai_is_stretched_by_yarn():
    got = normalise(PUBLISHED["Ternary-Bonsai-1.7B"], "x")["rope_scaling"]
    assert got["long_factor"][:18] == [1.0] * 18
    assert got["long_factor"][18:22] == pytest.approx([1.046154, 1.096774, 1.152542, 1.214286])
    assert got["long_factor"][34:] == pytest.approx([4.0] * 30)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "architectures: expected one of"),
        ({"architectures": None}, "architectures"),
        ({"hidden_size": None}, "hidden_size: expected an integer"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers"),
        ({"num_attention_heads": 5}, "no multiple of 5 heads"),
        ({"num_key_value_heads": 3}, "equal groups"),
        ({"head_dim": 17}, "even heads"),
        ({"head_dim": 8192}, "head_dim: expected an integer from 1 to 4096"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "hidden_act: expected silu or relu2"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope scaling: expected default"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "'yarn': factor: expected a number"),
        ({"rope_scaling": {"type": "yarn", "factor": 1e9}}, "'yarn': expected beta_fast above"),
        ({"rope_scaling": {"type": "yarn", "beta_slow": 64}}, "'yarn': expected beta_fast above"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"rope_scaling": 3}, "expected an object"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"eos_token_id": "</s>"}, "eos_token_id: expected token ids"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_what_the_engine_does_not_have_is_refused_with_its_name(changes, line):
    with pytest.raises(ModelError, match=line) as caught:
        normal(**changes)
    assert "\n" not in str(caught.value)


def test_tying_is_the_key_or_what_the_tensors_say():
    for key, has_head, want in [(None, True, False), (None, False, True), (True, True, True)]:
        config = normal(tie_word_embeddings=key)
        settle_tying(config, has_head, "x")
        assert config["tie_word_embeddings"] is want
    with pytest.raises(ModelError, match=r"lm_head.weight is missing"):
        settle_tying(normal(tie_word_embeddings=False), False, "x")


def test_the_tensors_must_be_those_of_the_config():
    config = normal(tie_word_embeddings=True)
    good = expected_tensors(config, sub_norms=False, head_norms=False)
    check_tensors(config, good, "x")
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ModelError, match="is missing"):
        check_tensors(config, {k: v for k, v in good.items() if k != name}, "x")
    with pytest.raises(ModelError, match="expected shape"):
        check_tensors(config, good | {name: (96, 65)}, "x")
    with pytest.raises(ModelError, match=r"q_proj.bias: not a tensor"):
        check_tensors(config, good | {"model.layers.0.self_attn.q_proj.bias": (64,)}, "x")
    one = {"model.layers.0.mlp.ffn_sub_norm.weight": (96,)}  # in one layer only
    with pytest.raises(ModelError, match="is missing"):
        check_tensors(config, good | one, "x")
