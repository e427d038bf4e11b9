"""A PEFT LoRA adapter as PEFT writes it: what it adds to which projection, or why we refuse it.

    y = W x + scale * B (A x)      scale = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora

Names and keys are those of `adapter_config.json` and `adapter_model.safetensors` (PEFT 0.21).  An
adapter is kept beside the ternary product, never merged into trits, which have no room for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeagent.errors import ModelError
from edgeagent.model.safetensors import SafetensorsFile

ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"

Tensor = tuple[str, tuple[int, ...], memoryview]
#: Module name ("model.layers.0.self_attn.q_proj") to (scale, A (r, in), B (out, r)).
Modules = dict[str, tuple[float, Tensor, Tensor]]

#: Keys that change what an adapter computes, and the values that leave it as it is above.
PLAIN_VALUES: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
}
#: Ways to initialise that change the base model's weights: the adapter fits only the changed ones.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
#: Patterns are module names or their ends; more of a regular expression is nobody's need.
PATTERN = re.compile(r"\^?[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\$?")
MAX_PATTERNS = 4096
TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
RANK_MAX, ALPHA_MAX = 1024, 1e6


def _refuse(key: str, expected: str, got: Any) -> ModelError:
    return ModelError(f"{ADAPTER_CONFIG_NAME}: {key}: expected {expected}, got {got!r}")


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _check_kind(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise _refuse("peft_type", "'LORA'", config.get("peft_type"))
    for key, plain in PLAIN_VALUES.items():
        if key in config and config[key] not in plain:
            raise _refuse(key, f"{plain[0]!r} (the engine has no such adapter)", config[key])
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise _refuse(
            "init_lora_weights", "one that leaves the base as it is (convert it with PEFT)", start
        )


def _patterns(config: Mapping[str, Any], key: str, high: float) -> dict[str, float]:
    """Return `rank_pattern` or `alpha_pattern`, checked."""
    value = config.get(key) or {}
    if not isinstance(value, dict) or len(value) > MAX_PATTERNS:
        raise _refuse(key, "an object of module names", value)
    for pattern, number in value.items():
        if not PATTERN.fullmatch(pattern):
            raise _refuse(key, "module names or their ends", pattern)
        if not _is_number(number, 0, high):
            raise _refuse(f"{key} {pattern}", f"a number up to {high:g}", number)
    return value


def _matches(pattern: str, module: str) -> bool:
    name = pattern.removesuffix("$")
    if name.startswith("^"):
        return module == name[1:]
    return module == name or module.endswith("." + name)


def _of_module(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Return the value of the first pattern that matches, as PEFT does."""
    return next((v for p, v in patterns.items() if _matches(p, module)), default)


def _scales(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """Return the scale of every module; `ranks` are those of its tensors."""
    r, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(r, int) or not _is_number(r, 1, RANK_MAX):
        raise _refuse("r", f"an integer from 1 to {RANK_MAX}", r)
    if not isinstance(alpha, int | float) or not _is_number(alpha, 0, ALPHA_MAX):
        raise _refuse("lora_alpha", f"a number from 0 to {ALPHA_MAX:g}", alpha)
    rank_of = _patterns(config, "rank_pattern", RANK_MAX)
    alpha_of = _patterns(config, "alpha_pattern", ALPHA_MAX)
    scales = {}
    for module, rank in ranks.items():
        want = _of_module(rank_of, module, r)
        if rank != want:
            raise ModelError(f"{ADAPTER_WEIGHTS_NAME}: {module}: expected rank {want}, got {rank}")
        divisor = math.sqrt(rank) if config.get("use_rslora") else rank
        scales[module] = _of_module(alpha_of, module, alpha) / divisor
    return scales


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of every module."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = TENSOR.fullmatch(name)
        if not match:
            raise ModelError(
                f"{ADAPTER_WEIGHTS_NAME}: {name}: expected lora_A and lora_B of linear layers only"
            )
        if len(tensor[1]) != 2 or not all(tensor[1]):
            raise ModelError(
                f"{ADAPTER_WEIGHTS_NAME}: {name}: expected a matrix, got shape {tensor[1]}"
            )
        parts.setdefault(match["module"], {})[match["part"]] = tensor
    for module, both in parts.items():
        if len(both) != 2:
            missing = "B" if "A" in both else "A"
            raise ModelError(f"{ADAPTER_WEIGHTS_NAME}: {module}: lora_{missing} is missing")
    return {module: (both["A"], both["B"]) for module, both in parts.items()}


def _check_targets(config: Mapping[str, Any], modules: Mapping[str, Any]) -> None:
    """Every module that is named must have tensors; a regular expression is PEFT's own business."""
    targets = config.get("target_modules")
    if not isinstance(targets, list):
        return
    for target in targets:
        if not any(module == target or module.endswith(f".{target}") for module in modules):
            raise ModelError(f"{ADAPTER_WEIGHTS_NAME}: target module {target!r}: no tensor")


def adapter_modules(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Modules:
    """Return what an adapter adds, by module name.

    Raises:
        ModelError: it computes something else than the sum above, or config and tensors disagree.
    """
    _check_kind(config)
    pairs = _pairs(tensors)
    if not pairs:
        raise ModelError(f"{ADAPTER_WEIGHTS_NAME}: expected lora_A and lora_B tensors, got none")
    _check_targets(config, pairs)
    scales = _scales(config, {module: a[1][0] for module, (a, _) in pairs.items()})
    return {module: (scales[module], a, b) for module, (a, b) in pairs.items()}


def map_adapter(path: Path, config: Mapping[str, Any]) -> Modules:
    """Map the weights beside `config` in the directory `path`.

    Raises:
        ModelError: as `adapter_modules`, or the file is no sound safetensors file.
    """
    file = SafetensorsFile(path / ADAPTER_WEIGHTS_NAME)
    return adapter_modules(config, {name: file.tensor(name) for name in file.infos})
