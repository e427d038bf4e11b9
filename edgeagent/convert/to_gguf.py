"""A checkpoint out as a GGUF file for llama.cpp or ik_llama.cpp.

| model | architecture there | rows of q and k | feed-forward |
|---|---|---|---|
| with sub-norms | `bitnet` | as they are | SiLU |
| with sub-norms (BitNet b1.58 2B-4T) | `bitnet-b1.58` | as they are | squared ReLU |
| Llama | `llama` | interleaved | SiLU |
| with norms of q and k (Qwen3) | `qwen3` | as they are | SiLU |
| MiniCPM | `minicpm` | interleaved | SiLU, three scales |

A program that has no `bitnet-b1.58` refuses such a file; as `bitnet` it would load and compute
something else (docs/adr/0022-exports-of-squared-relu.md).

Projections become TQ2_0, TQ1_0 or IQ2_BN (or what llama.cpp uses where those do not fit, see
gguf_trits), embedding and head F16, norms F32.  Matrices are read, packed and written one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert import yarn
from edgeagent.convert.checkpoint import Checkpoint, TritMatrix
from edgeagent.convert.gguf import ACTIVATION_BITS_KEY
from edgeagent.convert.gguf_trits import F16, F32, IQ2_BN, TQ1_0, TQ2_0, Packing, choose, encode
from edgeagent.convert.gguf_write import Planned, write_gguf_file
from edgeagent.convert.tokenizers_gguf import tokenizer_metadata
from edgeagent.errors import ModelError

#: Format to tensor type and to the file type of its program.
FORMATS = {
    "gguf-tq2_0": (TQ2_0, 37),
    "gguf-tq1_0": (TQ1_0, 36),
    "gguf-iq2_bn": (IQ2_BN, 137),
}
IK_FORMATS = ("gguf-iq2_bn",)  # of ik_llama.cpp alone
BITNET, BITNET_RELU2 = "bitnet", "bitnet-b1.58"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_GLOBAL = {
    EMBEDDING: "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    HEAD: "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_INTERLEAVED = ("llama", "minicpm")
#: Values of the embedding and the head that are converted at a time.
CHUNK_VALUES = 1 << 24
RELU2_NOTE = (
    "the model's activation is ReLU²: written as `bitnet-b1.58`, which llama.cpp refuses (it has "
    "SiLU only); for ik_llama.cpp, which computes it, take --format gguf-iq2_bn"
)
AS_BITNET_NOTE = (
    "the model's activation is ReLU²: llama.cpp computes SiLU from this file, so its text is "
    "wrong, unless yours reads the key bitnet.hidden_activation"
)
IK_NOTE = "IQ2_BN is a type of ik_llama.cpp: no other program reads the file"
INT8_NOTE = "the model was made for activations in float: the reader rounds them to 8 bits"


@dataclass(slots=True)
class Exported:
    """What was written.

    Attributes:
        architecture: as GGUF names it.
        n_ternary: matrices in the asked format.
        others: matrices that had to take another type, by its name.
        notes: what a user of the file should know; see `notes_on`.
    """

    architecture: str
    n_ternary: int = 0
    others: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def notes_on(source: Checkpoint, file_format: str, *, as_bitnet: bool = False) -> list[str]:
    """Return what a user of the file should know before it is written: above all, who reads it."""
    notes = []
    if file_format in IK_FORMATS:
        notes.append(IK_NOTE)
    if source.config.get("hidden_act") == "relu2" and as_bitnet:
        notes.append(AS_BITNET_NOTE)
    elif source.config.get("hidden_act") == "relu2" and file_format not in IK_FORMATS:
        notes.append(RELU2_NOTE)
    if source.activation_bits != 8:
        notes.append(INT8_NOTE)
    return notes


def architecture_of(source: Checkpoint, *, as_bitnet: bool = False) -> str:
    """Return GGUF's name of the family.

    Args:
        source: the model.
        as_bitnet: a model of squared ReLU as `bitnet`, which says SiLU to most programs.

    Raises:
        ModelError: llama.cpp has no model like this one.
    """
    names = source.shapes()
    sub_norms = any(name.endswith("mlp.ffn_sub_norm.weight") for name in names)
    head_norms = any(name.endswith("self_attn.q_norm.weight") for name in names)
    relu2 = source.config.get("hidden_act") == "relu2"
    family = (source.config.get("architectures") or [None])[0]
    tied = HEAD not in names
    if sub_norms and not tied:
        raise ModelError("sub-norms and a head of its own: llama.cpp's `bitnet` has a tied one")
    if (sub_norms and head_norms) or (relu2 and not sub_norms):
        raise ModelError("llama.cpp has no architecture with these norms and this activation")
    if sub_norms and head_dim(source.config) * _int(source.config, "num_attention_heads") != _int(
        source.config, "hidden_size"
    ):
        raise ModelError("llama.cpp's `bitnet` has heads that add up to the hidden size")
    if sub_norms:
        return BITNET_RELU2 if relu2 and not as_bitnet else BITNET
    if head_norms:
        return "qwen3"
    return "minicpm" if family == "MiniCPMForCausalLM" else "llama"


def _int(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ModelError(f"config.json: {key}: expected a number above 0, got {value!r}")
    return value


def head_dim(config: Mapping[str, Any]) -> int:
    """Return the size of an attention head."""
    if config.get("head_dim"):
        return _int(config, "head_dim")
    return _int(config, "hidden_size") // _int(config, "num_attention_heads")


def gguf_name(name: str) -> str:
    """Return GGUF's name of a tensor.

    Raises:
        ModelError: it has none.
    """
    if name in _GLOBAL:
        return _GLOBAL[name]
    parts = name.split(".", 3)
    inner = parts[3].removesuffix(".weight") if len(parts) == 4 else ""
    if parts[:2] != ["model", "layers"] or inner not in _LAYER:
        raise ModelError(f"{name}: llama.cpp has no place for this tensor")
    return f"blk.{parts[2]}.{_LAYER[inner]}.weight"


# ---- keys ----


def _rope(config: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """Return the keys of a scaled rotation, without the tensors that belong to it."""
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        return {
            f"{arch}.rope.scaling.type": "linear",
            f"{arch}.rope.scaling.factor": float(scaling["factor"]),
        }
    if "beta_fast" in scaling:
        return _yarn(scaling, arch)
    if kind == "longrope":
        original = scaling.get("original_max_position_embeddings")
        length = int(original or config["max_position_embeddings"])
        return {
            f"{arch}.rope.scaling.type": "longrope",
            f"{arch}.rope.scaling.original_context_length": length,
        }
    if kind not in ("default", "llama3"):
        raise ModelError(f"config.json: rope_scaling: {kind!r} cannot be written to GGUF")
    return {}


def _yarn(scaling: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """Return the keys of YaRN; llama.cpp's own factor of attention multiplies the usual one."""
    at, factor = f"{arch}.rope.scaling", float(scaling["factor"])
    found = {
        f"{at}.type": "yarn",
        f"{at}.factor": factor,
        f"{at}.original_context_length": int(scaling["original_max_position_embeddings"]),
        f"{at}.yarn_beta_fast": float(scaling["beta_fast"]),
        f"{at}.yarn_beta_slow": float(scaling["beta_slow"]),
    }
    attention = scaling["attention_factor"] / yarn.attention_factor({}, factor)
    return found | ({} if abs(attention - 1) < 1e-6 else {f"{at}.attn_factor": attention})


