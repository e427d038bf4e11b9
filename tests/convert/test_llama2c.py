"""llama2.c's and bitllama2.c's files: made here byte by byte, and computed by their definition."""

import random
import struct

import numpy as np
import pytest

from edgeagent import _core
from edgeagent.convert.llama2c import LIFT, Llama2cCheckpoint, parse_bin, read_pieces
from edgeagent.convert.pack import pack_plane
from edgeagent.errors import ModelError
from tests.convert import spm

DIM, FFN, LAYERS, HEADS, KV, VOCAB, CONTEXT = 64, 96, 2, 4, 2, 300, 32
SIZES = (DIM, FFN, LAYERS, HEADS, KV, VOCAB, CONTEXT)
HEAD = DIM // HEADS
SHAPES = [
    ("q", (DIM, DIM)), ("k", (KV * HEAD, DIM)), ("v", (KV * HEAD, DIM)), ("o", (DIM, DIM)),
    ("gate", (FFN, DIM)), ("down", (DIM, FFN)), ("up", (FFN, DIM)),
]  # fmt: skip


def trits_bytes(trits):
    codes = np.array([3, 0, 1], np.uint8)[trits + 1].reshape(-1, 4)
    return (codes << np.array([6, 4, 2, 0], np.uint8)).sum(axis=1).astype(np.uint8).tobytes()


