"""GGUF files as checkpoints: what each architecture means, against the `gguf` package's writer."""

import gguf
import numpy as np
import pytest

from edgeagent.convert.checkpoint import TritMatrix
from edgeagent.convert.configs import expected_tensors, normalise
from edgeagent.convert.gguf import GgufCheckpoint
from edgeagent.convert.gguf_types import encode_blocks, encode_i2s
from edgeagent.convert.gguf_write import Planned, write_gguf_file
from edgeagent.convert.to_gguf import gguf_name, interleave
from edgeagent.errors import ModelError

Q, K, UP = (f"model.layers.0.{n}_proj.weight" for n in ("self_attn.q", "self_attn.k", "mlp.up"))
SCALE = np.float32(0.75)
KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "BF16": 30, "I2_S": 36}
KINDS |= {"TQ1_0": 34, "TQ2_0": 35, "Q2_0_G64": 42, "Q2_0_G128": 42, "PTQ1_0": 143}


def config(**changes):
    values = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 8, "max_position_embeddings": 64, "head_dim": 64,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return normalise(values | changes, "x")


def trits_of(name, shape):
    return np.random.default_rng(len(name)).integers(-1, 2, shape).astype(np.int8)


def keys_of(c, arch):
    return {
        "general.architecture": arch, f"{arch}.context_length": 64,
        f"{arch}.embedding_length": c["hidden_size"], f"{arch}.block_count": 1,
        f"{arch}.feed_forward_length": c["intermediate_size"],
        f"{arch}.attention.head_count": c["num_attention_heads"],
        f"{arch}.attention.head_count_kv": c["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.dimension_count": c["head_dim"], f"{arch}.rope.freq_base": 10000.0,
    }  # fmt: skip


def as_stored(name, shape, arch, kind, c):
    """Trits in the file's order of rows, encoded."""
    matrix = trits_of(name, shape)
    if arch in ("llama", "minicpm") and name in (Q, K):
        heads = c["num_attention_heads" if name == Q else "num_key_value_heads"]
        matrix = interleave(matrix, heads)
    if kind == "I2_S":
        return encode_i2s(matrix, SCALE)
    if kind in ("Q4_0", "F16"):
        return gguf.quants.quantize(matrix * SCALE, gguf.GGMLQuantizationType[kind])
    return encode_blocks(kind, matrix, SCALE)


def write(path, arch="llama", kind="TQ2_0", embedding="F16", extra=(), c=None, **keys):
    c = c or config()
    names = expected_tensors(c, sub_norms=arch.startswith("bitnet"), head_norms=arch == "qwen3")
    planned, data = [], []

    def add(name, number, shape, values):
        planned.append(Planned(name, number, shape, values.nbytes))
        data.append(values)

    for name, shape in names.items():
        if len(shape) == 1:
            add(gguf_name(name), 0, shape, np.ones(shape, "<f4"))
        elif name.endswith("embed_tokens.weight"):
            of = gguf.GGMLQuantizationType[embedding]
            values = np.linspace(-1, 1, shape[0] * shape[1], dtype="<f4").reshape(shape)
            add(gguf_name(name), KINDS[embedding], shape, gguf.quants.quantize(values, of))
        else:
            add(gguf_name(name), KINDS[kind], shape, as_stored(name, shape, arch, kind, c))
    for name, values in extra:
        add(name, 0, values.shape, values)
    metadata = keys_of(c, arch) | {k.replace("__", "."): v for k, v in keys.items()}
    write_gguf_file(path, metadata, planned, lambda i: iter([data[i]]))
    return path


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "Q2_0_G64", "Q2_0_G128", "PTQ1_0", "Q4_0",
                                  "I2_S", "F16"])  # fmt: skip
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_every_type_gives_the_trits_in_rotate_half_order(tmp_path, arch, kind):
    source = GgufCheckpoint(write(tmp_path / "m.gguf", arch, kind))
    for name in (Q, K, UP):
        shape = source.shapes()[name]
        got = source.trits(name)
        assert isinstance(got, TritMatrix)
        assert np.array_equal(got.trits, trits_of(name, shape))
        assert got.scales.tolist() == [[SCALE]]
        assert np.array_equal(source.floats(name, 2, 5), trits_of(name, shape)[2:5] * SCALE)
    assert source.config["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("arch", "keys", "act", "bits"),
    [
        ("bitnet-b1.58", {}, "relu2", 8),
        ("bitnet-25", {}, "relu2", 8),
        ("bitnet", {}, "silu", 8),
        ("bitnet", {"bitnet__hidden_activation": "relu2"}, "relu2", 8),
        ("llama", {}, "silu", 16),
        ("llama", {"edgeagent__activation_bits": 8}, "silu", 8),
        ("minicpm", {}, "silu", 16),
    ],
)
def test_what_an_architecture_leaves_unsaid(tmp_path, arch, keys, act, bits):
    source = GgufCheckpoint(write(tmp_path / "m.gguf", arch, **keys))
    assert source.config["hidden_act"] == act
    assert source.activation_bits == bits


def test_i2_s_means_int8_activations(tmp_path):
    assert GgufCheckpoint(write(tmp_path / "m.gguf", kind="I2_S")).activation_bits == 8


