"""PEFT adapters: read as PEFT means them, or refused with one line."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.convert.seal import seal
from edgeagent.errors import ModelError
from edgeagent.model.adapter import adapter_modules
from edgeagent.model.files import open_model, read_adapter
from edgeagent.model.generation import LoadedModel, Params
from edgeagent.model.safetensors import write_safetensors
from tests.tiny import make_model

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
SIZES = {Q: (64, 64), DOWN: (64, 96)}
PLAIN = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "down_proj"],
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "init_lora_weights": True,
    "lora_dropout": 0.1,
}


def weights(rank=4, sizes=SIZES, seed=0):
    """(rank, in) and (out, rank) of every module, by the names that PEFT writes."""
    rng = np.random.default_rng(seed)
    out = {}
    for module, (n_out, n_in) in sizes.items():
        for part, shape in (("A", (rank, n_in)), ("B", (n_out, rank))):
            array = rng.standard_normal(shape, np.float32) * np.float32(0.5)
            out[f"base_model.model.{module}.lora_{part}.weight"] = array
    return out


def tensors(arrays):
    return {n: ("F32", a.shape, memoryview(a).cast("B").toreadonly()) for n, a in arrays.items()}


def scales(config, **kwargs):
    modules = adapter_modules(PLAIN | config, tensors(weights(**kwargs)))
    return {module: scale for module, (scale, _, _) in modules.items()}


def write_adapter(path, config=None, **kwargs):
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(PLAIN | (config or {})))
    with (path / "adapter_model.safetensors").open("wb") as out:
        rows = [(n, "F32", a.shape, a.tobytes()) for n, a in weights(**kwargs).items()]
        write_safetensors(out, rows, {"format": "pt"})
    return path


def test_the_scale_is_alpha_over_r():
    assert scales({}) == {Q: 2.0, DOWN: 2.0}
    assert scales({"use_rslora": True}) == {Q: 4.0, DOWN: 4.0}
    assert scales({"lora_alpha": 0.5}) == {Q: 0.125, DOWN: 0.125}


def test_patterns_name_modules_or_their_ends():
    assert scales({"alpha_pattern": {"q_proj": 32}}) == {Q: 8.0, DOWN: 2.0}
    assert scales({"alpha_pattern": {"layers.1.mlp.down_proj": 2}}) == {Q: 2.0, DOWN: 0.5}
    assert scales({"alpha_pattern": {f"^{Q}": 4, "q_proj": 99}}) == {Q: 1.0, DOWN: 2.0}
    assert scales({"alpha_pattern": {"proj": 99, "^q_proj": 99}}) == {Q: 2.0, DOWN: 2.0}
    arrays = weights(rank=4, sizes={Q: SIZES[Q]}) | weights(rank=2, sizes={DOWN: SIZES[DOWN]})
    config = PLAIN | {"rank_pattern": {"down_proj": 2}}
    assert {m: s for m, (s, *_) in adapter_modules(config, tensors(arrays)).items()} == {
        Q: 2.0,
        DOWN: 4.0,
    }
    rs = adapter_modules(config | {"use_rslora": True}, tensors(arrays))
    assert rs[DOWN][0] == 8 / math.sqrt(2)


CONFIGS = [
    ({"peft_type": "IA3"}, "peft_type: expected 'LORA', got 'IA3'"),
    ({"use_dora": True}, r"use_dora: expected False \(the engine has no such adapter\), got True"),
    ({"bias": "lora_only"}, "bias: expected 'none' .* got 'lora_only'"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save: expected None .* got \['lm_head'\]"),
    ({"lora_bias": True}, "lora_bias: expected False"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out: expected False"),
    ({"use_qalora": True}, "use_qalora: expected False"),
    ({"layer_replication": [[0, 2]]}, "layer_replication: expected None"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: expected one that leaves"),
    ({"r": 0}, "r: expected an integer from 1 to 1024, got 0"),
    ({"r": "4"}, "r: expected an integer from 1 to 1024, got '4'"),
    ({"r": True}, "r: expected an integer from 1 to 1024, got True"),
    ({"lora_alpha": None}, "lora_alpha: expected a number from 0 to 1e[+]06, got None"),
    ({"lora_alpha": float("nan")}, "lora_alpha: expected a number .* got nan"),
    ({"rank_pattern": ["q_proj"]}, "rank_pattern: expected an object of module names"),
    ({"rank_pattern": {"(a+)+b": 4}}, "rank_pattern: expected module names or their ends, got"),
    ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern q_proj: expected a number up to 1e"),
]


@pytest.mark.parametrize(("change", "message"), CONFIGS)
def test_what_computes_something_else_is_refused(change, message):
    with pytest.raises(ModelError, match=rf"^adapter_config.json: {message}"):
        scales(change)


def test_config_and_tensors_must_agree():
    with pytest.raises(ModelError, match=f"{Q}: expected rank 8, got 4"):
        scales({"r": 8})
    with pytest.raises(ModelError, match="target module 'v_proj': no tensor"):
        scales({"target_modules": ["q_proj", "v_proj"]})
    assert scales({"target_modules": "all-linear"}) == {Q: 2.0, DOWN: 2.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"base_model.model.{Q}.lora_magnitude_vector", "expected lora_A and lora_B of linear"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "expected lora_A and lora_B of"),
        (f"{Q}.lora_A.weight", "expected lora_A and lora_B of linear layers only"),
        ("base_model.model.x.lora_A.weight", "x: lora_B is missing"),
        ("base_model.model.x.lora_B.weight", "x: lora_A is missing"),
    ],
)
def test_odd_tensors_are_refused(name, message):
    given = tensors(weights() | {name: np.ones((4, 4), "f4")})
    with pytest.raises(ModelError, match=f"^adapter_model.safetensors: .*{message}"):
        adapter_modules(PLAIN, given)


def test_no_tensors_and_no_matrices_are_refused():
    with pytest.raises(ModelError, match="expected lora_A and lora_B tensors, got none"):
        adapter_modules(PLAIN, {})
    given = tensors(weights() | {f"base_model.model.{Q}.lora_A.weight": np.ones(4, "f4")})
    with pytest.raises(ModelError, match=r"expected a matrix, got shape \(4,\)"):
        adapter_modules(PLAIN, given)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(change=st.dictionaries(st.sampled_from([*PLAIN, "rank_pattern", "alpha_pattern"]), JSON))
def test_any_config_is_read_or_refused(change):
    try:
        got = scales(change)
    except ModelError as err:
        assert "\n" not in str(err)
    else:
        assert all(math.isfinite(scale) for scale in got.values())


# ---- with a model ----


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("m") / "model")


def answer(model):
    steps = model.generate(model.tokenizer.encode_prompt("hello"), Params(max_tokens=12))
    return "".join(steps)


def test_adapters_are_swapped_between_two_answers(path, tmp_path):
    model = LoadedModel(path)
    plain = answer(model)
    one = write_adapter(tmp_path / "one", seed=1)
    other = write_adapter(tmp_path / "other", {"r": 2}, rank=2, seed=2)
    model.set_adapter(one)
    first = answer(model)
    model.set_adapter(other)
    second = answer(model)
    assert len({plain, first, second}) == 3
    model.set_adapter(one)
    assert answer(model) == first
    assert not any(check["ok"] for check in model.check_health())  # it is another function now
    model.set_adapter(None)
    assert answer(model) == plain
    assert all(check["ok"] for check in model.check_health())


def test_a_refused_adapter_leaves_the_one_before(path, tmp_path):
    model = LoadedModel(path)
    model.set_adapter(write_adapter(tmp_path / "good"))
    before = answer(model)
    with pytest.raises(ModelError, match="peft_type"):
        model.set_adapter(write_adapter(tmp_path / "bad", {"peft_type": "LOHA"}))
    with pytest.raises(ModelError, match=r"q_proj lora_A: expected shape \(4, 64\), got \(4, 32\)"):
        model.set_adapter(write_adapter(tmp_path / "odd", sizes={Q: (64, 32), DOWN: (64, 96)}))
    with pytest.raises(ModelError, match=r"adapter_config.json: cannot be read"):
        model.set_adapter(tmp_path)
    assert answer(model) == before


def sealed_with(path, tmp_path, **kwargs):
    """Copy a model, put an adapter beside it and seal both."""
    out = tmp_path / "whole"
    out.mkdir()
    for file in path.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    write_adapter(out, **kwargs)
    return out


def test_an_adapter_is_part_of_its_release(path, tmp_path):
    whole = sealed_with(path, tmp_path, seed=1)
    assert open_model(whole).adapter is None  # lies there, but no release vouches for it
    seal(whole, name="tiny", version="1.1.0", counter=2)
    assert set(open_model(whole).adapter) == {Q, DOWN}
    model, swapped = LoadedModel(whole), LoadedModel(path)
    swapped.set_adapter(whole)
    assert answer(model) == answer(swapped)
    assert all(check["ok"] for check in model.check_health())


def test_half_an_adapter_in_a_release_is_refused(path, tmp_path):
    whole = sealed_with(path, tmp_path)
    (whole / "adapter_model.safetensors").unlink()
    (whole / "release.json").unlink()
    reseal_files(whole)
    with pytest.raises(ModelError, match=r"or neither, got adapter_config.json alone"):
        open_model(whole)


def reseal_files(path):
    from edgeagent.convert.seal import hash_files
    from ota.release import Health, make_release

    release = make_release("tiny", "1.1.0", 2, hash_files(path), Health((), ()))
    (path / "release.json").write_bytes(release.text)


def test_a_damaged_adapter_is_refused(path, tmp_path):
    bad = write_adapter(tmp_path / "bad")
    file = bad / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"adapter_model.safetensors: "):
        read_adapter(bad)
