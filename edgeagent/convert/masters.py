"""A Hugging Face checkpoint of float masters in, our packed model directory out.

Masters are what training saves: float weights that the model ternarises in every forward pass
(`linear_class: autobitlinear`, `quantization_mode: online`).  Here that is done once.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert.head import make_scan, pays
from edgeagent.convert.pack import choose_layout, pack_plane, ternarise_absmean
from edgeagent.errors import ModelError
from edgeagent.model.files import (
    CONFIG_NAME,
    INDEX_NAME,
    QUANT_METHOD,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    read_json,
)
from edgeagent.model.safetensors import SafetensorsFile, write_safetensors

ARCHITECTURES = ("BitNetForCausalLM", "BitnetForCausalLM", "LlamaForCausalLM")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_HEADS = ("model.embed_tokens.weight", "lm_head.weight")

Tensor = tuple[str, str, tuple[int, ...], bytes]


def _as_float32(dtype: str, shape: tuple[int, ...], data: memoryview) -> NDArray[np.float32]:
    if dtype == "BF16":
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    if dtype not in ("F32", "F16"):
        raise ModelError(f"expected float masters (F32, F16, BF16), got {dtype}")
    kind = "<f4" if dtype == "F32" else "<f2"
    return np.frombuffer(data, kind).astype(np.float32).reshape(shape)


def _pack(name: str, weights: NDArray[np.float32], relu2: bool, layout: int) -> Iterator[Tensor]:
    if name.endswith(tuple(f"{p}.weight" for p in PROJECTIONS)):
        trits, scale = ternarise_absmean(weights)
        packed = pack_plane(trits, name.split(".")[-2], relu2=relu2, layout=layout)
        yield name, "U8", packed.shape, packed.tobytes()
        yield f"{name}_scale", "F32", (1,), scale.tobytes()
    elif name in _HEADS:
        yield name, "F16", weights.shape, weights.astype("<f2").tobytes()
    else:
        yield name, "F32", weights.shape, weights.astype("<f4").tobytes()


def _scan(tensors: list[Tensor]) -> list[Tensor]:
    """Return the planes of the two-stage head, for a head that is large enough to want them."""
    heads = {name: (shape, data) for name, _, shape, data in tensors if name in _HEADS}
    shape, data = heads.get("lm_head.weight") or heads.get("model.embed_tokens.weight") or ((), b"")
    if len(shape) != 2 or not pays(*shape):
        return []
    return make_scan(np.frombuffer(data, "<f2").reshape(shape)).tensors()


def _shard_of(name: str) -> int:
    """Shard 0 holds what belongs to no layer; then one a layer."""
    parts = name.split(".")
    return int(parts[2]) + 1 if name.startswith("model.layers.") else 0


def _source_tensors(source: Path) -> Iterator[tuple[str, tuple[str, tuple[int, ...], memoryview]]]:
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{source}: expected *.safetensors, found none")
    for path in files:
        file = SafetensorsFile(path)
        for name in file.infos:
            yield name, file.tensor(name)


def _check_source(config: Mapping[str, Any], source: Path) -> None:
    architectures = config.get("architectures") or [None]
    if architectures[0] not in ARCHITECTURES:
        raise ModelError(f"{source}: expected one of {ARCHITECTURES}, got {architectures[0]!r}")
    quantization = config.get("quantization_config") or {}
    if quantization.get("quantization_mode", "online") != "online":
        raise ModelError(f"{source}: expected float masters, this checkpoint is already packed")


def _count_trits(source: Path) -> int:
    """Weights of all projections."""
    return sum(
        math.prod(info.shape)
        for path in source.glob("*.safetensors")
        for name, info in SafetensorsFile(path).infos.items()
        if name.endswith(tuple(f"{p}.weight" for p in PROJECTIONS))
    )


def convert_masters(source: Path, target: Path, *, layout: int | None = None) -> None:
    """Convert the checkpoint in `source` into the new directory `target` (not yet sealed).

    Args:
        source: the checkpoint.
        target: the new directory.
        layout: 1 (2 bit) or 2 (base 3); None chooses by size.

    Raises:
        ModelError: `source` is not a checkpoint of float masters of a family we know.
        FileExistsError: `target` exists.
    """
    config = read_json(source / CONFIG_NAME)
    _check_source(config, source)
    relu2 = config.get("hidden_act") == "relu2"
    layout = layout or choose_layout(_count_trits(source))
    shards: dict[int, list[Tensor]] = {}
    for name, (dtype, shape, data) in _source_tensors(source):
        shards.setdefault(_shard_of(name), []).extend(
            _pack(name, _as_float32(dtype, shape, data), relu2, layout)
        )
    shards.get(0, []).extend(_scan(shards.get(0, [])))
    target.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for shard, tensors in sorted(shards.items()):
        file_name = f"model-{shard + 1:05d}-of-{len(shards):05d}.safetensors"
        with (target / file_name).open("wb") as out:
            write_safetensors(out, tensors, {"format": "edgeagent", "layout": str(layout)})
        weight_map |= {name: file_name for name, *_ in tensors}
    config["quantization_config"] = {"quant_method": QUANT_METHOD, "layout": layout}
    _write_json(target / CONFIG_NAME, config)
    _write_json(
        target / INDEX_NAME, {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
    )
    for name in (TOKENIZER_NAME, TOKENIZER_CONFIG_NAME):
        shutil.copyfile(source / name, target / name)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