@pytest.mark.parametrize("variant", ["neon64", "rows4"])
def test_a_variant_of_i2_s_is_taken_when_it_is_named(tmp_path, variant):
    path = write(tmp_path / "m.gguf", "qwen3", "I2_S")
    shape = GgufCheckpoint(path).shapes()[UP]
    want = encode_i2s(trits_of(UP, shape), SCALE)
    got = GgufCheckpoint(path, i2s_variant=variant).trits(UP)
    assert np.array_equal(encode_i2s(got.trits, SCALE, variant), want)
    assert not np.array_equal(got.trits, trits_of(UP, shape))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_an_embedding_of_any_type_is_read_by_rows(tmp_path, kind):
    path = write(tmp_path / "m.gguf", embedding=kind)
    source = GgufCheckpoint(path)
    whole = source.floats("model.embed_tokens.weight")
    tensor = gguf.GGUFReader(path).get_tensor(0)
    assert np.array_equal(whole, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    assert np.array_equal(source.floats("model.embed_tokens.weight", 3, 6), whole[3:6])


@pytest.mark.parametrize("kind", ["Q6_K", "Q4_K"])
def test_k_quants_are_read_by_the_package(tmp_path, kind):
    of = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[of]
    data = np.random.default_rng(1).integers(0, 60, (8, 256 // block * size)).astype(np.uint8)
    path = write(tmp_path / "m.gguf")
    raw = bytearray(path.read_bytes())
    reader = gguf.GGUFReader(path)
    head = reader.get_tensor(0)
    fresh = tmp_path / "n.gguf"
    planned, values = [Planned("token_embd.weight", KINDS[kind], (8, 256), data.nbytes)], [data]
    for tensor in reader.tensors[1:]:
        planned.append(
            Planned(tensor.name, int(tensor.tensor_type), tuple(map(int, tensor.shape[::-1])),
                    tensor.data.nbytes)
        )  # fmt: skip
        values.append(tensor.data)
    write_gguf_file(fresh, keys_of(config(), "llama"), planned, lambda i: iter([values[i]]))
    assert len(raw) and head.name == "token_embd.weight"
    got = GgufCheckpoint(fresh).floats("model.embed_tokens.weight")
    assert np.array_equal(got, gguf.quants.dequantize(data, of))


def test_a_factor_beside_a_matrix_is_part_of_its_scale(tmp_path):
    extra = [("blk.0.attn_q.scale", np.array([2.0], "<f4"))]
    source = GgufCheckpoint(write(tmp_path / "m.gguf", extra=extra))
    assert source.trits(Q).scales.tolist() == [[2 * SCALE]]
    assert source.trits(K).scales.tolist() == [[SCALE]]


def test_minicpm_s_factors_come_back(tmp_path):
    keys = {
        "minicpm__embedding_scale": 12.0, "minicpm__residual_scale": 1.4,
        "minicpm__logit_scale": 4.0,
    }  # fmt: skip
    found = GgufCheckpoint(write(tmp_path / "m.gguf", "minicpm", **keys)).config
    assert (found["scale_emb"], found["scale_depth"], found["dim_model_base"]) == (12.0, 1.4, 64.0)


def test_scalings_of_positions(tmp_path):
    one = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 1.0}
    assert GgufCheckpoint(write(tmp_path / "a", **one)).config["rope_scaling"] is None
    freqs = [("rope_freqs.weight", np.linspace(1, 8, 32, dtype="<f4"))]
    scaling = GgufCheckpoint(write(tmp_path / "b", extra=freqs)).config["rope_scaling"]
    assert scaling["long_factor"] == scaling["short_factor"]
    assert scaling["attention_factor"] == 1.0
    both = [
        (f"rope_factors_{n}.weight", np.full(32, v, "<f4")) for n, v in (("long", 2), ("short", 1))
    ]
    scaling = GgufCheckpoint(write(tmp_path / "c", extra=both)).config["rope_scaling"]
    assert (scaling["rope_type"], scaling["long_factor"][0], scaling["short_factor"][0]) == (
        "longrope", 2.0, 1.0,
    )  # fmt: skip


def test_yarn_of_llama_cpp_is_that_of_a_config(tmp_path):
    at = "qwen3__rope__scaling__"
    keys = {f"{at}type": "yarn", f"{at}factor": 4.0, f"{at}original_context_length": 16}
    scaling = GgufCheckpoint(write(tmp_path / "a", "qwen3", **keys)).config["rope_scaling"]
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert scaling == config(rope_scaling=yarn)["rope_scaling"]
    keys |= {f"{at}attn_factor": 0.5, f"{at}yarn_beta_fast": 8.0}
    other = GgufCheckpoint(write(tmp_path / "b", "qwen3", **keys)).config["rope_scaling"]
    assert other["attention_factor"] == scaling["attention_factor"] / 2
    assert other["beta_fast"] == 8.0


@pytest.mark.parametrize(
    ("keys", "extra", "line"),
    [
        ({"general__architecture": "gemma3"}, [], "general.architecture: expected one of"),
        ({"prism__hadamard__version": 1}, [], "Hadamard-rotated"),
        ({"general__type": "adapter"}, [], "an adapter, not a model"),
        ({"llama__block_count": 2}, [], "is missing"),
        ({"llama__embedding_length": 512}, [], "expected shape"),
        (
            {"llama__attention__key_length": 64, "llama__rope__dimension_count": 32},
            [],
            "only whole heads",
        ),
        ({"llama__rope__scaling__type": "dynamic"}, [], "rope scaling"),
        ({"llama__rope__scaling__type": "yarn"}, [], "rope.scaling.factor: expected a number"),
        ({}, [("blk.0.attn_q.bias", np.ones(256, "<f4"))], "attn_q.bias: not a tensor"),
        ({}, [("blk.0.ffn_up_norm_in.weight", np.ones(256, "<f4"))], "norm before each projection"),
        ({}, [("blk.0.attn_q.scale", np.zeros(1, "<f4"))], "expected above 0"),
    ],
)
def test_what_we_do_not_have_is_refused_with_the_reason(tmp_path, keys, extra, line):
    with pytest.raises(ModelError, match=line) as caught:
        GgufCheckpoint(write(tmp_path / "m.gguf", extra=extra, **keys)).trits(Q)
    assert "\n" not in str(caught.value)
