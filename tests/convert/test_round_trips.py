"""Out and in again: every way through the formats gives the trits that went in."""

import json

import numpy as np
import pytest

from edgeagent.convert.ours import open_ours
from edgeagent.convert.packed import Options, write_model
from edgeagent.convert.seal import seal
from edgeagent.convert.sources import open_checkpoint
from edgeagent.convert.to_gguf import FORMATS, export_gguf
from edgeagent.convert.to_hf import export_hf
from edgeagent.model.generation import LoadedModel
from tests.convert.checkpoints import MemoryCheckpoint, assert_same_trits, write_ours

FAMILIES = {
    "bitnet": {},
    "bitnet-relu2": {"hidden_act": "relu2"},
    "bitnet-odd": {"hidden_size": 200, "intermediate_size": 332, "head_dim": 50},
    "llama": {
        "sub_norms": False, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False
    },
    "llama-rows": {
        "sub_norms": False, "architectures": ["LlamaForCausalLM"], "groups": 1, "bits": 16
    },
    "qwen3-groups": {
        "sub_norms": False, "head_norms": True, "architectures": ["Qwen3ForCausalLM"],
        "groups": 2, "bits": 16,
    },
    "minicpm": {
        "sub_norms": False, "architectures": ["MiniCPMForCausalLM"], "scale_emb": 12,
        "scale_depth": 1.4, "dim_model_base": 128, "bits": 16,
    },
}  # fmt: skip
HALF = 2.0**-11  # rounding of a scale to float16
TWICE = 2.0**-22  # of a reciprocal and its reciprocal


def sealed(path, source):
    """Write with the converter's own writer and seal: what a device would load."""
    write_model(source, path, Options())
    seal(path, name="t", version="1.0.0", counter=1, texts=("abc",))
    return open_ours(path)


def first(path, options):
    source = MemoryCheckpoint(**options)
    return source, open_ours(write_ours(path, source))


def assert_same_floats(one, other):
    for name in one.shapes():
        if not one.is_ternary(name):
            np.testing.assert_array_equal(other.floats(name), one.floats(name), err_msg=name)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ours_to_gguf_to_ours(tmp_path, family, file_format):
    source, ours = first(tmp_path / "a", FAMILIES[family])
    export_gguf(ours, tmp_path / "m.gguf", file_format)
    there = open_checkpoint(tmp_path / "m.gguf")
    again = sealed(tmp_path / "b", there)
    by_row = source.shapes().keys() and FAMILIES[family].get("groups", 0)
    if not by_row:
        assert_same_trits(ours, again, scales=HALF)
    for name in (n for n in ours.shapes() if ours.is_ternary(n)):
        np.testing.assert_array_equal(again.trits(name).trits, ours.trits(name).trits)
        np.testing.assert_allclose(again.floats(name), ours.floats(name), rtol=HALF)
    assert_same_floats(ours, again)
    assert again.activation_bits == ours.activation_bits
    for key in ("hidden_act", "num_key_value_heads", "rope_theta", "max_position_embeddings"):
        assert again.config[key] == ours.config[key], key


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "minicpm"])
def test_ours_to_hugging_face_to_ours(tmp_path, family):
    _, ours = first(tmp_path / "a", FAMILIES[family])
    export_hf(ours, tmp_path / "hf")
    again = sealed(tmp_path / "b", open_checkpoint(tmp_path / "hf"))
    assert again.activation_bits == ours.activation_bits
    for name in (n for n in ours.shapes() if ours.is_ternary(n)):
        np.testing.assert_array_equal(again.trits(name).trits, ours.trits(name).trits, name)
        np.testing.assert_allclose(again.floats(name), ours.floats(name), rtol=TWICE)
    assert_same_floats(ours, again)
    assert again.tokenizer() == ours.tokenizer()


def test_hugging_face_to_ours_to_gguf_to_ours(tmp_path):
    _, made = first(tmp_path / "a", FAMILIES["llama"])
    export_hf(made, tmp_path / "hf")
    ours = sealed(tmp_path / "b", open_checkpoint(tmp_path / "hf"))
    export_gguf(ours, tmp_path / "m.gguf", "gguf-tq1_0")
    again = sealed(tmp_path / "c", open_checkpoint(tmp_path / "m.gguf"))
    assert_same_trits(ours, again, scales=HALF)
    text = "hello 12 \u00e9"
    one, other = LoadedModel(tmp_path / "b").tokenizer, LoadedModel(tmp_path / "c").tokenizer
    assert one.encode_prompt(text) == other.encode_prompt(text)


def test_the_command_exports(tmp_path, capsys):
    from edgeagent.cli import main

    first(tmp_path / "a", FAMILIES["bitnet-relu2"])
    model = str(tmp_path / "a")
    assert (
        main(["export", model, str(tmp_path / "m.gguf"), "--format", "gguf-tq2_0", "--json"]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == (tmp_path / "m.gguf").stat().st_size
    assert (said["architecture"], said["ternary"], said["others"]) == ("bitnet-b1.58", 14, {})
    assert "SiLU" in said["notes"][0]
    as_ik = ["export", model, str(tmp_path / "i.gguf"), "--format", "gguf-iq2_bn"]
    assert main(as_ik) == 0
    told = capsys.readouterr()
    assert told.err.startswith("note: IQ2_BN is a type of ik_llama.cpp")
    assert "bitnet-b1.58" in told.out
    assert main([*as_ik[:-1], "gguf-tq1_0", "--relu2-as-bitnet"]) == 0
    assert "its text is wrong" in capsys.readouterr().err
    assert main(["export", model, str(tmp_path / "hf"), "--format", "hf"]) == 0
    assert "BitNetForCausalLM" in capsys.readouterr().out
    assert main(["export", model, str(tmp_path / "hf"), "--format", "hf"]) == 78
    assert "exists" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), "x", "--format", "hf"]) == 65
