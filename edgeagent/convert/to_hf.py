"""A checkpoint out as a Hugging Face directory that transformers loads, packed where it can be.

| model | class there | `quantization_config` | a scale is stored as |
|---|---|---|---|
| with sub-norms | `BitNetForCausalLM` | `autobitlinear`, offline | mean of abs(w), multiplied |
| Llama, Qwen3 | as it was | `bitlinear` (the default) | 1 / mean of abs(w), divided by |
| activations in float | as it was | none: weights are trits times scale, in float32 | |

Everything that is not packed is float32: transformers runs packed `autobitlinear` layers only when
all other tensors have the type it computes in, and nothing is rounded on the way.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert.checkpoint import Checkpoint, TokenizerFiles
from edgeagent.convert.gguf_types import encode_hf
from edgeagent.errors import AdapterError, ConfigError, ModelError
from edgeagent.model.files import CONFIG_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME
from edgeagent.model.safetensors import DATA_ALIGNMENT

WEIGHTS_NAME = "model.safetensors"
GENERATION_NAME = "generation_config.json"
_MODEL_TYPES = {
    "BitNetForCausalLM": "bitnet",
    "LlamaForCausalLM": "llama",
    "Qwen3ForCausalLM": "qwen3",
}
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
#: Float32 values that are converted at a time: 64 MiB.
CHUNK_VALUES = 1 << 24

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Planned:
    """One tensor of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Iterator[NDArray[Any]]]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * (1 if self.dtype == "U8" else 4)


class _Plan:
    """What becomes of every tensor of a source."""

    def __init__(self, source: Checkpoint) -> None:
        self._source = source
        self.family = _family(source)
        self.packed = source.activation_bits == 8
        self._reciprocal = self.family != "BitNetForCausalLM"

    def tensors(self) -> list[_Planned]:
        """Return the tensors, packed planes first, so that all that follow are aligned."""
        planned: list[_Planned] = []
        for name in sorted(self._source.shapes()):
            planned += self._of(name)
        return sorted(planned, key=lambda tensor: tensor.dtype, reverse=True)

    def _of(self, name: str) -> Iterator[_Planned]:
        shape = self._source.shapes()[name]
        is_matrix = name.endswith("_proj.weight")
        if is_matrix and not self._source.is_ternary(name):
            raise ModelError(f"{name}: expected trits, got floats: ternarise the model first")
        if not (is_matrix and self.packed):
            yield _Planned(name, "F32", shape, lambda: self._floats(name))
            return
        if shape[0] % 4:
            raise ModelError(f"{name}: transformers packs a multiple of 4 rows, not {shape[0]}")
        yield _Planned(name, "U8", (shape[0] // 4, shape[1]), lambda: self._trits(name))
        yield _Planned(f"{name}_scale", "F32", (1,), lambda: self._scale(name))

    def _floats(self, name: str) -> Iterator[NDArray[np.float32]]:
        shape = self._source.shapes()[name]
        step = shape[0] if len(shape) == 1 or self._source.is_ternary(name) else self._rows(shape)
        for begin in range(0, shape[0], step):
            yield self._source.floats(name, begin, min(begin + step, shape[0])).astype("<f4")

    @staticmethod
    def _rows(shape: tuple[int, ...]) -> int:
        return max(1, CHUNK_VALUES // shape[1])

    def _trits(self, name: str) -> Iterator[NDArray[np.uint8]]:
        yield encode_hf(self._source.trits(name).trits)

    def _scale(self, name: str) -> Iterator[NDArray[np.float32]]:
        scales = self._source.trits(name).scales
        if scales.size != 1:
            raise ModelError(
                f"{name}: transformers packs one scale a matrix, this one has {scales.size}"
            )
        scale = scales.reshape(1).astype("<f4")
        if self._reciprocal and not scale[0] > 0:
            raise ModelError(f"{name}: expected a scale above 0, its reciprocal is stored")
        yield (np.float32(1) / scale).astype("<f4") if self._reciprocal else scale


def _family(source: Checkpoint) -> str:
    """Return the class that transformers has for a source.

    Raises:
        ModelError: it has none.
    """
    names = source.shapes()
    family = str((source.config.get("architectures") or [None])[0])
    if any(name.endswith("mlp.ffn_sub_norm.weight") for name in names):
        family = "BitNetForCausalLM"  # BitnetForCausalLM of the 2024 models is not in transformers
        norm = next(n for n in names if n.endswith("self_attn.attn_sub_norm.weight"))
        if names[norm] != (source.config["hidden_size"],):
            raise ModelError("BitNetForCausalLM of transformers: heads must add up to hidden_size")
        if source.activation_bits != 8:
            raise ModelError("BitNetForCausalLM of transformers quantises activations to 8 bits")
    if family not in _MODEL_TYPES:
        raise ModelError(
            f"transformers: expected one of {', '.join(_MODEL_TYPES)}, got {family}: "
            "it has no class of its own for this model"
        )
    return family


def _config(source: Checkpoint, plan: _Plan, files: TokenizerFiles | None) -> dict[str, Any]:
    config = dict(source.config)
    config |= {
        "architectures": [plan.family],
        "model_type": _MODEL_TYPES[plan.family],
        "torch_dtype": "float32",
    }
    if files and files.stop_ids:
        config["eos_token_id"] = list(files.stop_ids)
    if plan.packed:
        quantization: dict[str, Any] = {"quant_method": "bitnet"}
        if plan.family == "BitNetForCausalLM":
            quantization |= {"linear_class": "autobitlinear", "quantization_mode": "offline"}
        config["quantization_config"] = quantization | {"modules_to_not_convert": ["lm_head"]}
    return config


def _write_tensors(out: BinaryIO, tensors: list[_Planned], progress: Progress | None) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.n_bytes],
        }  # fmt: skip
        at += tensor.n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    out.write(struct.pack("<Q", len(text)) + text)
    for i, tensor in enumerate(tensors):
        begin = out.tell()
        for part in tensor.read():
            out.write(np.ascontiguousarray(part).data.cast("B"))
        if out.tell() - begin != tensor.n_bytes:
            raise AssertionError(f"{tensor.name}: planned {tensor.n_bytes} bytes")
        if progress is not None:
            progress(i + 1, len(tensors))


def _json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=path.name == CONFIG_NAME)
    path.write_text(text + "\n", encoding="utf-8")


