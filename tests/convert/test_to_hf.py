"""Packed Hugging Face directories: the bytes that transformers unpacks, and what it is told."""

import json

import numpy as np
import pytest

from edgeagent.convert.to_hf import export_hf
from edgeagent.errors import ConfigError, ModelError
from edgeagent.model.safetensors import SafetensorsFile
from tests.convert.checkpoints import MemoryCheckpoint, matrices, write_ours

LLAMA = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
KINDS = {"U8": np.uint8, "F32": np.float32}


def arrays(path):
    file = SafetensorsFile(path / "model.safetensors")
    found = {}
    for name in file.infos:
        dtype, shape, data = file.tensor(name)
        found[name] = np.frombuffer(data, KINDS[dtype]).reshape(shape)
    return found


def config_of(path):
    return json.loads((path / "config.json").read_text())


def unpack(packed):
    """Row r of a plane holds rows r, r + R, r + 2R, r + 3R, the first in the low bits."""
    parts = [(packed >> (2 * i)) & 3 for i in range(4)]
    return np.concatenate(parts).astype(np.int8) - 1


@pytest.mark.parametrize("relu2", [False, True])
def test_bitnet_is_packed_with_scales_to_multiply_by(tmp_path, relu2):
    source = MemoryCheckpoint(hidden_act="relu2" if relu2 else "silu")
    assert export_hf(source, tmp_path / "out") == "BitNetForCausalLM"
    config, found = config_of(tmp_path / "out"), arrays(tmp_path / "out")
    assert config["model_type"] == "bitnet"
    assert config["hidden_act"] == source.config["hidden_act"]
    assert config["quantization_config"]["linear_class"] == "autobitlinear"
    assert config["quantization_config"]["quantization_mode"] == "offline"
    for name, matrix in matrices(source):
        np.testing.assert_array_equal(unpack(found[name]), matrix.trits)
        assert found[f"{name}_scale"] == matrix.scales[0]
    for name in source.shapes():
        if not source.is_ternary(name):
            np.testing.assert_array_equal(found[name], source.floats(name))


@pytest.mark.parametrize("family", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
def test_other_families_are_packed_with_reciprocals(tmp_path, family):
    source = MemoryCheckpoint(
        sub_norms=False, head_norms=family.startswith("Qwen"),
        **(LLAMA | {"architectures": [family]}),
    )  # fmt: skip
    assert export_hf(source, tmp_path / "out") == family
    config, found = config_of(tmp_path / "out"), arrays(tmp_path / "out")
    assert config["quantization_config"] == {
        "quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]
    }  # fmt: skip
    for name, matrix in matrices(source):
        np.testing.assert_array_equal(unpack(found[name]), matrix.trits)
        assert found[f"{name}_scale"] * matrix.scales[0] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_models_of_float_activations_are_float_weights(tmp_path, groups):
    source = MemoryCheckpoint(sub_norms=False, bits=16, groups=groups, **LLAMA)
    export_hf(source, tmp_path / "out")
    assert "quantization_config" not in config_of(tmp_path / "out")
    found = arrays(tmp_path / "out")
    for name in source.shapes():
        np.testing.assert_array_equal(found[name], source.floats(name), err_msg=name)


def test_the_tokenizer_goes_along(tmp_path):
    from edgeagent.convert.ours import open_ours
    from edgeagent.convert.tokenizers import from_hf_dir

    ours = open_ours(write_ours(tmp_path / "m", MemoryCheckpoint()))
    export_hf(ours, tmp_path / "out")
    files = from_hf_dir(tmp_path / "out")
    assert files.tokenizer == ours.tokenizer().tokenizer
    assert files.config == ours.tokenizer().config
    assert config_of(tmp_path / "out")["eos_token_id"] == [1]
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 0, "eos_token_id": [1]}


def test_a_2024_bitnet_takes_the_class_that_transformers_has(tmp_path):
    source = MemoryCheckpoint(architectures=["BitnetForCausalLM"])
    assert export_hf(source, tmp_path / "out") == "BitNetForCausalLM"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"groups": 2}, "one scale a matrix, this one has 512"),
        ({"bits": 16}, "quantises activations"),
        ({"head_dim": 32}, "add up to hidden_size"),
        ({"sub_norms": False, "architectures": ["MiniCPMForCausalLM"]}, "no class of its own"),
        ({"intermediate_size": 510}, "a multiple of 4 rows, not 510"),
    ],
)
def test_what_transformers_has_not_is_refused_and_nothing_is_left(tmp_path, options, reason):
    with pytest.raises(ModelError, match=reason):
        export_hf(MemoryCheckpoint(**options), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_exists_is_not_touched(tmp_path):
    with pytest.raises(ConfigError, match="exists"):
        export_hf(MemoryCheckpoint(), tmp_path)


def test_what_a_run_before_left_is_swept_away(tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "junk").write_text("x")
    export_hf(MemoryCheckpoint(), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
