"""Hugging Face directories: what each way of storing a projection means."""

import json

import numpy as np
import pytest

from edgeagent.convert.gguf_types import encode_hf
from edgeagent.convert.hf import HfCheckpoint
from edgeagent.convert.pack import ternarise_absmean
from edgeagent.convert.sources import open_checkpoint
from edgeagent.errors import ModelError
from edgeagent.model.safetensors import write_safetensors
from tests import tiny

UP = "model.layers.1.mlp.up_proj.weight"
CONFIG = tiny.CONFIG | {"vocab_size": 40}


def bf16(values):
    return (np.asarray(values, "<f4").view(np.uint32) >> 16).astype("<u2").tobytes()


def masters(seed=0, config=CONFIG):
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(s) if len(s) == 2 else np.ones(s)).astype("<f4")
        for name, s in tiny.shapes(config)
    }


def item(name, dtype, values):
    data = bf16(values) if dtype == "BF16" else values.tobytes()
    return name, dtype, values.shape, data


def stored(weights, form, scale_of=lambda scale: scale):
    """Store every projection as `form`, everything else as F32."""
    for name, values in weights.items():
        if "_proj" not in name or form == "masters":
            yield item(name, "F32", values)
            continue
        trits, scale = ternarise_absmean(values)
        packed = encode_hf(trits) if form == "packed" else trits.astype("<f4")
        yield item(name, "U8" if form == "packed" else "F32", packed)
        yield item(f"{name}_scale", "F32", np.array([scale_of(scale)], "<f4"))


def write(path, tensors, **changes):
    path.mkdir(exist_ok=True)
    with (path / "model.safetensors").open("wb") as out:
        write_safetensors(out, tensors, {})
    config = {k: v for k, v in (CONFIG | changes).items() if v is not ...}
    (path / "config.json").write_text(json.dumps(config))
    return path


def bitnet(linear_class, mode="offline"):
    return {"quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": mode}


FORMS = [
    ("packed", bitnet("autobitlinear"), lambda s: s),
    ("unpacked", bitnet("autobitlinear"), lambda s: s),
    ("packed", bitnet("bitlinear"), lambda s: 1 / s),
    ("packed", {"quant_method": "bitnet", "modules_to_not_convert": None}, lambda s: 1 / s),
    ("masters", bitnet("autobitlinear", "online"), None),
    ("masters", None, None),
]


@pytest.mark.parametrize(("form", "quantization", "scale_of"), FORMS)
def test_every_form_is_the_same_matrix(tmp_path, form, quantization, scale_of):
    weights = masters()
    source = HfCheckpoint(
        write(tmp_path / "m", stored(weights, form, scale_of), quantization_config=quantization)
    )
    trits, scale = ternarise_absmean(weights[UP])
    assert source.is_ternary(UP)
    assert source.shapes()[UP] == weights[UP].shape
    got = source.trits(UP)
    assert np.array_equal(got.trits, trits)
    assert got.scales == pytest.approx(np.full((1, 1), scale), rel=1e-6)
    assert source.activation_bits == 8
    assert "quantization_config" not in source.config


def test_the_scale_follows_linear_class_and_never_its_size(tmp_path):
    small = {name: values * 0.001 for name, values in masters().items()}
    for linear_class, want in (("autobitlinear", 1), ("bitlinear", -1)):
        path = write(
            tmp_path / linear_class, stored(small, "packed"),
            quantization_config=bitnet(linear_class),
        )  # fmt: skip
        scale = ternarise_absmean(small[UP])[1]
        assert HfCheckpoint(path).trits(UP).scales[0, 0] == pytest.approx(scale**want)


