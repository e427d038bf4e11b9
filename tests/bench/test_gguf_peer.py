"""The GGUF files that peers are measured with hold the trits of our model, and nothing else."""

import json

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from bench import gguf_peer
from edgeagent.convert.head import make_scan
from edgeagent.model.safetensors import write_safetensors
from tests.core.toy import Shape, make_toy

SHAPE = Shape(hidden=256, ffn=512, layers=2, heads=4, kv_heads=2, head_dim=64, vocab=300)
READABLE = [name for name in gguf_peer.FORMATS if name != "iq2_bn"]  # gguf does not know that one


def write_model(path, shape=SHAPE, *, planes=False):
    """Write the directory of a toy model, with planes of its head or without; return the toy."""
    toy = make_toy(shape)
    path.mkdir()
    tensors = [(name, *rest) for name, rest in toy.tensors().items()]
    if planes:
        tensors += make_scan(toy.weights["model.embed_tokens.weight"]).tensors()
    with (path / "model.safetensors").open("wb") as out:
        write_safetensors(out, [(n, d, s, bytes(data)) for n, d, s, data in tensors], {})
    (path / "config.json").write_text(json.dumps(toy.config))
    return toy


def read_back(path):
    """{name: float32 array} of a GGUF file, dequantised by the gguf package."""
    reader = gguf.GGUFReader(path)
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        for t in reader.tensors
    }


def matrices(toy):
    """Yield (name here, name there, trits * scale rounded to float16)."""
    for name, array in toy.weights.items():
        if array.dtype == np.int8:
            scale = np.float16(toy.weights[f"{name}_scale"][0])
            yield name, gguf_peer.gguf_name(name), array.astype(np.float32) * np.float32(scale)


@pytest.mark.parametrize("layout", [1, 2])
@pytest.mark.parametrize("format_name", READABLE)
def test_every_matrix_is_trits_times_scale_exactly(tmp_path, format_name, layout):
    toy = write_model(tmp_path / "model", Shape(**{**vars(SHAPE), "layout": layout}))
    gguf_peer.write_gguf(tmp_path / "model", tmp_path / "out.gguf", format_name)
    got = read_back(tmp_path / "out.gguf")
    want = list(matrices(toy))
    assert len(want) == 7 * SHAPE.layers
    for _name, there, values in want:
        np.testing.assert_array_equal(got[there], values, err_msg=there)
    norms = [name for name in toy.weights if name.endswith("norm.weight")]
    assert len(norms) == 4 * SHAPE.layers + 1
    for name in norms:
        np.testing.assert_array_equal(got[gguf_peer.gguf_name(name)].ravel(), toy.weights[name])
    assert len(got) == len(want) + len(norms) + 1


# Q6_K: codes reach 32 steps, so a value of the other sign may miss by one; the group's step is
# itself rounded to a 128th of the block's, half of which counts 32 times.
@pytest.mark.parametrize(
    ("format_name", "group", "block"),
    [("f16", 0, 0), ("q8_0", 1 / 127, 0), ("tq2_0", 1 / 32, 1 / 256)],
)
def test_the_head_loses_at_most_a_step_of_its_group(tmp_path, format_name, group, block):
    toy = write_model(tmp_path / "model")
    gguf_peer.write_gguf(tmp_path / "model", tmp_path / "out.gguf", format_name)
    got = read_back(tmp_path / "out.gguf")["token_embd.weight"]
    want = toy.weights["model.embed_tokens.weight"].astype(np.float32)
    assert SHAPE.hidden == gguf_peer.TQ_BLOCK  # a row is a block
    size = gguf_peer.Q_BLOCK if format_name == "q8_0" else 16
    of_groups = np.abs(want).reshape(SHAPE.vocab, -1, size).max(axis=-1)
    of_blocks = of_groups.max(axis=-1, keepdims=True)
    bound = np.repeat(group * of_groups + block * of_blocks, size, axis=-1)
    assert (np.abs(got - want) <= bound).all()
    assert (got == want).all() == (group == 0)


