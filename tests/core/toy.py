"""Random models for the core's tests: the packing of docs/formats.md, written in numpy."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 128
PANEL = 256
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def pack_block(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Pack (..., 128) codes into (..., 32) bytes."""
    quarters = codes.reshape(*codes.shape[:-1], 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.bitwise_or.reduce(quarters << shifts, axis=-2)


def _padded_codes(trits: npt.NDArray[np.int8], rows: int, columns: int) -> npt.NDArray[np.uint8]:
    codes = np.ones((rows, columns), np.uint8)
    codes[: trits.shape[0], : trits.shape[1]] = trits + 1
    return codes


def pack_output_major(trits: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack W (out, in) to (out, ceil(in / 128) * 32)."""
    n_out, n_in = trits.shape
    blocks = -(-n_in // BLOCK)
    codes = _padded_codes(trits, n_out, blocks * BLOCK)
    return pack_block(codes.reshape(n_out, blocks, BLOCK)).reshape(n_out, blocks * 32)


def pack_input_major(trits: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack W (out, in) to (ceil(out / 256), in, 64)."""
    n_out, n_in = trits.shape
    panels = -(-n_out // PANEL)
    codes = _padded_codes(trits, panels * PANEL, n_in).reshape(panels, 2, BLOCK, n_in)
    return np.ascontiguousarray(pack_block(codes.transpose(0, 3, 1, 2)).reshape(panels, n_in, 64))


def _join3(fields: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Five codes along the first axis to one byte."""
    powers = np.array([1, 3, 9, 27, 81], np.uint8)
    return np.tensordot(powers, fields, 1).astype(np.uint8)


def pack_rows3(trits: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack W (out, in) to (out, ceil(in / 320) * 64) in base 3."""
    n_out, n_in = trits.shape
    blocks = -(-n_in // 320)
    codes = _padded_codes(trits, n_out, blocks * 320).reshape(n_out, blocks, 5, 64)
    return _join3(np.moveaxis(codes, 2, 0)).reshape(n_out, blocks * 64)


def pack_channels3(trits: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack W (out, in) to (in, ceil(out / 320), 64) in base 3."""
    return pack_rows3(trits.T).reshape(trits.shape[1], -1, 64)


def pack_tiles3(trits: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack W (out, in) to (ceil(out / 80), ceil(in / 4), 16, 4) in base 3."""
    n_out, n_in = trits.shape
    panels, quads = -(-n_out // 80), -(-n_in // 4)
    codes = _padded_codes(trits, panels * 80, quads * 4).reshape(panels, 5, 16, quads, 4)
    return np.ascontiguousarray(_join3(np.moveaxis(codes, 1, 0)).transpose(0, 2, 1, 3))


def random_trits(rng: np.random.Generator, n_out: int, n_in: int, zeros: float = 0.35):
    edge = (1 - zeros) / 2
    return rng.choice(np.array([-1, 0, 1], np.int8), (n_out, n_in), p=[edge, zeros, edge])


# Scalings of rotary positions for a head of 32, as Hugging Face configs write them.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1 + i / 8 for i in range(16)],
    "long_factor": [2.0 + i for i in range(16)],
    "original_max_position_embeddings": 128,
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a toy model looks like."""

    hidden: int = 256
    ffn: int = 512
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    vocab: int = 300
    act: str = "relu2"
    sub_norms: bool = True
    tied: bool = True
    theta: float = 10000.0
    output_major: tuple[str, ...] = ("up",)
    layout: int = 1
    rope: Mapping[str, Any] | None = None  # rope_scaling
    head_norms: bool = False
    minicpm: tuple[float, float, float] | None = None  # scale_emb, scale_depth, dim_model_base
    context: int = 512
    activation_bits: int = 8
    group: int | None = None  # inputs that share a scale of an output; 0: all of a row

    def scales(self, n_out: int, n_in: int) -> tuple[int, ...]:
        """Shape of a weight_scale."""
        if self.group is None:
            return (1,)
        return (n_in // self.group if self.group else 1, n_out)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every projection."""
        attention, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q": (attention, self.hidden),
            "k": (kv, self.hidden),
            "v": (kv, self.hidden),
            "o": (self.hidden, attention),
            "gate": (self.ffn, self.hidden),
            "up": (self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
        }


@dataclasses.dataclass
class Toy:
    """A random model: its config, and its weights unpacked."""

    shape: Shape
    config: dict[str, Any]
    weights: dict[str, npt.NDArray[Any]]  # float16, float32; trits as int8
    seed: int

    def tensors(self, output_major: tuple[str, ...] | None = None):
        """Tensors as edgeagent._core.Model takes them."""
        chosen = self.shape.output_major if output_major is None else output_major
        out = {}
        for name, array in self.weights.items():
            dtype = {"f2": "F16", "f4": "F32", "i1": "U8"}[array.dtype.str[1:]]
            if dtype == "U8":
                projection = name.split(".")[-2].removesuffix("_proj")
                array = self._packed(projection, array, chosen)
            out[name] = (dtype, array.shape, memoryview(array).cast("B").toreadonly())
        return out

    def _packed(self, projection, trits, chosen):
        if self.shape.layout == 1:
            return (pack_output_major if projection in chosen else pack_input_major)(trits)
        if projection in chosen:
            return pack_rows3(trits)
        return (pack_channels3 if projection in ("o", "down") else pack_tiles3)(trits)


def _architecture(s: Shape) -> str:
    if s.minicpm:
        return "MiniCPMForCausalLM"
    if s.head_norms:
        return "Qwen3ForCausalLM"
    return "BitNetForCausalLM" if s.sub_norms else "LlamaForCausalLM"


def toy_config(s: Shape) -> dict[str, Any]:
    minicpm = dict(
        zip(("scale_emb", "scale_depth", "dim_model_base"), s.minicpm or (), strict=False)
    )
    return minicpm | {
        "architectures": [_architecture(s)],
        "hidden_size": s.hidden,
        "intermediate_size": s.ffn,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "vocab_size": s.vocab,
        "max_position_embeddings": s.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": s.theta,
        "rope_scaling": None if s.rope is None else dict(s.rope),
        "hidden_act": s.act,
        "tie_word_embeddings": s.tied,
        "quantization_config": {"layout": s.layout, "activation_bits": s.activation_bits},
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


#: Module name to (scale, A (rank, in), B (out, rank)).
Lora = dict[str, tuple[float, npt.NDArray[Any], npt.NDArray[Any]]]


def make_lora(shape: Shape, rank: int = 4, seed: int = 0, projections=PROJECTIONS) -> Lora:
    """Make a random adapter whose effect is of the size of the product's."""
    rng = np.random.default_rng(seed)
    lora: Lora = {}
    for i in range(shape.layers):
        for projection in projections:
            n_out, n_in = shape.sizes[projection]
            part = "self_attn" if projection in "qkvo" else "mlp"
            a = rng.standard_normal((rank, n_in)) / np.sqrt(n_in)
            b = rng.standard_normal((n_out, rank)) / np.sqrt(rank)
            name = f"model.layers.{i}.{part}.{projection}_proj"
            lora[name] = (0.3, a.astype(np.float32), b.astype(np.float32))
    return lora


def lora_tensor(array: npt.NDArray[Any], dtype: str = "F32"):
    """Give one matrix as a safetensors tensor; BF16 keeps the upper half of float32."""
    if dtype == "BF16":
        data = (array.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    else:
        data = array.astype({"F32": "<f4", "F16": "<f2"}[dtype])
    return (dtype, array.shape, memoryview(data.tobytes()))


def lora_modules(lora: Lora, dtype: str = "F32"):
    """Give an adapter as edgeagent._core.Adapter takes it."""
    return {n: (s, lora_tensor(a, dtype), lora_tensor(b, dtype)) for n, (s, a, b) in lora.items()}


def make_toy(shape: Shape, seed: int = 0) -> Toy:
    """Make a random model with modest weights: a tame function, as trained ones are."""
    rng = np.random.default_rng(seed)

    def norm(n: int):
        return (1 + 0.2 * rng.standard_normal(n)).astype(np.float32)

    weights: dict[str, npt.NDArray[Any]] = {}
    embed = 0.3 * rng.standard_normal((shape.vocab, shape.hidden))
    weights["model.embed_tokens.weight"] = embed.astype(np.float16)
    weights["model.norm.weight"] = norm(shape.hidden)
    if not shape.tied:
        head = 0.05 * rng.standard_normal((shape.vocab, shape.hidden))
        weights["lm_head.weight"] = head.astype(np.float16)
    for i in range(shape.layers):
        at = f"model.layers.{i}"
        weights[f"{at}.input_layernorm.weight"] = norm(shape.hidden)
        weights[f"{at}.post_attention_layernorm.weight"] = norm(shape.hidden)
        if shape.sub_norms:
            attention = shape.heads * shape.head_dim
            weights[f"{at}.self_attn.attn_sub_norm.weight"] = norm(attention)
            weights[f"{at}.mlp.ffn_sub_norm.weight"] = norm(shape.ffn)
        if shape.head_norms:
            for part in ("q_norm", "k_norm"):
                weights[f"{at}.self_attn.{part}.weight"] = norm(shape.head_dim)
        for projection, (n_out, n_in) in shape.sizes.items():
            part = "self_attn" if projection in "qkvo" else "mlp"
            name = f"{at}.{part}.{projection}_proj"
            weights[f"{name}.weight"] = random_trits(rng, n_out, n_in)
            scale = (0.5 + rng.random(shape.scales(n_out, n_in))) / np.sqrt(n_in)
            weights[f"{name}.weight_scale"] = scale.astype(np.float32)
    return Toy(shape, toy_config(shape), weights, seed)
