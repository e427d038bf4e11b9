"""config.json of any source in, the keys of docs/formats.md section 1 out.

What the files in the wild do differently is met here and nowhere else: `rope_parameters` or
`rope_theta` with `rope_scaling` and its old key `type`; keys that are null; keys that are absent,
where each family has its own default; keys that appear twice (the last one holds, as in Python).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeagent.convert import yarn
from edgeagent.errors import ModelError

BITNET, BITNET_1BITLLM, LLAMA = "BitNetForCausalLM", "BitnetForCausalLM", "LlamaForCausalLM"
QWEN3, MINICPM = "Qwen3ForCausalLM", "MiniCPMForCausalLM"

#: Bounds of what a config may claim: far above every published model of these families, far below
#: what makes a product of two of them overflow or a plan of the tensors fill the memory.
MAX_SIZE = 1 << 20
MAX_HEAD_DIM = 1 << 12  # longrope and YaRN have a factor for each pair of channels
MAX_LAYERS = 1 << 10
MAX_POSITIONS = 1 << 24
MAX_EOS = 64


@dataclass(frozen=True, slots=True)
class Family:
    """Defaults of a family where its config.json is silent (transformers 5.23; MiniCPM's code)."""

    hidden_act: str
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    head_dim: int | None = None
    tied: bool = False


FAMILIES = {
    BITNET: Family("relu2", 1e-5, 500000.0, 2048),
    BITNET_1BITLLM: Family("silu", 1e-5, 10000.0, 2048),
    LLAMA: Family("silu", 1e-6, 10000.0, 2048),
    QWEN3: Family("silu", 1e-6, 10000.0, 32768, head_dim=128),
    MINICPM: Family("silu", 1e-6, 10000.0, 2048, tied=True),
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu2": "relu2"}
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
#: Keys that change what a model computes, with the values that do not.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "rope_interleaved": (None, False),
    "use_sliding_window": (None, False),
    "rotary_pct": (None, 1),
    "partial_rotary_factor": (None, 1),
    "parallel_attn": (None, False),
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
}
_MINICPM_FACTORS = ("scale_emb", "scale_depth", "dim_model_base")
_ROPE_KEYS: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
    "longrope": (
        "short_factor", "long_factor", "original_max_position_embeddings", "factor",
        "attention_factor", "beta_fast", "beta_slow",
    ),
}  # fmt: skip
_OPTIONAL = ("attention_factor", "factor", "beta_fast", "beta_slow")  # of longrope


def integer(
    config: Mapping[str, Any], key: str, largest: int, default: int | None = None, where: str = ""
) -> int:
    """Return config[key], an integer from 1 to `largest`; null is as good as absent.

    Raises:
        ModelError: it is something else.
    """
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= largest:
        raise ModelError(f"{where}{key}: expected an integer from 1 to {largest}, got {value!r}")
    return value


def number(config: Mapping[str, Any], key: str, default: float | None, where: str = "") -> float:
    """Return config[key], a positive finite number.

    Raises:
        ModelError: it is something else.
    """
    value = config.get(key)
    value = default if value is None else value
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30
    if not good:
        raise ModelError(f"{where}{key}: expected a number above 0, got {value!r}")
    return float(value or 0)


def architecture(config: Mapping[str, Any], where: str) -> str:
    """Return the family: `architectures` decides, `model_type` is not enough.

    Raises:
        ModelError: a family that we do not know.
    """
    value = config.get("architectures")
    name = value[0] if isinstance(value, list) and value else None
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelError(
            f"{where}: architectures: expected one of {', '.join(FAMILIES)}, got {name!r}"
        )
    return name