class Ternary:
    """A bitllama2.c model: its numbers, its file and its arithmetic."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.norm = rng.uniform(5, 12, DIM).astype(np.float32)
        self.embedding = (0.03 * rng.standard_normal((VOCAB, DIM))).astype(np.float32)
        self.matrices = {
            (name, i): (rng.integers(-1, 2, shape, np.int8), np.float32(rng.uniform(0.05, 2)))
            for name, shape in SHAPES
            for i in range(LAYERS)
        }

    def file(self):
        head = b"24ka" + struct.pack("<i7iB", 1, *SIZES, 1)
        data = head.ljust(256, b"\0") + self.norm.tobytes() + self.embedding.tobytes()
        for name, _ in SHAPES:
            for i in range(LAYERS):
                trits, scale = self.matrices[name, i]
                data += scale.tobytes() + trits_bytes(trits)
        return data

    def linear(self, name, i, x):
        """Divide by the root mean square and the length, quantise, multiply: bitlinear.py."""
        trits, scale = self.matrices[name, i]
        x = x / np.sqrt((x.astype(np.float64) ** 2).mean()) / len(x)
        step = np.abs(x).max() / 127
        return (trits.astype(np.float64) @ np.rint(x / step)) * step * scale

    def logits(self, ids):
        """Every position from the start, neighbours rotated: as runbit.c does it."""
        keys = [[] for _ in range(LAYERS)]
        values = [[] for _ in range(LAYERS)]
        x = np.zeros(DIM)
        for at, token in enumerate(ids):
            x = self.embedding[token].astype(np.float64)
            for i in range(LAYERS):
                q, k, v = (self.linear(n, i, x) for n in ("q", "k", "v"))
                keys[i].append(rotate(k.reshape(KV, HEAD), at))
                values[i].append(v.reshape(KV, HEAD))
                mixed = []
                for h, one in enumerate(rotate(q.reshape(HEADS, HEAD), at)):
                    g = h // (HEADS // KV)
                    scores = np.array([k[g] @ one for k in keys[i]]) / np.sqrt(HEAD)
                    weights = np.exp(scores - scores.max())
                    weights /= weights.sum()
                    mixed.append(sum(w * v[g] for w, v in zip(weights, values[i], strict=True)))
                x = x + self.linear("o", i, np.concatenate(mixed))
                gate, up = self.linear("gate", i, x), self.linear("up", i, x)
                x = x + self.linear("down", i, gate / (1 + np.exp(-gate)) * up)
        x = self.norm * x / np.sqrt((x**2).mean() + 1e-5)
        return self.embedding @ x


def rotate(heads, at):
    out = heads.copy()
    for j in range(0, HEAD, 2):
        a = at / 10000 ** (j / HEAD)
        out[:, j] = heads[:, j] * np.cos(a) - heads[:, j + 1] * np.sin(a)
        out[:, j + 1] = heads[:, j] * np.sin(a) + heads[:, j + 1] * np.cos(a)
    return out


def core_model(source):
    tensors = {}
    for name in source.shapes():
        if source.is_ternary(name):
            matrix = source.trits(name)
            plane = pack_plane(matrix.trits, name.split(".")[-2], relu2=False, layout=1)
            tensors[name] = ("U8", plane.shape, memoryview(plane.tobytes()))
            tensors[f"{name}_scale"] = ("F32", (1,), memoryview(matrix.scales.tobytes()))
        else:
            values = source.floats(name)
            kind = ("F16", "<f2") if values.ndim == 2 else ("F32", "<f4")
            data = memoryview(values.astype(kind[1]).tobytes())
            tensors[name] = (kind[0], values.shape, data)
    quantization = {"quant_method": "edgeagent", "layout": 1}
    config = {k: v for k, v in source.config.items() if v is not None}
    return _core.Model(config | {"quantization_config": quantization}, tensors)


def test_our_engine_computes_what_bitllama2_computes(tmp_path):
    model = Ternary()
    model.embedding = model.embedding.astype(np.float16).astype(np.float32)
    (tmp_path / "m.bin").write_bytes(model.file())
    source = Llama2cCheckpoint(tmp_path / "m.bin")
    session = _core.Session(core_model(source), CONTEXT, kv_bits=32)
    ids = [1, 7, 299, 42, 3, 3, 128]
    session.eval(ids)
    want = model.logits(ids)
    got = np.array(session.logits())
    assert np.abs(want).max() > 0.5  # so that the bound means something
    np.testing.assert_allclose(got, want, atol=2e-3 * np.abs(want).max())


def test_ternary_matrices_norms_and_config(tmp_path):
    model = Ternary(1)
    (tmp_path / "m.bin").write_bytes(model.file())
    source = Llama2cCheckpoint(tmp_path / "m.bin")
    up = source.trits("model.layers.1.mlp.up_proj.weight")
    np.testing.assert_array_equal(up.trits, model.matrices["up", 1][0])
    assert up.scales == model.matrices["up", 1][1] * np.float32(LIFT)
    down = source.trits("model.layers.0.mlp.down_proj.weight")
    assert down.scales == model.matrices["down", 0][1]
    q = source.trits("model.layers.0.self_attn.q_proj.weight").trits
    np.testing.assert_array_equal(q[0], model.matrices["q", 0][0][0])
    np.testing.assert_array_equal(q[1], model.matrices["q", 0][0][2])  # even rows first
    assert (source.floats("model.layers.0.mlp.ffn_sub_norm.weight") == np.float32(1 / FFN)).all()
    assert source.config["architectures"] == ["BitNetForCausalLM"]
    assert source.config["tie_word_embeddings"] is True
    np.testing.assert_array_equal(
        source.floats("model.layers.0.mlp.down_proj.weight", 2, 5),
        (down.trits * down.scales)[2:5],
    )


def float_file(*, legacy, tied=True, seed=2):
    """Return a float file and its tensors by name."""
    rng = np.random.default_rng(seed)
    made = {}

    def floats(name, *shape):
        made[name] = rng.standard_normal(shape).astype("<f4")
        return made[name].tobytes()

    def each(name, *shape):
        return b"".join(floats(f"{name}.{i}", *shape) for i in range(LAYERS))

    embedding = lambda: floats("embedding", VOCAB, DIM)  # noqa: E731
    weights = lambda part: b"".join(each(name, *shape) for name, shape in part)  # noqa: E731
    if legacy:
        vocab = VOCAB if tied else -VOCAB
        data = struct.pack("<7i", *SIZES[:5], vocab, CONTEXT) + embedding() + each("att", DIM)
        data += weights(SHAPES[:4]) + each("ffn", DIM) + weights(SHAPES[4:]) + floats("norm", DIM)
        data += bytes(CONTEXT * HEAD * 4)
    else:
        data = (b"24ka" + struct.pack("<i7iB", 1, *SIZES, tied)).ljust(256, b"\0")
        data += each("att", DIM) + each("ffn", DIM) + floats("norm", DIM) + embedding()
        data += weights(SHAPES)
    return data + (b"" if tied else floats("head", VOCAB, DIM)), made


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_float_files_of_both_versions(tmp_path, legacy, tied):
    data, made = float_file(legacy=legacy, tied=tied)
    (tmp_path / "m.bin").write_bytes(data)
    source = Llama2cCheckpoint(tmp_path / "m.bin")
    at = "model.layers.1"
    for name, want in (
        ("model.embed_tokens.weight", "embedding"), ("model.norm.weight", "norm"),
        (f"{at}.input_layernorm.weight", "att.1"), (f"{at}.mlp.gate_proj.weight", "gate.1"),
        (f"{at}.post_attention_layernorm.weight", "ffn.1"), (f"{at}.mlp.up_proj.weight", "up.1"),
        (f"{at}.mlp.down_proj.weight", "down.1"), (f"{at}.self_attn.o_proj.weight", "o.1"),
        *([] if tied else [("lm_head.weight", "head")]),
    ):  # fmt: skip
        np.testing.assert_array_equal(source.floats(name), made[want], err_msg=name)
    k = source.floats(f"{at}.self_attn.k_proj.weight")
    np.testing.assert_array_equal(k[: HEAD // 2], made["k.1"][:HEAD:2])
    assert source.config["architectures"] == ["LlamaForCausalLM"]
    assert source.config["tie_word_embeddings"] is tied
    assert not any(source.is_ternary(name) for name in source.shapes())


def refused(tmp_path, data, reason):
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(ModelError, match=reason) as caught:
        Llama2cCheckpoint(tmp_path / "m.bin")
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path):
    sound = Ternary().file()
    refused(tmp_path, b"", "cannot be mapped")
    refused(tmp_path, sound[:200], "got 200 bytes")
    refused(tmp_path, sound[:-1], "expected .* bytes, got")
    refused(tmp_path, sound + b"\0", "expected .* bytes, got")
    refused(tmp_path, b"24ka" + struct.pack("<i", 2) + sound[8:], "expected version 1, got 2")
    huge = struct.pack("<7i", 1 << 20, 1 << 20, 4096, 1, 1, 1 << 20, 1 << 20)
    refused(tmp_path, huge.ljust(300, b"\0"), "4096 layers in 300 bytes")
    refused(tmp_path, struct.pack("<7i", 64, 96, 1 << 30, 4, 2, 9, 9).ljust(300, b"\0"), "sizes")
    refused(tmp_path, struct.pack("<7i", 64, 96, 2, 5, 2, 9, 9).ljust(300, b"\0"), "sizes")


def test_codes_and_scales_that_mean_nothing_are_refused(tmp_path):
    first = 256 + DIM * 4 + VOCAB * DIM * 4
    for at, value, reason in ((first + 4, b"\xaa", "no trits"), (first, b"\0\0\xc0\x7f", "nan")):
        data = bytearray(Ternary().file())
        data[at : at + len(value)] = value
        (tmp_path / "m.bin").write_bytes(bytes(data))
        with pytest.raises(ModelError, match=reason):
            Llama2cCheckpoint(tmp_path / "m.bin").trits("model.layers.0.self_attn.q_proj.weight")


def test_flipped_headers_are_refused_or_read(tmp_path):
    r = random.Random(4)
    sound = Ternary().file()
    for _ in range(200):
        data = bytearray(sound)
        data[r.randrange(4, 37)] = r.randrange(256)
        (tmp_path / "m.bin").write_bytes(bytes(data))
        try:
            Llama2cCheckpoint(tmp_path / "m.bin")
        except ModelError as err:
            assert "\n" not in str(err)


# ---- tokenizer.bin ----


def bin_file(pieces):
    texts = [text.replace("\u2581", " ").encode() for text, _, _ in pieces]
    texts[1:3] = [b"\n<s>\n", b"\n</s>\n"]
    body = (
        struct.pack("<fi", score, len(text)) + text
        for text, (_, score, _) in zip(texts, pieces, strict=True)
    )
    return struct.pack("<i", max(map(len, texts))) + b"".join(body)


PIECES = spm.vocabulary(["\u2581t", "he", "\u2581the", *"\u2581the"])


def test_a_tokenizer_bin_is_the_sentencepiece_model_that_it_was_made_of(tmp_path):
    (tmp_path / "t.bin").write_bytes(bin_file(PIECES))
    (tmp_path / "t.model").write_bytes(spm.model(PIECES, None, {4: 0}))
    assert read_pieces(tmp_path / "t.bin", len(PIECES)) == read_pieces(tmp_path / "t.model", 0)


def test_the_tokenizer_that_was_named_is_read(tmp_path):
    (tmp_path / "m.bin").write_bytes(Ternary().file())
    extra = [chr(0x100 + i) for i in range(VOCAB - len(PIECES))]
    pieces = [*PIECES, *((text, -50.0 - i, 1) for i, text in enumerate(extra))]
    (tmp_path / "t.bin").write_bytes(bin_file(pieces))
    files = Llama2cCheckpoint(tmp_path / "m.bin", tmp_path / "t.bin").tokenizer()
    assert files.config["bos_token"] == "<s>"
    assert Llama2cCheckpoint(tmp_path / "m.bin").tokenizer() is None


@pytest.mark.parametrize(
    ("data", "n", "reason"),
    [
        (b"", len(PIECES), "cut short"),
        (bin_file(PIECES)[:-1], len(PIECES), "a token of"),
        (bin_file(PIECES) + b"\0", len(PIECES), "expected .* bytes for"),
        (bin_file(PIECES), 100, "a vocabulary from 259"),
        (bin_file(PIECES).replace(b"<0x07>", b"<0x08>"), len(PIECES), "expected <0x07>"),
        (bin_file(PIECES).replace(b"he", b"\xff\xff"), len(PIECES), "not UTF-8"),
    ],
)
def test_unsound_tokenizer_bins_are_refused(data, n, reason):
    with pytest.raises(ModelError, match=reason):
        parse_bin(data, n, "t.bin")