def _minicpm(config: Mapping[str, Any]) -> dict[str, Any]:
    layers, hidden = _int(config, "num_hidden_layers"), _int(config, "hidden_size")
    base = float(config.get("dim_model_base", hidden))
    return {
        "minicpm.embedding_scale": float(config.get("scale_emb", 1)),
        "minicpm.residual_scale": float(config.get("scale_depth", 1)) / math.sqrt(layers),
        "minicpm.logit_scale": hidden / base,
    }


def _metadata(source: Checkpoint, arch: str, file_type: int, size: int) -> dict[str, Any]:
    c = source.config
    width = head_dim(c)
    heads = _int(c, "num_attention_heads")
    found: dict[str, Any] = {
        "general.architecture": arch,
        "general.alignment": 32,
        "general.file_type": file_type,
        ACTIVATION_BITS_KEY: source.activation_bits,
        f"{arch}.vocab_size": size,
        f"{arch}.context_length": _int(c, "max_position_embeddings"),
        f"{arch}.embedding_length": _int(c, "hidden_size"),
        f"{arch}.feed_forward_length": _int(c, "intermediate_size"),
        f"{arch}.block_count": _int(c, "num_hidden_layers"),
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": int(c.get("num_key_value_heads") or heads),
        f"{arch}.attention.key_length": width,
        f"{arch}.attention.value_length": width,
        f"{arch}.attention.layer_norm_rms_epsilon": float(c.get("rms_norm_eps", 1e-5)),
        f"{arch}.rope.dimension_count": width,
        f"{arch}.rope.freq_base": float(c.get("rope_theta", 10000.0)),
        **_rope(c, arch),
        **(_minicpm(c) if arch == "minicpm" else {}),
    }
    if c.get("hidden_act") == "relu2":
        found[f"{arch}.hidden_activation"] = "relu2"
    return found


# ---- tensors ----


