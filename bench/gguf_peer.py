"""The weights of a packed model directory as GGUF: python bench/gguf_peer.py DIR OUT --format all

What the peers are measured with (bench/peers.py) holds the very trits that our engine reads, so
that neither side has the easier numbers.  Every format below stores a trit times the matrix's
scale exactly, the scale rounded to float16, which is all that most of them have.  Only the head
may lose bits.

A model with sub-norms becomes architecture `bitnet` (tied head only), one without becomes `llama`.
llama.cpp's `bitnet` always computes SiLU: for a model of ReLU² its speed is right and its text is
not.  There is no tokenizer in the file: token ids are all that a measurement needs.

Matrices are written one at a time: memory stays below a few times the largest tensor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from edgeagent.convert.head import PREFIX as HEAD_PLANES
from edgeagent.convert.pack import unpack
from edgeagent.model.safetensors import SafetensorsFile

TQ_BLOCK = 256  # trits that share one float16 scale in TQ1_0, TQ2_0 and one set of scales in Q6_K
Q_BLOCK = 32  # the same of Q4_0 and Q8_0
IQ2_BN = 135  # ik_llama.cpp's own type, which the gguf package does not know
IQ2_BN_BLOCK, IQ2_BN_BLOCK_BYTES, IQ2_BN_ROW_HEAD_BYTES = 64, 16, 4
IQ2_BN_FILE_TYPE = 137
HEAD_CHUNK = 1 << 22  # head values quantised at a time: some 100 MB of scratch

Array = np.ndarray


# ---- matrices of trits: (rows, cols) int8 and a scale -> (rows, bytes) uint8, or float16 ----


def _with_scale(blocks: Array, scale: np.float16, *, first: bool) -> Array:
    """Put the scale before or after each block of (rows, blocks, bytes)."""
    tail = np.broadcast_to(np.frombuffer(scale.tobytes(), np.uint8), (*blocks.shape[:2], 2))
    parts = (tail, blocks) if first else (blocks, tail)
    return np.concatenate(parts, axis=-1).reshape(blocks.shape[0], -1)


def tq2_0(trits: Array, scale: np.float16) -> Array:
    """Two bits a trit; byte m of half a block holds trits m, 32 + m, 64 + m, 96 + m."""
    codes = (trits + 1).astype(np.uint8).reshape(trits.shape[0], -1, 2, 4, 32)
    halves = codes[..., 0, :].copy()
    for i in range(1, 4):
        halves |= codes[..., i, :] << np.uint8(2 * i)
    return _with_scale(halves.reshape(*halves.shape[:2], -1), scale, first=False)


def _base3(codes: Array) -> Array:
    """(..., up to 5 digits, n) -> (..., n) bytes: the digits as a fraction of 243, rounded up."""
    value = np.zeros((*codes.shape[:-2], codes.shape[-1]), np.uint16)
    for i in range(5):
        value *= 3
        if i < codes.shape[-2]:
            value += codes[..., i, :]
    return ((value * 256 + 242) // 243).astype(np.uint8)


def tq1_0(trits: Array, scale: np.float16) -> Array:
    """Five trits a byte: 160 + 80 trits of a block, and the last 16 in fours."""
    codes = (trits + 1).astype(np.uint8).reshape(trits.shape[0], -1, TQ_BLOCK)
    parts = [codes[..., :160], codes[..., 160:240], codes[..., 240:]]
    digits = [(5, 32), (5, 16), (4, 4)]
    packed = [
        _base3(part.reshape(*part.shape[:2], *shape))
        for part, shape in zip(parts, digits, strict=True)
    ]
    return _with_scale(np.concatenate(packed, axis=-1), scale, first=False)


def q8_0(trits: Array, scale: np.float16) -> Array:
    blocks = trits.astype(np.int8).view(np.uint8).reshape(trits.shape[0], -1, Q_BLOCK)
    return _with_scale(blocks, scale, first=True)


def q4_0(trits: Array, scale: np.float16) -> Array:
    codes = (trits + 8).astype(np.uint8).reshape(trits.shape[0], -1, 2, Q_BLOCK // 2)
    return _with_scale(codes[..., 0, :] | codes[..., 1, :] << np.uint8(4), scale, first=True)


def iq2_bn(trits: Array, scale: np.float16) -> Array:
    """A float32 scale a row, then two bits a trit; byte m of a block holds m, 16 + m, ..."""
    rows = trits.shape[0]
    codes = (trits + 1).astype(np.uint8).reshape(rows, -1, 4, 16)
    packed = codes[..., 0, :].copy()
    for i in range(1, 4):
        packed |= codes[..., i, :] << np.uint8(2 * i)
    head = np.full((rows, 1), scale, "<f4").view(np.uint8)
    return np.concatenate([head, packed.reshape(rows, -1)], axis=-1)


def f16(trits: Array, scale: np.float16) -> Array:
    return np.array([-scale, 0, scale], np.float16)[trits + 1]


# ---- the head: (rows, cols) float16 -> (rows, bytes) uint8 ----


def q6_k(values: Array) -> Array:
    """Six bits a value: 16 groups of 16 values, each with an int8 share of the block's scale.

    The largest value of a group gets code -32, so that the groups' steps have signs.
    """
    x = values.astype(np.float32).reshape(-1, 16, 16)
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=-1, keepdims=True), axis=-1)[..., 0]
    step = largest / -32
    top = np.take_along_axis(step, np.abs(step).argmax(axis=-1, keepdims=True), axis=-1)
    d = (top / -128).astype(np.float16)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.nan_to_num(np.rint(step / d.astype(np.float32)), posinf=0, neginf=0)
        shares = shares.clip(-128, 127).astype(np.int8)
        exact = (d.astype(np.float32) * shares)[..., None]
        codes = np.nan_to_num(np.rint(x / exact), posinf=0, neginf=0).clip(-32, 31)
    packed = _pack_q6((codes + 32).astype(np.uint8).reshape(-1, 2, 4, 32))
    out = np.concatenate([packed, shares.view(np.uint8), d.view(np.uint8)], axis=-1)
    return out.reshape(values.shape[0], -1)


def _pack_q6(codes: Array) -> Array:
    """(blocks, 2 halves, 4, 32) codes -> the low four bits of all, then the high two."""
    low = codes[:, :, :2] & 15 | (codes[:, :, 2:] & 15) << np.uint8(4)
    high = np.zeros((len(codes), 2, 32), np.uint8)
    for i in range(4):
        high |= (codes[:, :, i] >> 4) << np.uint8(2 * i)
    return np.concatenate([low.reshape(len(codes), -1), high.reshape(len(codes), -1)], axis=-1)


def quantise_head(values: Array, kind: Kind) -> Array:
    """Quantise a few rows at a time; float16 is passed through."""
    if kind is Kind.F16:
        return values
    quantise = q6_k if kind is Kind.Q6_K else lambda part: gguf.quants.quantize(part, kind)
    n = max(1, HEAD_CHUNK // values.shape[1])
    parts = (values[at : at + n] for at in range(0, len(values), n))
    return np.concatenate([quantise(part.astype(np.float32)) for part in parts])


@dataclass(frozen=True)
class Format:
    """How the trits and the head of one file are stored."""

    matrix: int  # a Kind, or IQ2_BN
    head: Kind
    encode: Callable[[Array, np.float16], Array]
    file_type: int


FORMATS = {
    "tq2_0": Format(Kind.TQ2_0, Kind.Q6_K, tq2_0, gguf.LlamaFileType.MOSTLY_TQ2_0),
    "tq2_0-f16": Format(Kind.TQ2_0, Kind.F16, tq2_0, gguf.LlamaFileType.MOSTLY_TQ2_0),
    "tq1_0": Format(Kind.TQ1_0, Kind.Q6_K, tq1_0, gguf.LlamaFileType.MOSTLY_TQ1_0),
    "q4_0": Format(Kind.Q4_0, Kind.Q6_K, q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "q8_0": Format(Kind.Q8_0, Kind.Q8_0, q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "f16": Format(Kind.F16, Kind.F16, f16, gguf.LlamaFileType.MOSTLY_F16),
    "iq2_bn": Format(IQ2_BN, Kind.Q6_K, iq2_bn, IQ2_BN_FILE_TYPE),
}


# ---- the model directory ----

GLOBAL_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
HEADS = ("model.embed_tokens.weight", "lm_head.weight")
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    _model, _layers, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def interleave_rope(trits: Array, n_heads: int) -> Array:
    """Rotate-half rows to the order of architecture `llama`, which rotates neighbours."""
    halves = trits.reshape(n_heads, 2, -1, trits.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(trits.shape)


class Source:
    """A packed model directory: its config and its tensors as arrays."""

    def __init__(self, path: Path) -> None:
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        files = [SafetensorsFile(shard) for shard in sorted(path.glob("*.safetensors"))]
        self._files = {name: file for file in files for name in file.infos}
        if not self._files:
            raise SystemExit(f"{path}: expected *.safetensors, found none")
        self._layout = self.config.get("quantization_config", {}).get("layout", 1)
        self.sub_norms = any(name.endswith("ffn_sub_norm.weight") for name in self._files)
        self.tied = "lm_head.weight" not in self._files
        if self.sub_norms and not self.tied:
            raise SystemExit(f"{path}: llama.cpp's bitnet has a tied head, this model does not")

    @property
    def arch(self) -> str:
        return "bitnet" if self.sub_norms else "llama"

    @property
    def names(self) -> list[str]:
        """Every tensor but the scales and the planes made from the head, which comes first."""
        weights = (name for name in self._files if not name.startswith(HEAD_PLANES))
        names = (name for name in weights if not name.endswith("_scale"))
        return sorted(names, key=lambda name: (name not in GLOBAL_NAMES, name))

    def array(self, name: str) -> Array:
        dtype, shape, data = self._files[name].tensor(name)
        kinds = {"U8": np.uint8, "F32": np.float32, "F16": np.float16}
        return np.frombuffer(data, kinds[dtype]).reshape(shape)

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], memoryview]]:
        """Everything, as edgeagent._core.Model takes it."""
        return {name: file.tensor(name) for name, file in self._files.items()}

    def is_matrix(self, name: str) -> bool:
        return f"{name}_scale" in self._files

    @property
    def head_dim(self) -> int:
        c = self.config
        return int(c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"])

    def shape(self, name: str) -> tuple[int, int]:
        """(out, in) of a matrix of trits."""
        c, projection = self.config, name.split(".")[-2]
        hidden, ffn = c["hidden_size"], c["intermediate_size"]
        q = c["num_attention_heads"] * self.head_dim
        kv = c["num_key_value_heads"] * self.head_dim
        return {
            "q_proj": (q, hidden),
            "k_proj": (kv, hidden),
            "v_proj": (kv, hidden),
            "o_proj": (hidden, q),
            "gate_proj": (ffn, hidden),
            "up_proj": (ffn, hidden),
            "down_proj": (hidden, ffn),
        }[projection]

    def trits(self, name: str) -> Array:
        """(out, in) int8, its rows in the order that the GGUF architecture wants."""
        trits = unpack(self.array(name), *self.shape(name), self._layout)
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        key = heads.get(name.split(".")[-2])
        return interleave_rope(trits, self.config[key]) if key and not self.sub_norms else trits

    def scale(self, name: str) -> np.float16:
        return np.float16(self.array(f"{name}_scale")[0])


def _describe(writer: gguf.GGUFWriter, source: Source, chosen: Format) -> None:
    c = source.config
    writer.add_file_type(chosen.file_type)
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_key_length(source.head_dim)
    writer.add_value_length(source.head_dim)
    writer.add_rope_dimension_count(source.head_dim)
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_vocab_size(c["vocab_size"])
    writer.add_tokenizer_model("none")


def _row_bytes(cols: int, kind: int) -> int:
    if kind == IQ2_BN:
        block, size, head = IQ2_BN_BLOCK, IQ2_BN_BLOCK_BYTES, IQ2_BN_ROW_HEAD_BYTES
    else:
        (block, size), head = gguf.GGML_QUANT_SIZES[Kind(kind)], 0
    if cols % block:
        raise SystemExit(f"type {kind} wants rows of a multiple of {block} values, got {cols}")
    return head + cols // block * size


def _announce(writer: gguf.GGUFWriter, source: Source, name: str, chosen: Format) -> None:
    """Enter one tensor into the file's table; its bytes come later, in the same order."""
    if source.is_matrix(name) or name in HEADS:
        kind = chosen.matrix if source.is_matrix(name) else int(chosen.head)
        rows, cols = source.shape(name) if source.is_matrix(name) else source.array(name).shape
    else:
        kind, (rows, cols) = int(Kind.F32), (1, source.array(name).size)
    n_bytes = rows * _row_bytes(cols, kind)
    writer.add_tensor_info(
        gguf_name(name),
        (cols,) if kind == Kind.F32 else (rows, cols),
        np.dtype(np.float32),  # of no meaning beside raw_dtype, but uint8 would turn shapes around
        n_bytes,
        raw_dtype=cast(Kind, kind),
    )


def _data(source: Source, name: str, chosen: Format) -> Array:
    if source.is_matrix(name):
        return chosen.encode(source.trits(name), source.scale(name))
    if name in HEADS:
        return quantise_head(source.array(name), chosen.head)
    return source.array(name)


def write_gguf(path: Path, out: Path, format_name: str) -> None:
    """Write the model directory `path` as the GGUF file `out`."""
    source, chosen = Source(path), FORMATS[format_name]
    writer = gguf.GGUFWriter(out, source.arch)
    _describe(writer, source, chosen)
    for name in source.names:
        _announce(writer, source, name, chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in source.names:
        writer.write_tensor_data(np.ascontiguousarray(_data(source, name, chosen)))
    writer.close()


def wanted(names: list[str]) -> Iterator[str]:
    for name in names:
        yield from FORMATS if name == "all" else [name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a packed model directory")
    parser.add_argument("out", type=Path, help="the directory for <format>.gguf")
    parser.add_argument("--format", nargs="+", choices=[*FORMATS, "all"], default=["tq2_0"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in wanted(arguments.format):
        target = arguments.out / f"{name}.gguf"
        write_gguf(arguments.model, target, name)
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
