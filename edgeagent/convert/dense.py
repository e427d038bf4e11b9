"""The same model with one, eight or sixteen bits a weight (docs/formats.md, section 3b).

Layouts 3 to 5 exist to compare with: what does a ternary model save, and what does it cost?  The
activations are int8 as everywhere, and there is one scale a matrix:

    binary   w = s * sign(w), s = mean|w|: the scale of least squares (XNOR-Net, arXiv 1603.05279)
    int8     w = s * round(w / s), s = max|w| / 127
    f16      the weight itself, s = 1
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert.checkpoint import Checkpoint
from edgeagent.convert.gguf import dequantise
from edgeagent.convert.pack import MIN_SCALE, pack_binary, pack_int8
from edgeagent.errors import ModelError

#: What `--quantization` says, and its layout; ternary is 1 or 2, by size.
LAYOUT_OF = {"binary": 3, "int8": 4, "f16": 5}
INT8_MAX = 127
HALF_MAX = 65504.0

Floats = NDArray[np.float32]


def quantise(weights: Floats, layout: int) -> tuple[NDArray[Any], np.float32]:
    """Return the plane of a layout from 3 to 5 and its scale.

    Raises:
        ModelError: a weight is not finite, or float16 has no such number.
    """
    largest = float(np.abs(weights).max())
    if not largest <= (HALF_MAX if layout == LAYOUT_OF["f16"] else np.finfo(np.float32).max):
        raise ModelError(f"expected finite weights up to {HALF_MAX:g}, found {largest:g}")
    if layout == LAYOUT_OF["binary"]:
        scale = np.float32(max(np.abs(weights).mean(dtype=np.float64), MIN_SCALE))
        return pack_binary(weights >= 0), scale
    if layout == LAYOUT_OF["int8"]:
        scale = np.float32(largest / INT8_MAX) if largest > 0 else np.float32(MIN_SCALE)
        near = np.clip(np.rint(weights / scale), -INT8_MAX, INT8_MAX)
        return pack_int8(near.astype(np.int8)), scale
    return weights.astype("<f2"), np.float32(1)


def _weights(source: Checkpoint, name: str, layout: int) -> Floats:
    """Return what a matrix multiplies by; of masters that is their trits times the scale."""
    if not source.is_ternary(name):
        return source.floats(name)
    matrix = source.trits(name)
    if layout == LAYOUT_OF["binary"] and not matrix.trits.all():
        raise ModelError("this matrix is ternary: binary has no zero")
    return dequantise(matrix)


def dense_tensors(
    source: Checkpoint, name: str, layout: int
) -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
    """Yield a matrix and its scale as a shard of a layout from 3 to 5 holds them.

    Raises:
        ModelError: as `quantise`, or a matrix with zeros is asked for as binary.
    """
    try:
        plane, scale = quantise(_weights(source, name, layout), layout)
    except ModelError as err:
        raise ModelError(f"{name}: {err}") from err
    dtype = "F16" if layout == LAYOUT_OF["f16"] else "U8"
    yield name, dtype, plane.shape, np.ascontiguousarray(plane).data.cast("B")
    yield f"{name}_scale", "F32", (1,), np.array([scale], "<f4").data.cast("B")