def _fill(
    part: Path, source: Checkpoint, plan: _Plan, files: TokenizerFiles | None, say: Progress | None
) -> None:
    tensors = plan.tensors()
    with (part / WEIGHTS_NAME).open("wb") as out:
        _write_tensors(out, tensors, say)
    config = _config(source, plan, files)
    _json(part / CONFIG_NAME, config)
    special = {key: value for key, value in config.items() if key in _SPECIAL_IDS}
    _json(part / GENERATION_NAME, special)
    if files is not None:
        _json(part / TOKENIZER_NAME, files.tokenizer)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **files.config}
        _json(part / TOKENIZER_CONFIG_NAME, settings)
    for path in (*part.iterdir(), part):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def export_hf(
    source: Checkpoint,
    out: Path,
    *,
    with_tokenizer: bool = True,
    progress: Progress | None = None,
) -> str:
    """Write `source` as the new directory `out`; return the class that loads it.

    Args:
        source: a checkpoint whose projections are ternary.
        out: the directory; it is there whole or not at all.
        with_tokenizer: write the tokenizer too, as people want it.
        progress: called with the tensors written and their number.

    Raises:
        ConfigError: `out` exists.
        ModelError: transformers has no model like this one.
        AdapterError: the disk refuses.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists: name a new directory")
    plan = _Plan(source)
    files = source.tokenizer() if with_tokenizer else None
    part = out.with_name(out.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a run that was cut off
        part.mkdir(parents=True)
        _fill(part, source, plan, files, progress)
        part.rename(out)
    except OSError as err:
        raise AdapterError(f"{out}: cannot be written: {err.strerror}") from err
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return plan.family
