"""A GGUF file as a checkpoint: names, order of rows and meaning as Hugging Face has them.

| architecture              | FFN                                  | rows of q and k |
|---|---|---|
| `bitnet-b1.58`, `bitnet-25` | squared ReLU; the files do not say so | as they are    |
| `bitnet`                  | `<arch>.hidden_activation`, else SiLU | as they are     |
| `llama`, `minicpm`        | SiLU                                 | interleaved     |
| `qwen3`                   | SiLU                                 | as they are     |

Sources: github.com/microsoft/BitNet; github.com/ggml-org/llama.cpp, `gguf-py/gguf/constants.py` and
the conversion of each family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert import configs, yarn
from edgeagent.convert.checkpoint import TokenizerFiles, TritMatrix
from edgeagent.convert.disk import DiskFile, to_float32
from edgeagent.convert.exact import exact_ternary, fold_scales, sample
from edgeagent.convert.gguf_file import GgufFile, GgufTensor
from edgeagent.convert.gguf_types import (
    I2S_VARIANTS,
    TERNARY_BLOCKS,
    decode_blocks,
    decode_i2s,
    decode_q4_trits,
)
from edgeagent.convert.hf import is_projection
from edgeagent.convert.pack import ternarise_absmean
from edgeagent.errors import ModelError

#: Ours, in files that we export: 8 or 16 where the architecture does not say which it is.
ACTIVATION_BITS_KEY = "edgeagent.activation_bits"
_FLOATS = ("F32", "F16", "BF16")
_QUANTISED = ("Q8_0", "Q6_K", "Q4_K", "Q4_0")


@dataclass(frozen=True, slots=True)
class Arch:
    """What an architecture name means.

    Attributes:
        family: as Hugging Face names it.
        hidden_act: None: the key `hidden_activation` says it, else it is SiLU.
        interleaved: whether the rows of q and k are in the order that rotates neighbours.
    """

    family: str
    hidden_act: str | None = "silu"
    interleaved: bool = False

    @property
    def is_bitnet(self) -> bool:
        """Whether floats are masters, and activations are quantised."""
        return self.family == configs.BITNET


ARCHS = {
    "bitnet": Arch(configs.BITNET, None),
    "bitnet-b1.58": Arch(configs.BITNET, "relu2"),
    "bitnet-25": Arch(configs.BITNET, "relu2"),
    "llama": Arch(configs.LLAMA, interleaved=True),
    "qwen3": Arch(configs.QWEN3),
    "minicpm": Arch(configs.MINICPM, interleaved=True),
}
_GLOBAL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_sub_norm": "self_attn.attn_sub_norm",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}  # fmt: skip
_ROPE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def _hf_name(name: str, where: str) -> str:
    if name in _GLOBAL:
        return _GLOBAL[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdecimal() and len(parts[1]) < 5:
        inner, last = parts[2], parts[3]
        if inner.endswith("_norm_in"):
            raise ModelError(
                f"{where}: {name}: a norm before each projection (BitNet embedding models) is not "
                "supported: the engine has norms a layer only"
            )
        if inner in _LAYER and last in ("weight", "scale"):
            return f"model.layers.{int(parts[1])}.{_LAYER[inner]}.{last}"
    raise ModelError(f"{where}: {name}: not a tensor that the engine has a place for")


class GgufCheckpoint:
    """An open GGUF file; see `checkpoint.Checkpoint`."""

    def __init__(self, path: Path, *, i2s_variant: str = I2S_VARIANTS[0]) -> None:
        """Read the header of `path`.

        Args:
            path: the file.
            i2s_variant: how I2_S tensors are laid out, of `gguf_types.I2S_VARIANTS`.

        Raises:
            ModelError: a hostile or damaged header, or a model that we do not have.
        """
        self._where = path.name
        self._gguf = GgufFile(DiskFile(path))
        self._i2s_variant = i2s_variant
        self.metadata: Mapping[str, Any] = self._gguf.metadata
        self._name, self._arch = _architecture(self.metadata, self._where)
        self._tensors, self._scales = self._named()
        config = self._config()
        configs.settle_tying(config, "lm_head.weight" in self._tensors, self._where)
        self.config: Mapping[str, Any] = config
        configs.check_tensors(config, self.shapes(), self._where)
        self._exact: dict[str, bool] = {}
        self.activation_bits = self._activation_bits()

    @property
    def identity(self) -> str:
        """Return what changes when the source does."""
        return f"{self._gguf.file.identity()} {self._i2s_variant}"

    def _named(self) -> tuple[dict[str, GgufTensor], dict[str, GgufTensor]]:
        """Return the tensors by their Hugging Face names, and the factors of their outputs."""
        tensors, scales = {}, {}
        for name, tensor in self._gguf.tensors.items():
            if name in _ROPE:
                continue
            hf = _hf_name(name, self._where)
            if hf.endswith(".scale"):
                scales[hf.removesuffix(".scale") + ".weight"] = tensor
            elif hf in tensors:
                raise ModelError(f"{self._where}: {name}: a second tensor for {hf}")
            else:
                tensors[hf] = tensor
        return tensors, scales

    # ---- config ----

    def _key(self, key: str) -> Any:
        return self.metadata.get(f"{self._name}.{key}")

    def _config(self) -> dict[str, Any]:
        names = {
            "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
            "num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count",
            "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
            "max_position_embeddings": "context_length", "vocab_size": "vocab_size",
            "rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base",
        }  # fmt: skip
        raw: dict[str, Any] = {hf: self._key(key) for hf, key in names.items()}
        raw = {key: value[0] if _same(value) else value for key, value in raw.items()}
        raw |= {"architectures": [self._arch.family], "rope_scaling": self._rope_scaling()}
        if raw["head_dim"] is None:
            raw["head_dim"] = self._key("rope.dimension_count")
        embedding = self._tensors.get("model.embed_tokens.weight")
        if embedding is not None:  # community files leave the key out, others pad the matrix
            raw["vocab_size"] = embedding.shape[0]
        raw["hidden_act"] = self._arch.hidden_act or self._key("hidden_activation") or "silu"
        raw |= self._token_ids() | (self._minicpm() if self._name == "minicpm" else {})
        config = configs.normalise(raw, self._where)
        dims = self._key("rope.dimension_count")
        if dims not in (None, config["head_dim"]):
            raise ModelError(
                f"{self._where}: rope.dimension_count {dims}: only whole heads are rotated, "
                f"{config['head_dim']}"
            )
        return config

    def _token_ids(self) -> dict[str, Any]:
        ids = {}
        for key in ("bos", "eos"):
            value = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
            ids[f"{key}_token_id"] = value if type(value) is int else None
        return ids

    def _minicpm(self) -> dict[str, Any]:
        """Undo the factors; absent ones are those of MiniCPM-2B, as llama.cpp has them."""
        hidden = configs.integer(self.metadata, "minicpm.embedding_length", configs.MAX_SIZE)
        layers = configs.integer(self.metadata, "minicpm.block_count", configs.MAX_LAYERS)
        root = math.sqrt(layers)
        residual = configs.number(self.metadata, "minicpm.residual_scale", 1.4 / root)
        logits = configs.number(self.metadata, "minicpm.logit_scale", hidden / 256)
        depth = residual * root
        return {
            "scale_emb": configs.number(self.metadata, "minicpm.embedding_scale", 12.0),
            "scale_depth": round(depth, 6),  # as float32 had it
            "dim_model_base": round(hidden / logits, 3),
        }

    def _rope_scaling(self) -> dict[str, Any] | None:
        kind = self._key("rope.scaling.type")
        factors = {name: self._factors(name) for name in _ROPE if name in self._gguf.tensors}
        context = self._key("context_length")
        original = self._key("rope.scaling.original_context_length") or context
        if "rope_freqs.weight" in factors:
            return llama3_scaling(factors["rope_freqs.weight"], original)
        if kind == "longrope" or factors:
            if len(factors) != 2:
                raise ModelError(f"{self._where}: longrope: expected its long and short factors")
            scaling = {
                "rope_type": "longrope",
                "short_factor": factors["rope_factors_short.weight"],
                "long_factor": factors["rope_factors_long.weight"],
                "original_max_position_embeddings": original,
            }
            attention = self._key("rope.scaling.attn_factor")
            return scaling | ({"attention_factor": attention} if attention else {})
        if kind in (None, "none"):
            return None
        scaling = {"rope_type": kind, "factor": self._key("rope.scaling.factor")}
        return scaling | (self._yarn(original) if kind == "yarn" else {})

    def _yarn(self, original: Any) -> dict[str, Any]:
        """Return what llama.cpp's keys of YaRN say; its own factor multiplies the usual one."""
        factor = configs.number(self.metadata, f"{self._name}.rope.scaling.factor", None)
        attention = self._key("rope.scaling.attn_factor") or self._key(
            "rope.scaling.yarn_attn_factor"
        )
        found = {
            "original_max_position_embeddings": original,
            "beta_fast": self._key("rope.scaling.yarn_beta_fast"),
            "beta_slow": self._key("rope.scaling.yarn_beta_slow"),
        }
        if attention:
            found["attention_factor"] = attention * yarn.attention_factor({}, factor)
        return found

    def _factors(self, name: str) -> list[float]:
        tensor = self._gguf.tensors[name]
        if len(tensor.shape) != 1 or tensor.shape[0] > configs.MAX_SIZE:
            raise ModelError(f"{self._where}: {name}: expected a list, got {tensor.shape}")
        return [round(float(value), 7) for value in self._decode(name, tensor, 0, 1)]

    def _activation_bits(self) -> int:
        """Return what the file says, or 8 for BitNets and I2_S, which exists for int8 alone."""
        stated = self.metadata.get(ACTIVATION_BITS_KEY)
        if stated in (8, 16):
            return int(stated)
        is_i2s = any(tensor.kind.name == "I2_S" for tensor in self._tensors.values())
        return 8 if self._arch.is_bitnet or is_i2s else 16

    # ---- tensors ----

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name every tensor and its logical shape."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def is_ternary(self, name: str) -> bool:
        """Say whether `trits` answers for this tensor."""
        if not is_projection(name):
            return False
        kind = self._tensors[name].kind.name
        if kind not in _FLOATS:
            return kind in TERNARY_BLOCKS or kind in ("I2_S", "Q4_0")
        return self._arch.is_bitnet or self._is_exact(name)

    def _is_exact(self, name: str) -> bool:
        if name not in self._exact:
            tensor = self._tensors[name]
            rows = [self._decode(name, tensor, r, r + 1) for r in sample(tensor.shape[0])]
            self._exact[name] = exact_ternary(np.concatenate(rows)) is not None
        return self._exact[name]

    def _whole(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        return self._gguf.file.read(tensor.begin, tensor.n_bytes)

    def _stored_trits(self, name: str) -> TritMatrix:
        """Return a matrix in the row order of the file."""
        tensor = self._tensors[name]
        kind, (n_out, n_in) = tensor.kind.name, tensor.shape
        if kind in TERNARY_BLOCKS:
            return fold_scales(*decode_blocks(kind, self._whole(tensor), n_out, n_in))
        if kind == "Q4_0":
            return fold_scales(*decode_q4_trits(self._whole(tensor), n_out, n_in))
        if kind == "I2_S":
            trits, scale = decode_i2s(self._whole(tensor), n_out, n_in, self._i2s_variant)
            return fold_scales(trits, np.full((n_out, 1), scale, np.float32))
        values = self._decode(name, tensor, 0, n_out)
        found = exact_ternary(values)
        if found is None and self._arch.is_bitnet and np.isfinite(values).all():
            trits, scale = ternarise_absmean(values)
            return TritMatrix(trits, np.full((1, 1), scale, np.float32))
        if found is None:
            raise ModelError("floats that are not ternary: say how to ternarise them")
        return found

    def trits(self, name: str) -> TritMatrix:
        """Read a whole ternary matrix.

        Raises:
            ModelError: the bytes are no trits.
        """
        try:
            matrix = self._stored_trits(name)
        except ModelError as err:
            raise ModelError(f"{self._where}: {name}: {err}") from err
        factor = self._factor(name)
        scales = matrix.scales * factor
        order = self._order(name)
        if order is None:
            return TritMatrix(matrix.trits, scales)
        moved = scales if scales.shape[1] == 1 else scales[:, order]
        return TritMatrix(matrix.trits[order], moved)

    def _factor(self, name: str) -> np.float32:
        """Return the number that the file wants the matrix's output multiplied by."""
        tensor = self._scales.get(name)
        if tensor is None:
            return np.float32(1)
        if math.prod(tensor.shape) != 1:
            raise ModelError(f"{self._where}: {name}: its .scale: expected one number")
        value = np.float32(self._decode(name, tensor, 0, 1).ravel()[0])
        if not (np.isfinite(value) and value > 0):
            raise ModelError(f"{self._where}: {name}: its .scale: expected above 0, got {value}")
        return value

    def _order(self, name: str) -> NDArray[np.intp] | None:
        """Return where in the file each row of rotate-half q or k is; None for where it should be.

        A head's rows [2, half] were stored as [half, 2].
        """
        if not self._arch.interleaved or not name.endswith(("q_proj.weight", "k_proj.weight")):
            return None
        is_q = name.endswith("q_proj.weight")
        heads = self.config["num_attention_heads" if is_q else "num_key_value_heads"]
        rows = np.arange(self._tensors[name].shape[0])
        return rows.reshape(heads, -1, 2).swapaxes(1, 2).ravel()

    def floats(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Read rows as float32.

        Raises:
            ModelError: the tensor has no numbers that we know.
        """
        tensor = self._tensors[name]
        whole = tensor.kind.name in ("I2_S", "Q4_0") and is_projection(name)
        if self._order(name) is not None or whole or name in self._scales:
            if self.is_ternary(name):
                return dequantise(self.trits(name))[begin:end]
            order = self._order(name)
            values = self._decode(name, tensor, 0, tensor.shape[0]) * self._factor(name)
            return (values if order is None else values[order])[begin:end]
        n_rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
        if len(tensor.shape) == 1:
            return self._decode(name, tensor, 0, 1)[begin:end]
        begin, end, _ = slice(begin, end).indices(n_rows)
        return self._decode(name, tensor, begin, max(begin, end))

    def _decode(self, name: str, tensor: GgufTensor, begin: int, end: int) -> NDArray[np.float32]:
        """Decode rows of a type whose rows stand alone; a list is one row."""
        width = tensor.shape[-1]
        at = tensor.begin + begin * tensor.row_bytes
        data = self._gguf.file.read(at, (end - begin) * tensor.row_bytes)
        kind = tensor.kind.name
        if kind in _FLOATS:
            values = to_float32(kind, data)
        elif kind in _QUANTISED:
            values = _dequantise_standard(kind, data)
        elif kind in TERNARY_BLOCKS:
            trits, scales = decode_blocks(kind, data, end - begin, width)
            values = (trits * np.repeat(scales, width // scales.shape[1], axis=1)).astype("f4")
        else:
            raise ModelError(f"{self._where}: {name}: {kind} is for matrices of trits")
        return values.reshape(width) if len(tensor.shape) == 1 else values.reshape(-1, width)

    def tokenizer(self) -> TokenizerFiles | None:
        """Make the tokenizer from the metadata; None when there is none.

        Raises:
            ModelError: there is one that we cannot use.
        """
        from edgeagent.convert.tokenizers import from_gguf

        return from_gguf(self.metadata)


def _same(value: Any) -> bool:
    """Say whether a key that may be a list, one number a layer, is the same number everywhere."""
    return isinstance(value, list) and bool(value) and all(v == value[0] for v in value)


def _architecture(metadata: Mapping[str, Any], where: str) -> tuple[str, Arch]:
    rotated = next((key for key in metadata if key.startswith("prism.hadamard.")), None)
    if rotated is not None:
        raise ModelError(
            f"{where}: {rotated}: the weights are in a Hadamard-rotated basis, which the engine "
            "does not have: without the rotation every answer would be noise"
        )
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHS:
        raise ModelError(
            f"{where}: general.architecture: expected one of {', '.join(ARCHS)}, got {name!r}"
        )
    if metadata.get("general.type") == "adapter":
        raise ModelError(f"{where}: this is an adapter, not a model")
    return name, ARCHS[name]


def _dequantise_standard(kind: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decode a type of ggml that is not ternary, by the `gguf` package."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return np.asarray(dequantize(data.reshape(1, -1), GGMLQuantizationType[kind]), np.float32)


def dequantise(matrix: TritMatrix) -> NDArray[np.float32]:
    """Return the float32 weights (out, in) of a ternary matrix."""
    groups, width = matrix.scales.shape[0], matrix.trits.shape[1]
    factors = np.repeat(matrix.scales, width // groups, axis=0).T
    return np.asarray(matrix.trits * factors, np.float32)


def llama3_scaling(factors: list[float], context: Any) -> dict[str, Any]:
    """Return what `rope_freqs.weight` says, the divisor of each frequency.

    llama.cpp stores the factors of Llama 3's scaling and not its parameters.  As LongRoPE with one
    list for every length and no factor of its own for attention, they are the same function.
    """
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": context,
        "attention_factor": 1.0,
    }