def _object(config: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise ModelError(f"{where}: {key}: expected an object or null, got {value!r}")
    return dict(value or {})


def _rope_values(scaling: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    kept: dict[str, Any] = {"rope_type": kind}
    for key in _ROPE_KEYS[kind]:
        value = scaling.get(key)
        if value is None and kind == "longrope" and key in _OPTIONAL:
            continue
        if value is None:
            raise ModelError(f"{where}: rope scaling {kind!r}: {key} is missing")
        kept[key] = value
    return kept


def _yarn(
    scaling: Mapping[str, Any], theta: float, head_dim: int, positions: int, where: str
) -> dict[str, Any]:
    """Return YaRN as longrope; `beta_fast` and `beta_slow` stay, and say what it was."""
    at = f"{where}: rope scaling 'yarn': "
    original = integer(
        scaling, "original_max_position_embeddings", MAX_POSITIONS, positions, where=at
    )
    factor = number(scaling, "factor", positions / original, at)
    fast = number(scaling, "beta_fast", yarn.BETA_FAST, at)
    slow = number(scaling, "beta_slow", yarn.BETA_SLOW, at)
    for key in ("attention_factor", "mscale", "mscale_all_dim"):
        if scaling.get(key):
            number(scaling, key, None, at)
    truncate = scaling.get("truncate")
    if fast <= slow or factor > yarn.LARGEST_FACTOR or theta <= 1:
        raise ModelError(
            f"{at}expected beta_fast above beta_slow, a factor up to {yarn.LARGEST_FACTOR:g} and "
            f"rope_theta above 1, got {fast:g}, {slow:g}, {factor:g} and {theta:g}"
        )
    values = yarn.factors(
        head_dim, theta, factor, original, beta=(fast, slow), truncate=truncate in (None, True)
    )
    return {
        "rope_type": "longrope", "short_factor": values, "long_factor": values,
        "original_max_position_embeddings": original, "factor": factor,
        "attention_factor": yarn.attention_factor(scaling, factor),
        "beta_fast": fast, "beta_slow": slow,
    }  # fmt: skip


def rope(
    config: Mapping[str, Any], theta: float, head_dim: int, positions: int, where: str
) -> tuple[float, Any]:
    """Return `rope_theta` and `rope_scaling` (null or an object with `rope_type`).

    Args:
        config: as it came.
        theta: the family's default.
        head_dim: channels of a head.
        positions: that the model has.
        where: of the config, for messages.

    Raises:
        ModelError: a scaling that the engine does not have.
    """
    scaling = _object(config, "rope_scaling", where) | _object(config, "rope_parameters", where)
    theta = number(config, "rope_theta", theta, f"{where}: ")
    theta = number(scaling, "rope_theta", theta, f"{where}: rope_parameters: ")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    kind = "longrope" if kind == "su" else kind
    if scaling.get("partial_rotary_factor") not in (None, 1):
        raise ModelError(f"{where}: partial_rotary_factor: only whole heads are rotated")
    if kind == "default" or (kind == "linear" and scaling.get("factor") == 1):
        return theta, None
    if not isinstance(kind, str) or kind not in (*_ROPE_KEYS, "yarn"):
        raise ModelError(
            f"{where}: rope scaling: expected default, {', '.join(_ROPE_KEYS)}, yarn, got {kind!r}"
        )
    original = config.get("original_max_position_embeddings")
    scaling.setdefault("original_max_position_embeddings", original)
    if kind == "yarn":
        return theta, _yarn(scaling, theta, head_dim, positions, where)
    return theta, _rope_values(scaling, kind, where)


def _token_ids(config: Mapping[str, Any], key: str, where: str) -> int | list[int] | None:
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if len(ids) > MAX_EOS or not all(type(i) is int and i >= 0 for i in ids):
        raise ModelError(f"{where}: {key}: expected token ids, got {value!r}")
    return value if value is None or isinstance(value, int) else list(ids)


def _activation(config: Mapping[str, Any], default: str, where: str) -> str:
    value = config.get("hidden_act")
    name = default if value is None else value
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ModelError(f"{where}: hidden_act: expected silu or relu2, got {name!r}")
    return _ACTIVATIONS[name]


def _check_plain(config: Mapping[str, Any], where: str) -> None:
    for key, values in _PLAIN.items():
        if config.get(key) not in values:
            raise ModelError(
                f"{where}: {key} = {config[key]!r}: the engine has no such model; "
                f"expected {values[-1]!r}"
            )


def _head_sizes(config: Mapping[str, Any], family: Family, where: str) -> dict[str, int]:
    at = f"{where}: "
    hidden, heads = (integer(config, key, MAX_SIZE, where=at) for key in _SIZES[::2])
    heads = integer(config, "num_attention_heads", MAX_SIZE, where=at)
    kv_heads = integer(config, "num_key_value_heads", MAX_SIZE, heads, at)
    if config.get("head_dim") is None and family.head_dim is None and hidden % heads:
        raise ModelError(f"{at}hidden_size {hidden} is no multiple of {heads} heads")
    head_dim = integer(config, "head_dim", MAX_HEAD_DIM, family.head_dim or hidden // heads, at)
    if heads % kv_heads or head_dim % 2:
        raise ModelError(
            f"{at}expected even heads, in equal groups; got {heads} heads of {head_dim} and "
            f"{kv_heads} key heads"
        )
    return {
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
    }  # fmt: skip


def normalise(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the config of a checkpoint; `tie_word_embeddings` may still be None: see the tensors.

    Raises:
        ModelError: a value is missing, impossible, or asks for what the engine does not have.
    """
    name = architecture(config, where)
    family = FAMILIES[name]
    _check_plain(config, where)
    at = f"{where}: "
    sizes = _head_sizes(config, family, where)
    positions = integer(config, "max_position_embeddings", MAX_POSITIONS, family.max_positions, at)
    theta, scaling = rope(config, family.rope_theta, sizes["head_dim"], positions, where)
    tied = config.get("tie_word_embeddings")
    if tied not in (None, False, True):
        raise ModelError(f"{where}: tie_word_embeddings: expected true or false, got {tied!r}")
    out: dict[str, Any] = {
        "architectures": [name],
        **{key: integer(config, key, MAX_SIZE, where=at) for key in _SIZES},
        "num_hidden_layers": integer(config, "num_hidden_layers", MAX_LAYERS, where=at),
        **sizes,
        "max_position_embeddings": positions,
        "rms_norm_eps": number(config, "rms_norm_eps", family.rms_norm_eps, at),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "hidden_act": _activation(config, family.hidden_act, where),
        "tie_word_embeddings": tied,
        "bos_token_id": _token_ids(config, "bos_token_id", where),
        "eos_token_id": _token_ids(config, "eos_token_id", where),
    }
    if name == MINICPM:
        out |= {key: number(config, key, None, at) for key in _MINICPM_FACTORS if config.get(key)}
    return out


def settle_tying(config: dict[str, Any], has_head: bool, where: str) -> None:
    """Decide `tie_word_embeddings` by the key, else by the family's default and the tensors.

    Raises:
        ModelError: an untied model without a head.
    """
    tied = config["tie_word_embeddings"]
    if tied is None:
        tied = not has_head
    if not tied and not has_head:
        raise ModelError(
            f"{where}: lm_head.weight is missing, and tie_word_embeddings is not true: "
            "a shard of the checkpoint is missing"
        )
    config["tie_word_embeddings"] = tied


def expected_tensors(
    config: Mapping[str, Any], *, sub_norms: bool, head_norms: bool
) -> dict[str, tuple[int, ...]]:
    """Return name and logical shape of every tensor that a model of this config has."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    heads, kv, width = (
        config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    embedding = (config["vocab_size"], hidden)
    out: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = embedding
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (heads * width, hidden),
        "self_attn.k_proj": (kv * width, hidden),
        "self_attn.v_proj": (kv * width, hidden),
        "self_attn.o_proj": (hidden, heads * width),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    if sub_norms:
        layer |= {"self_attn.attn_sub_norm": (heads * width,), "mlp.ffn_sub_norm": (ffn,)}
    if head_norms:
        layer |= {"self_attn.q_norm": (width,), "self_attn.k_norm": (width,)}
    for n in range(config["num_hidden_layers"]):
        out |= {f"model.layers.{n}.{name}.weight": shape for name, shape in layer.items()}
    return out


def check_tensors(
    config: Mapping[str, Any], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Refuse a checkpoint that is not exactly the tensors of its config.

    Raises:
        ModelError: one is missing, unknown, or has another shape.
    """
    wanted = expected_tensors(
        config,
        sub_norms=any(name.endswith(".ffn_sub_norm.weight") for name in found),
        head_norms=any(name.endswith(".q_norm.weight") for name in found),
    )
    for name, shape in wanted.items():
        if name not in found:
            raise ModelError(f"{where}: tensor {name} is missing: a shard is lost, or config.json")
        if found[name] != shape:
            raise ModelError(f"{where}: {name}: expected shape {shape}, got {found[name]}")
    unknown = sorted(set(found) - set(wanted))
    if unknown:
        raise ModelError(
            f"{where}: {unknown[0]}: not a tensor of {config['architectures'][0]} "
            f"({len(unknown)} such): the engine would leave it out, so it is refused"
        )


def residual_scale_to_depth(residual_scale: float, n_layers: int) -> float:
    """Return MiniCPM's `scale_depth` of what a layer adds: scale_depth / sqrt(layers)."""
    return residual_scale * math.sqrt(n_layers)
