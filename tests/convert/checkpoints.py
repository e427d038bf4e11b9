"""Checkpoints in memory: what writers take, with every shape and scale that a reader may give."""

from __future__ import annotations

import json

import numpy as np

from edgeagent.convert.checkpoint import TokenizerFiles, TritMatrix
from edgeagent.convert.ours import dequantise, projection_shapes
from edgeagent.convert.pack import pack_plane
from edgeagent.model.files import INDEX_NAME
from edgeagent.model.safetensors import write_safetensors
from ota.release import RELEASE_FILE, Health, make_release
from tests.tiny import write_tokenizer

CONFIG = {
    "architectures": ["BitNetForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 272,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


class MemoryCheckpoint:
    """Random trits; see `checkpoint.Checkpoint`."""

    def __init__(self, *, sub_norms=True, head_norms=False, groups=0, bits=8, seed=0, **config):
        """`groups`: 0 for one scale a matrix, else runs of inputs with a scale an output."""
        self.config = CONFIG | config
        self.activation_bits = bits
        self.files: TokenizerFiles | None = None
        rng = np.random.default_rng(seed)
        c = self.config
        self._arrays: dict[str, object] = {}
        embedding = (c["vocab_size"], c["hidden_size"])
        for name in ["model.embed_tokens", *([] if c["tie_word_embeddings"] else ["lm_head"])]:
            rows = rng.standard_normal(embedding, np.float32) * 0.3
            self._arrays[f"{name}.weight"] = rows.astype(np.float16).astype(np.float32)
        self._norm("model.norm", c["hidden_size"], rng)
        for i in range(c["num_hidden_layers"]):
            self._layer(f"model.layers.{i}", rng, sub_norms, head_norms, groups)

    def _norm(self, name, n, rng):
        self._arrays[f"{name}.weight"] = (1 + 0.2 * rng.standard_normal(n)).astype(np.float32)

    def _layer(self, at, rng, sub_norms, head_norms, groups):
        c = self.config
        shapes = projection_shapes(c)
        norms = {"input_layernorm": c["hidden_size"], "post_attention_layernorm": c["hidden_size"]}
        if sub_norms:
            norms["self_attn.attn_sub_norm"] = shapes["q_proj"][0]
            norms["mlp.ffn_sub_norm"] = c["intermediate_size"]
        if head_norms:
            norms |= {f"self_attn.{x}_norm": c["head_dim"] for x in "qk"}
        for name, n in norms.items():
            self._norm(f"{at}.{name}", n, rng)
        for name, (out, width) in shapes.items():
            part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            trits = rng.integers(-1, 2, (out, width), np.int8)
            shape = (groups, out) if groups else (1, 1)
            scales = rng.uniform(0.02, 0.1, shape).astype(np.float32)
            self._arrays[f"{at}.{part}.{name}.weight"] = TritMatrix(trits, scales)

    def shapes(self):
        return {
            name: value.trits.shape if isinstance(value, TritMatrix) else value.shape
            for name, value in self._arrays.items()
        }

    def is_ternary(self, name):
        return isinstance(self._arrays[name], TritMatrix)

    def trits(self, name):
        return self._arrays[name]

    def floats(self, name, begin=0, end=None):
        value = self._arrays[name]
        rows = dequantise(value) if isinstance(value, TritMatrix) else value
        return rows[begin:end]

    def tokenizer(self):
        return self.files


def matrices(source):
    """Yield name and trits of every ternary matrix."""
    for name in source.shapes():
        if source.is_ternary(name):
            yield name, source.trits(name)


def assert_same_trits(one, other, *, scales=0.0):
    """Every matrix has the same trits, and scales within a relative bound."""
    names = dict(matrices(one))
    assert names.keys() == dict(matrices(other)).keys()
    for name, matrix in names.items():
        theirs = other.trits(name)
        np.testing.assert_array_equal(matrix.trits, theirs.trits, err_msg=name)
        np.testing.assert_allclose(matrix.scales, theirs.scales, rtol=scales, err_msg=name)


def write_ours(path, source, *, layout=1, orient=None):
    """Write a checkpoint as our model directory, with a release and no health suite.

    `orient` may give the plane of a matrix instead of the one that the converter would choose.
    """
    relu2 = source.config["hidden_act"] == "relu2"
    tensors = []
    for name, shape in source.shapes().items():
        if source.is_ternary(name):
            matrix, projection = source.trits(name), name.split(".")[-2]
            plane = orient(matrix.trits, projection) if orient else None
            if plane is None:
                plane = pack_plane(matrix.trits, projection, relu2=relu2, layout=layout)
            scales = matrix.scales.reshape(-1) if matrix.scales.size == 1 else matrix.scales
            tensors.append((name, "U8", plane.shape, plane.tobytes()))
            tensors.append((f"{name}_scale", "F32", scales.shape, scales.tobytes()))
        else:
            kind = "<f2" if len(shape) == 2 else "<f4"
            values = source.floats(name).astype(kind)
            tensors.append((name, "F16" if kind == "<f2" else "F32", shape, values.tobytes()))
    path.mkdir()
    with (path / "model-00001-of-00001.safetensors").open("wb") as out:
        write_safetensors(out, tensors, {})
    quantization = {"quant_method": "edgeagent", "layout": layout}
    quantization["activation_bits"] = source.activation_bits
    config = source.config | {"quantization_config": quantization}
    (path / "config.json").write_text(json.dumps(config))
    index = {name: "model-00001-of-00001.safetensors" for name, *_ in tensors}
    (path / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    write_tokenizer(path)
    reseal(path)
    return path


def reseal(path):
    """Write `release.json` for whatever the files are now."""
    from edgeagent.convert.seal import hash_files

    release = make_release("t", "1.0.0", 1, hash_files(path), Health())
    (path / RELEASE_FILE).write_bytes(release.text)
