"""GGUF files: the gguf package, which is llama.cpp's own, reads in them what went in."""

import gguf
import numpy as np
import pytest

from edgeagent.convert.checkpoint import TritMatrix
from edgeagent.convert.configs import normalise
from edgeagent.convert.gguf import GgufCheckpoint
from edgeagent.convert.gguf_trits import (
    F16,
    IQ2_BN,
    Q4_0,
    TQ1_0,
    TQ2_0,
    choose,
    encode,
    half_scales,
)
from edgeagent.convert.to_gguf import (
    FORMATS,
    IK_FORMATS,
    export_gguf,
    gguf_name,
    interleave,
    llama3_factors,
)
from edgeagent.convert.tokenizers import from_gguf
from edgeagent.errors import AdapterError, ModelError
from tests.convert.checkpoints import CONFIG, MemoryCheckpoint, matrices, write_ours

LLAMA = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
QWEN = {"architectures": ["Qwen3ForCausalLM"], "head_dim": 128}
MINICPM = {
    "architectures": ["MiniCPMForCausalLM"], "scale_emb": 12, "scale_depth": 1.4,
    "dim_model_base": 128,
}  # fmt: skip


def read(path):
    reader = gguf.GGUFReader(path)
    keys = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        for t in reader.tensors
    }
    return keys, tensors, {t.name: t.tensor_type.name for t in reader.tensors}


def half(matrix):
    """What a matrix is when its scales are float16."""
    scales = matrix.scales.astype(np.float16).astype(np.float32)
    out, width = matrix.trits.shape
    groups = scales.shape[0]
    each = np.broadcast_to(scales, (groups, out)).T[:, :, None]
    return (matrix.trits.reshape(out, groups, -1) * each).reshape(out, width).astype(np.float32)