def test_planes_of_the_two_stage_head_change_nothing(tmp_path):
    for name, planes in (("plain", False), ("planes", True)):
        write_model(tmp_path / name, planes=planes)
        gguf_peer.write_gguf(tmp_path / name, tmp_path / f"{name}.gguf", "tq2_0")
    assert (tmp_path / "planes.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def test_an_untied_model_without_sub_norms_is_a_llama(tmp_path):
    shape = Shape(**{**vars(SHAPE), "sub_norms": False, "tied": False, "act": "silu"})
    toy = write_model(tmp_path / "model", shape)
    gguf_peer.write_gguf(tmp_path / "model", tmp_path / "out.gguf", "f16")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.attention.head_count_kv"].contents() == SHAPE.kv_heads
    got = read_back(tmp_path / "out.gguf")
    half = SHAPE.head_dim // 2
    for name, there, values in matrices(toy):
        if there.endswith(("attn_q.weight", "attn_k.weight")):
            heads = values.reshape(-1, SHAPE.head_dim, SHAPE.hidden)
            order = [i // 2 + half * (i % 2) for i in range(SHAPE.head_dim)]
            values = heads[:, order].reshape(values.shape)
        np.testing.assert_array_equal(got[there], values, err_msg=name)
    head = toy.weights["lm_head.weight"].astype(np.float32)
    np.testing.assert_array_equal(got["output.weight"], head)


def test_a_scale_that_float16_cannot_hold_is_rounded_to_it():
    scale = np.float16(1 / 3)
    row = gguf_peer.f16(np.array([[1, 0, -1]], np.int8), scale)
    assert row.tolist() == [[float(scale), 0.0, -float(scale)]]


@pytest.mark.parametrize(("kind", "encode"), [(Kind.TQ2_0, "tq2_0"), (Kind.TQ1_0, "tq1_0")])
def test_ternary_blocks_are_the_bytes_that_the_gguf_package_writes(kind, encode):
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (3, 512)).astype(np.int8)
    want = gguf.quants.quantize(trits * np.float32(0.5), kind)
    np.testing.assert_array_equal(getattr(gguf_peer, encode)(trits, np.float16(0.5)), want)


def test_iq2_bn_holds_a_float32_scale_and_four_trits_a_byte():
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (3, 128)).astype(np.int8)
    rows = gguf_peer.iq2_bn(trits, np.float16(0.5))
    assert rows.shape == (3, 4 + 2 * 16)
    assert rows[:, :4].copy().view("<f4").ravel().tolist() == [0.5] * 3
    blocks = rows[:, 4:].reshape(3, 2, 1, 16)
    codes = blocks >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    np.testing.assert_array_equal(codes.reshape(3, 128).astype(np.int8) - 1, trits)


def test_zeros_survive_six_bits():
    values = np.zeros((2, 256), np.float16)
    values[1, 17] = -3.0
    decoded = gguf.quants.dequantize(gguf_peer.q6_k(values), Kind.Q6_K)
    np.testing.assert_array_equal(decoded, values.astype(np.float32))


def test_rows_that_do_not_fill_a_block_are_refused(tmp_path):
    write_model(tmp_path / "model", Shape(**{**vars(SHAPE), "ffn": 384}))
    with pytest.raises(SystemExit, match="multiple of 256 values, got 384"):
        gguf_peer.write_gguf(tmp_path / "model", tmp_path / "out.gguf", "tq2_0")


def test_sub_norms_with_an_untied_head_are_refused(tmp_path):
    write_model(tmp_path / "model", Shape(**{**vars(SHAPE), "tied": False}))
    with pytest.raises(SystemExit, match="tied head"):
        gguf_peer.write_gguf(tmp_path / "model", tmp_path / "out.gguf", "tq2_0")