def test_the_names_of_1bitllm_become_those_of_everybody(tmp_path):
    renamed = {
        n.replace("attn_sub_norm", "inner_attn_ln").replace("ffn_sub_norm", "ffn_layernorm"): v
        for n, v in masters().items()
    }
    renamed["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, "<f4")
    path = write(
        tmp_path / "m", stored(renamed, "masters"), architectures=["BitnetForCausalLM"],
        model_type="llama", hidden_act="silu",
    )  # fmt: skip
    source = open_checkpoint(path)
    assert "model.layers.0.self_attn.attn_sub_norm.weight" in source.shapes()
    assert source.config["hidden_act"] == "silu"
    assert source.is_ternary(UP)


def llama(weights):
    return {n: v for n, v in weights.items() if "sub_norm" not in n}


def test_ternary_floats_of_a_llama_are_found_and_its_activations_left_alone(tmp_path):
    weights = llama(masters())
    for name, values in weights.items():
        if "_proj" in name:
            rows = np.linspace(0.5, 1, len(values), dtype=np.float16).astype("<f4")
            weights[name] = (ternarise_absmean(values)[0] * rows[:, None]).astype("<f4")
    changes = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
    source = open_checkpoint(write(tmp_path / "m", stored(weights, "masters"), **changes))
    assert source.activation_bits == 16
    assert source.is_ternary(UP)
    assert source.trits(UP).scales.shape == (1, 96)
    assert np.array_equal(source.floats(UP, 3, 7), weights[UP][3:7])
    weights[UP][5, 5] += 1
    with pytest.raises(ModelError, match="not ternary"):
        source = open_checkpoint(write(tmp_path / "n", stored(weights, "masters"), **changes))
        source.trits(UP)


def test_a_float_llama_is_floats(tmp_path):
    path = write(
        tmp_path / "m", stored(llama(masters()), "masters"), architectures=["LlamaForCausalLM"],
        hidden_act="silu",
    )  # fmt: skip
    source = open_checkpoint(path)
    assert not source.is_ternary(UP)
    assert np.array_equal(source.floats(UP), masters()[UP])


def test_shards_come_from_the_index_and_bf16_is_read_by_rows(tmp_path):
    weights = masters()
    path = tmp_path / "m"
    path.mkdir()
    names = sorted(weights)
    index = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"part-{i}.safetensors"
        with (path / file).open("wb") as out:
            write_safetensors(out, [item(n, "BF16", weights[n]) for n in part], {})
        index |= dict.fromkeys(part, file)
    (path / "stray.safetensors").write_bytes(b"not even a header")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (path / "config.json").write_text(json.dumps(CONFIG))
    source = HfCheckpoint(path)
    rows = source.floats("model.embed_tokens.weight", 3, 5)
    want = (weights["model.embed_tokens.weight"][3:5].view(np.uint32) & 0xFFFF0000).view("<f4")
    assert np.array_equal(rows, want)
    for wrong in ("../part-0.safetensors", "part-0\0", ["part-0.safetensors"], {}, 1):
        index[names[0]] = wrong
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        with pytest.raises(ModelError, match="a file of the directory|tensor names to files"):
            HfCheckpoint(path)


def refusal(tmp_path, tensors, **changes):
    with pytest.raises(ModelError) as caught:
        source = HfCheckpoint(write(tmp_path / "m", tensors, **changes))
        for name in source.shapes():
            if source.is_ternary(name):
                source.trits(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_we_cannot_read_is_refused_with_the_reason(tmp_path):
    good = list(stored(masters(), "masters"))
    norm = item("model.layers.0.mlp.up_proj.rms_norm.weight", "F32", np.ones(64, "<f4"))
    assert "norm before each projection" in refusal(tmp_path, [*good, norm])
    assert "use_rms_norm" in refusal(
        tmp_path, good, quantization_config=bitnet("autobitlinear") | {"use_rms_norm": True}
    )
    assert "quant_method" in refusal(tmp_path, good, quantization_config={"quant_method": "gptq"})
    assert "linear_class" in refusal(tmp_path, good, quantization_config=bitnet("other"))
    assert "architectures" in refusal(tmp_path, good, architectures=["MambaForCausalLM"])
    bias = item("model.layers.0.self_attn.q_proj.bias", "F32", np.ones(64, "<f4"))
    assert "q_proj.bias: not a tensor" in refusal(tmp_path, [*good, bias])
    assert "is missing" in refusal(tmp_path, good[:-1])
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="pickles"):
        HfCheckpoint(tmp_path / "m")


def test_damaged_trits_and_scales_are_refused(tmp_path):
    quantization = {"quantization_config": bitnet("bitlinear")}

    def damaged(change):
        return [change(*entry) for entry in stored(masters(), "packed")]

    def code3(name, dtype, shape, data):
        return name, dtype, shape, b"\xff" + data[1:] if dtype == "U8" else data

    def scale(value):
        data = np.array([value], "<f4").tobytes()
        return lambda n, d, s, old: (n, d, s, data if n.endswith("_scale") else old)

    assert "code 3" in refusal(tmp_path, damaged(code3), **quantization)
    for value in (0, -1, np.nan, np.inf):
        assert "above 0" in refusal(tmp_path, damaged(scale(value)), **quantization)
    lost = [entry for entry in stored(masters(), "packed") if entry[0] != f"{UP}_scale"]
    assert "is missing beside packed trits" in refusal(tmp_path, lost, **quantization)
    odd = {name: values * 0.5 for name, values in masters().items()}
    halves = [(n, d, s, b) for n, d, s, b in stored(odd, "masters")]
    halves += [item(f"{UP}_scale", "F32", np.ones(1, "<f4"))]
    assert "-1, 0 and 1 only" in refusal(tmp_path, halves, **quantization)
    nan = masters()
    nan[UP][0, 0] = np.nan
    assert "NaN" in refusal(tmp_path, stored(nan, "masters"))