def unpermuted(name, values, source, arch):
    """Undo the order of rows of architectures that rotate neighbours."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    key = heads.get(name.split(".")[-2])
    if key is None or arch not in ("llama", "minicpm"):
        return values
    n = source.config[key]
    return values.reshape(n, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


@pytest.mark.parametrize("file_format", [f for f in FORMATS if f not in IK_FORMATS])
@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("bitnet", {}),
        ("bitnet-b1.58", {"hidden_act": "relu2"}),
        ("llama", {"sub_norms": False, **LLAMA}),
        ("llama", {"sub_norms": False, "groups": 1, "bits": 16, **LLAMA}),
        ("qwen3", {"sub_norms": False, "head_norms": True, **QWEN}),
        ("qwen3", {"sub_norms": False, "head_norms": True, "groups": 2, "bits": 16, **QWEN}),
        ("minicpm", {"sub_norms": False, **MINICPM}),
    ],
)
def test_the_file_holds_the_trits_and_the_norms(tmp_path, file_format, arch, options):
    source = MemoryCheckpoint(**options)
    done = export_gguf(source, tmp_path / "m.gguf", file_format)
    keys, tensors, types = read(tmp_path / "m.gguf")
    assert done.architecture == keys["general.architecture"] == arch
    for name, matrix in matrices(source):
        got = unpermuted(name, tensors[gguf_name(name)], source, arch)
        np.testing.assert_array_equal(got, half(matrix), err_msg=name)
    for name in source.shapes():
        if not source.is_ternary(name):
            np.testing.assert_array_equal(tensors[gguf_name(name)], source.floats(name))
    assert types["token_embd.weight"] == "F16"
    assert types["output_norm.weight"] == "F32"
    assert set(tensors) == {gguf_name(name) for name in source.shapes()}
    assert done.n_ternary + sum(done.others.values()) == 14
    assert bool(done.notes) == (options.get("bits") == 16 or "hidden_act" in options)


def test_keys_say_what_the_model_is(tmp_path):
    export_gguf(MemoryCheckpoint(hidden_act="relu2"), tmp_path / "m.gguf", "gguf-tq2_0")
    keys, _, types = read(tmp_path / "m.gguf")
    assert keys["general.file_type"] == gguf.LlamaFileType.MOSTLY_TQ2_0
    assert keys["bitnet-b1.58.attention.head_count_kv"] == 2
    assert keys["bitnet-b1.58.attention.key_length"] == 64
    assert keys["bitnet-b1.58.context_length"] == 128
    assert keys["bitnet-b1.58.hidden_activation"] == "relu2"
    assert keys["bitnet-b1.58.rope.freq_base"] == 10000.0
    assert keys["tokenizer.ggml.model"] == "none"
    assert sum(kind == "TQ2_0" for kind in types.values()) == 14


@pytest.mark.parametrize("file_format", FORMATS)
def test_no_file_of_squared_relu_has_a_name_that_means_silu_unless_asked(tmp_path, file_format):
    source = MemoryCheckpoint(hidden_act="relu2")
    done = export_gguf(source, tmp_path / "m.gguf", file_format)
    there = GgufCheckpoint(tmp_path / "m.gguf")
    assert there.metadata["general.architecture"] == "bitnet-b1.58"
    assert there.config["hidden_act"] == "relu2"
    assert "ik_llama.cpp" in done.notes[0]
    asked = export_gguf(source, tmp_path / "n.gguf", file_format, as_bitnet=True)
    assert asked.architecture == "bitnet"
    assert "text is wrong" in asked.notes[-1]
    assert GgufCheckpoint(tmp_path / "n.gguf").config["hidden_act"] == "relu2"
    silu = export_gguf(MemoryCheckpoint(), tmp_path / "o.gguf", file_format, as_bitnet=True)
    assert silu.architecture == "bitnet"
    assert not any("ReLU" in note for note in silu.notes)


@pytest.mark.parametrize("options", [{}, {"groups": 1, "sub_norms": False, **LLAMA}])
def test_iq2_bn_keeps_the_scales_as_they_are(tmp_path, options):
    source = MemoryCheckpoint(**options)
    done = export_gguf(source, tmp_path / "m.gguf", "gguf-iq2_bn")
    assert (done.n_ternary, done.others) == (14, {})
    there = GgufCheckpoint(tmp_path / "m.gguf")
    for name, matrix in matrices(source):
        again = there.trits(name)
        np.testing.assert_array_equal(again.trits, matrix.trits, err_msg=name)
        np.testing.assert_array_equal(again.scales, matrix.scales, err_msg=name)
        np.testing.assert_array_equal(there.floats(name, 3, 9), there.floats(name)[3:9])


def test_the_scales_of_minicpm(tmp_path):
    source = MemoryCheckpoint(sub_norms=False, **MINICPM)
    export_gguf(source, tmp_path / "m.gguf", "gguf-tq1_0")
    keys, *_ = read(tmp_path / "m.gguf")
    assert keys["minicpm.embedding_scale"] == 12
    assert keys["minicpm.residual_scale"] == pytest.approx(1.4 / 2**0.5)
    assert keys["minicpm.logit_scale"] == 2


def test_rows_that_no_ternary_type_takes_have_another_one(tmp_path):
    source = MemoryCheckpoint(
        sub_norms=False, hidden_size=96, intermediate_size=520, head_dim=24, **LLAMA
    )
    done = export_gguf(source, tmp_path / "m.gguf", "gguf-tq2_0")
    _, tensors, types = read(tmp_path / "m.gguf")
    assert types["blk.0.attn_q.weight"] == "Q4_0"
    assert types["blk.0.ffn_down.weight"] == "F16"  # rows of 520
    assert done.others == {"Q4_0": 12, "F16": 2}
    for name, matrix in matrices(source):
        got = unpermuted(name, tensors[gguf_name(name)], source, "llama")
        np.testing.assert_array_equal(got, half(matrix), err_msg=name)


def test_the_tokenizer_goes_along_and_comes_back(tmp_path):
    from edgeagent.convert.ours import open_ours

    ours = open_ours(write_ours(tmp_path / "m", MemoryCheckpoint()))
    export_gguf(ours, tmp_path / "m.gguf", "gguf-tq2_0")
    keys, *_ = read(tmp_path / "m.gguf")
    files = from_gguf(keys)
    assert files.config == dict(ours.tokenizer().config) | {"bos_token": "<|bos|>"}
    assert len(keys["tokenizer.ggml.tokens"]) == 272
    export_gguf(ours, tmp_path / "n.gguf", "gguf-tq2_0", with_tokenizer=False)
    assert read(tmp_path / "n.gguf")[0]["tokenizer.ggml.model"] == "none"


def test_linear_and_llama3_rotations(tmp_path):
    linear = {"rope_type": "linear", "factor": 4.0}
    export_gguf(
        MemoryCheckpoint(sub_norms=False, rope_scaling=linear, **LLAMA), tmp_path / "a.gguf",
        "gguf-tq2_0",
    )  # fmt: skip
    keys, *_ = read(tmp_path / "a.gguf")
    assert (keys["llama.rope.scaling.type"], keys["llama.rope.scaling.factor"]) == ("linear", 4)
    llama3 = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    source = MemoryCheckpoint(sub_norms=False, rope_scaling=llama3, **LLAMA)
    export_gguf(source, tmp_path / "b.gguf", "gguf-tq2_0")
    factors = read(tmp_path / "b.gguf")[1]["rope_freqs.weight"]
    assert factors[0] == 1
    assert factors[-1] == 8
    np.testing.assert_array_equal(factors, llama3_factors(source.config))


def test_longrope_has_two_tensors(tmp_path):
    scaling = {
        "rope_type": "longrope", "long_factor": [2.0] * 32, "short_factor": [1.0] * 32,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    source = MemoryCheckpoint(sub_norms=False, **(MINICPM | {"rope_scaling": scaling}))
    export_gguf(source, tmp_path / "m.gguf", "gguf-tq2_0")
    keys, tensors, _ = read(tmp_path / "m.gguf")
    assert keys["minicpm.rope.scaling.original_context_length"] == 64
    np.testing.assert_array_equal(tensors["rope_factors_long.weight"], np.full(32, 2.0))


def test_yarn_comes_back_from_a_file(tmp_path):
    at = "qwen3.rope.scaling"
    for attention in ({}, {"attention_factor": 2.0, "beta_fast": 16.0}):
        scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
        raw = CONFIG | {"architectures": ["Qwen3ForCausalLM"], "rope_scaling": scaling | attention}
        config = normalise(raw, "config.json")
        export_gguf(
            MemoryCheckpoint(sub_norms=False, head_norms=True, bits=16, **config),
            tmp_path / "m.gguf", "gguf-tq2_0",
        )  # fmt: skip
        keys, tensors, _ = read(tmp_path / "m.gguf")
        assert keys[f"{at}.type"] == "yarn"
        assert not any(name.startswith("rope") for name in tensors)
        found = GgufCheckpoint(tmp_path / "m.gguf").config["rope_scaling"]
        assert found["attention_factor"] == pytest.approx(
            config["rope_scaling"]["attention_factor"]
        )
        assert found["long_factor"] == pytest.approx(config["rope_scaling"]["long_factor"])
        (tmp_path / "m.gguf").unlink()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tie_word_embeddings": False}, "has a tied one"),
        ({"head_norms": True}, "no architecture"),
        ({"sub_norms": False, "hidden_act": "relu2"}, "no architecture"),
        ({"head_dim": 32}, "add up to the hidden size"),
        ({"sub_norms": False, "rope_scaling": {"rope_type": "yarn"}}, "'yarn' cannot be written"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
    ],
)
def test_models_that_llama_cpp_has_not_are_refused_and_nothing_is_left(tmp_path, options, reason):
    with pytest.raises(ModelError, match=reason):
        export_gguf(MemoryCheckpoint(**options), tmp_path / "m.gguf", "gguf-tq2_0")
    assert not list(tmp_path.iterdir())


def test_a_float_matrix_must_be_ternarised_first(tmp_path):
    source = MemoryCheckpoint()
    name = "model.layers.1.mlp.up_proj.weight"
    source._arrays[name] = source.floats(name)
    with pytest.raises(ModelError, match="ternarise"):
        export_gguf(source, tmp_path / "m.gguf", "gguf-tq2_0")


def test_a_source_that_breaks_off_leaves_no_file(tmp_path):
    source = MemoryCheckpoint()
    name = "model.layers.1.mlp.up_proj.weight"
    (tmp_path / "m.gguf").write_text("what was there")

    def broken(asked, read=source.trits, seen=[]):  # noqa: B006
        seen.append(asked)
        if seen.count(name) == 2:
            raise ModelError("damaged")
        return read(asked)

    source.trits = broken
    with pytest.raises(ModelError, match="damaged"):
        export_gguf(source, tmp_path / "m.gguf", "gguf-tq2_0")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_text() == "what was there"


def test_a_disk_that_refuses_is_named(tmp_path):
    with pytest.raises(AdapterError, match="cannot be written"):
        export_gguf(MemoryCheckpoint(), tmp_path / "nowhere" / "m.gguf", "gguf-tq2_0")


def test_progress_is_told(tmp_path):
    seen = []
    export_gguf(
        MemoryCheckpoint(), tmp_path / "m.gguf", "gguf-tq2_0", progress=lambda *at: seen.append(at)
    )
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_which_type_a_matrix_gets():
    assert choose((8, 512), 1, TQ2_0).kind == TQ2_0
    assert choose((8, 192), 1, IQ2_BN).n_bytes == 8 * (4 + 48)
    assert choose((8, 512), 2, IQ2_BN).kind == Q4_0
    assert choose((8, 512), 2, TQ1_0).kind == TQ1_0
    assert choose((8, 512), 4, TQ1_0).kind == Q4_0
    assert choose((8, 512), 32, TQ1_0).kind == F16
    assert choose((8, 96), 1, TQ1_0).kind == Q4_0
    assert choose((8, 100), 1, TQ1_0).kind == F16


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_scales_that_float16_cannot_hold_are_refused(scale):
    with pytest.raises(ModelError, match="float16 holds"):
        half_scales(np.full((1, 1), scale, np.float32), "q")


def test_a_dead_matrix_may_have_scale_zero():
    matrix = TritMatrix(np.zeros((4, 256), np.int8), np.zeros((1, 1), np.float32))
    assert not encode(matrix, choose((4, 256), 1, TQ2_0), "q")[:, 64:].any()


def test_interleaving_is_undone_by_the_other_view():
    rows = np.arange(24).reshape(12, 2)
    there = interleave(rows, 2)
    assert there[:, 0].tolist() == [0, 6, 2, 8, 4, 10, 12, 18, 14, 20, 16, 22]
