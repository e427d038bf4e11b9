"""Our own model directory as a checkpoint: every layout and every orientation back to trits."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent import _core
from edgeagent.convert.checkpoint import TokenizerFiles, TritMatrix
from edgeagent.convert.head import PREFIX as SCAN_PREFIX
from edgeagent.convert.pack import (
    BLOCK3_TRITS,
    BLOCK_TRITS,
    PANEL_OUTPUTS,
    TILE_CHANNELS,
    TILE_OUTPUTS,
    unpack,
)
from edgeagent.convert.tokenizers import from_hf_dir
from edgeagent.errors import ModelError
from edgeagent.model.files import ModelFiles, open_model

SCALE_SUFFIX = "_scale"
_FLOATS = {"F32": "<f4", "F16": "<f2"}


def projection_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return (out, in) of the seven projections of a layer.

    Raises:
        ModelError: config.json lacks a number.
    """
    try:
        hidden, ffn = int(config["hidden_size"]), int(config["intermediate_size"])
        heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or hidden // heads)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as err:
        raise ModelError(f"config.json: a size is missing or no number: {err}") from err
    q, kv = heads * head_dim, kv_heads * head_dim
    return {
        "q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden),
        "o_proj": (hidden, q),
        "gate_proj": (ffn, hidden), "up_proj": (ffn, hidden), "down_proj": (hidden, ffn),
    }  # fmt: skip


def packed_shapes(out: int, width: int, layout: int) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that a plane of (out, width) trits may have in a layout."""
    if layout == 1:
        return (
            (out, -(-width // BLOCK_TRITS) * 32),
            (-(-out // PANEL_OUTPUTS), width, 64),
        )
    return (
        (out, -(-width // BLOCK3_TRITS) * 64),
        (width, -(-out // BLOCK3_TRITS), 64),
        (-(-out // TILE_OUTPUTS), -(-width // TILE_CHANNELS), 16, 4),
    )


def _let_go(data: memoryview) -> None:
    """Give the pages of a mapped file back: who reads a model through need not hold it.

    They stay in the page cache, and come back when they are read again.
    """
    if isinstance(data.obj, mmap.mmap):
        data.obj.madvise(mmap.MADV_DONTNEED)


class OurCheckpoint:
    """A verified model directory; see `checkpoint.Checkpoint`."""

    def __init__(self, path: Path, files: ModelFiles) -> None:
        """Take the opened files of `path`.

        Raises:
            ModelError: a plane has no shape that its matrix can have.
        """
        self._path, self._tensors = path, files.tensors
        quantization = files.config["quantization_config"]
        self._layout = int(quantization["layout"])
        self.config: Mapping[str, Any] = {
            key: value for key, value in files.config.items() if key != "quantization_config"
        }
        self.activation_bits = int(quantization.get("activation_bits", 8))
        self._matrices = projection_shapes(self.config)
        self._shapes = {name: self._shape(name) for name in self._names()}

    def _names(self) -> list[str]:
        return [
            name
            for name in self._tensors
            if not name.startswith(SCAN_PREFIX)
            and not (name.endswith(SCALE_SUFFIX) and name[: -len(SCALE_SUFFIX)] in self._tensors)
        ]

    def _shape(self, name: str) -> tuple[int, ...]:
        dtype, stored, _ = self._tensors[name]
        if dtype != "U8":
            return stored
        shape = self._matrices.get(name.split(".")[-2])
        if shape is None:
            raise ModelError(f"{self._path}: {name}: U8 is for projections")
        if stored not in packed_shapes(*shape, self._layout):
            raise ModelError(
                f"{self._path}: {name}: expected one of "
                f"{packed_shapes(*shape, self._layout)}, got {stored}"
            )
        return shape

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name every tensor and its logical shape."""
        return self._shapes

    def is_ternary(self, name: str) -> bool:
        """Say whether `trits` answers for this tensor."""
        return self._tensors[name][0] == "U8"

    def trits(self, name: str) -> TritMatrix:
        """Unpack a whole matrix.

        Raises:
            ModelError: a byte is no trits, or the scales do not fit the matrix.
        """
        _, stored, data = self._tensors[name]
        try:
            _core.check_trits(data, self._layout)
        except ValueError as err:
            raise ModelError(f"{self._path}: {name}: {err}") from err
        out, width = self._shapes[name]
        plane = np.frombuffer(data, np.uint8).reshape(stored)
        trits = unpack(plane, out, width, self._layout)
        _let_go(data)
        return TritMatrix(trits, self._scales(name, out, width))

    def scale_groups(self, name: str) -> int:
        """Return the scales a row of a ternary matrix, without reading the matrix."""
        out, width = self._shapes[name]
        return int(self._scales(name, out, width).shape[0])

    def _scales(self, name: str, out: int, width: int) -> NDArray[np.float32]:
        dtype, shape, data = self._tensors.get(name + SCALE_SUFFIX, ("", (), memoryview(b"")))
        fits = shape == (1,) or (
            len(shape) == 2 and shape[1] == out and shape[0] > 0 and width % shape[0] == 0
        )
        if dtype != "F32" or not fits:
            raise ModelError(
                f"{self._path}: {name}{SCALE_SUFFIX}: expected F32 [1] or [groups, {out}], "
                f"got {dtype or 'nothing'} {list(shape)}"
            )
        scales = np.frombuffer(data, "<f4").astype(np.float32)
        return scales.reshape((1, 1) if shape == (1,) else shape)

    def floats(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Read rows as float32.

        Raises:
            ModelError: the tensor has no numbers that we know.
        """
        dtype, stored, data = self._tensors[name]
        if dtype == "U8":
            return dequantise(self.trits(name))[begin:end]
        if dtype not in _FLOATS:
            raise ModelError(f"{self._path}: {name}: expected F32 or F16, got {dtype}")
        values = np.frombuffer(data, _FLOATS[dtype]).reshape(stored)
        return values[begin:end].astype(np.float32)

    def tokenizer(self) -> TokenizerFiles | None:
        """Read tokenizer.json and tokenizer_config.json.

        Raises:
            ModelError: one of them is unsound.
        """
        return from_hf_dir(self._path, ours=True)


def dequantise(matrix: TritMatrix) -> NDArray[np.float32]:
    """Return the float32 weights (out, in) of a ternary matrix."""
    out, width = matrix.trits.shape
    groups = matrix.scales.shape[0]
    scales = np.broadcast_to(matrix.scales, (groups, out)).T[:, :, None]
    values = matrix.trits.reshape(out, groups, width // groups) * scales
    return values.reshape(out, width).astype(np.float32)


def open_ours(path: Path) -> OurCheckpoint:
    """Verify a model directory against its release and open it.

    Raises:
        ModelError: anything is wrong with any file of it.
    """
    return OurCheckpoint(path, open_model(path))