def interleave(trits: NDArray[Any], heads: int) -> NDArray[Any]:
    """Put the rows of rotate-half heads in the order that rotates neighbours."""
    halves = trits.reshape(heads, 2, -1, trits.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(trits.shape)


def _in_order(matrix: TritMatrix, heads: int | None) -> TritMatrix:
    if heads is None:
        return matrix
    scales = matrix.scales
    if scales.shape[1] > 1:  # of rows, so they move with them
        scales = np.ascontiguousarray(interleave(scales.T, heads).T)
    return TritMatrix(interleave(matrix.trits, heads), scales)


def llama3_factors(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Return what each frequency is divided by, of the scaling that Llama 3.1 came with.

    Source: arXiv 2407.21783 and its implementation in transformers (modeling_rope_utils).
    """
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "llama3":
        return None
    width, theta = head_dim(config), float(config.get("rope_theta", 10000.0))
    wavelength = 2 * np.pi * theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original = float(scaling["original_max_position_embeddings"])
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _extra(config: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of a scaled rotation."""
    factors = llama3_factors(config)
    if factors is not None:
        return {"rope_freqs.weight": factors}
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "longrope" or "beta_fast" in scaling:
        return {}
    return {
        f"rope_factors_{kind}.weight": np.asarray(scaling[f"{kind}_factor"], np.float32)
        for kind in ("long", "short")
    }


def _groups(source: Checkpoint, name: str) -> int:
    """Return the scales a row of a ternary matrix; some sources know without reading it."""
    quick: Callable[[str], int] | None = getattr(source, "scale_groups", None)
    return source.trits(name).scales.shape[0] if quick is None else quick(name)


class _Writer:
    """The plan of one file, and the bytes of its tensors when they are asked for."""

    def __init__(self, source: Checkpoint, wanted: int, arch: str) -> None:
        self._source, self._wanted, self._arch = source, wanted, arch
        names = source.shapes()
        self._names = sorted(names, key=lambda name: (name not in _GLOBAL, name))
        self._extra = _extra(source.config)
        self._packings: dict[str, Packing] = {}

    def plan(self) -> list[Planned]:
        """Return the table."""
        extra = [
            Planned(name, F32, values.shape, values.nbytes) for name, values in self._extra.items()
        ]
        return extra + [self._planned(name) for name in self._names]

    def packings(self) -> Mapping[str, Packing]:
        """Return how each ternary matrix is stored; known after `plan`."""
        return self._packings

    def _planned(self, name: str) -> Planned:
        shape = self._source.shapes()[name]
        if len(shape) == 1:
            return Planned(gguf_name(name), F32, shape, shape[0] * 4)
        if name in (EMBEDDING, HEAD):
            return Planned(gguf_name(name), F16, shape, math.prod(shape) * 2)
        if not self._source.is_ternary(name):
            raise ModelError(f"{name}: expected trits, got floats: ternarise the model first")
        packing = choose((shape[0], shape[1]), _groups(self._source, name), self._wanted)
        self._packings[name] = packing
        return Planned(gguf_name(name), packing.kind, shape, packing.n_bytes)

    def read(self, i: int) -> Iterator[NDArray[Any]]:
        """Yield the bytes of tensor `i` of the table."""
        if i < len(self._extra):
            yield list(self._extra.values())[i]
            return
        name = self._names[i - len(self._extra)]
        shape = self._source.shapes()[name]
        if name in self._packings:
            matrix = _in_order(self._source.trits(name), self._heads(name))
            yield encode(matrix, self._packings[name], name)
        elif len(shape) == 1:
            yield self._source.floats(name)
        else:
            rows = max(1, CHUNK_VALUES // shape[1])
            for begin in range(0, shape[0], rows):
                end = min(begin + rows, shape[0])
                yield self._source.floats(name, begin, end).astype(np.float16)

    def _heads(self, name: str) -> int | None:
        """Return the heads whose rows must be interleaved; None for none."""
        if self._arch not in _INTERLEAVED:
            return None
        config = self._source.config
        if name.endswith("q_proj.weight"):
            return _int(config, "num_attention_heads")
        if name.endswith("k_proj.weight"):
            return int(config.get("num_key_value_heads") or _int(config, "num_attention_heads"))
        return None


def export_gguf(
    source: Checkpoint,
    out: Path,
    file_format: str,
    *,
    with_tokenizer: bool = True,
    as_bitnet: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write `source` as the file `out`.

    Args:
        source: a checkpoint whose projections are ternary.
        out: the file; it is there whole or not at all.
        file_format: a key of FORMATS.
        with_tokenizer: write the tokenizer too, as people want it.
        as_bitnet: see `architecture_of`.
        progress: called with the tensors written and their number.

    Raises:
        ModelError: llama.cpp has no model, no tensor or no tokenizer like this one.
        AdapterError: the disk refuses.
    """
    wanted, file_type = FORMATS[file_format]
    arch = architecture_of(source, as_bitnet=as_bitnet)
    size = source.shapes()[EMBEDDING][0]
    metadata = _metadata(source, arch, file_type, size)
    files = source.tokenizer() if with_tokenizer else None
    metadata |= tokenizer_metadata(files, size) if files else {"tokenizer.ggml.model": "none"}
    writer = _Writer(source, wanted, arch)
    planned = writer.plan()

    def read(i: int) -> Iterator[NDArray[Any]]:
        yield from writer.read(i)
        if progress is not None:
            progress(i + 1, len(planned))

    write_gguf_file(out, metadata, planned, read)
    exported = Exported(arch, notes=notes_on(source, file_format, as_bitnet=as_bitnet))
    for packing in writer.packings().values():
        if packing.kind == wanted:
            exported.n_ternary += 1
        else:
            name = "F16" if packing.kind == F16 else "Q4_0"
            exported.others[name] = exported.others.get(name, 0) + 1
    return exported
