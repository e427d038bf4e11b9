"""Trits as the bytes of GGUF tensors, losing none of them.

llama.cpp's own quantiser gives TQ1_0 and TQ2_0 only rows of a multiple of 256 and everything else
Q4_0, in blocks of 32 (src/llama-quant.cpp).  So do we; but a block of Q4_0 is written here as codes
7, 8, 9 and the scale itself, which is exact, where a quantiser of floats would make -7/8 of every
-1.  Rows that are no multiple of 32 are F16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert.checkpoint import TritMatrix
from edgeagent.convert.gguf_types import TERNARY_BLOCKS, encode_blocks
from edgeagent.errors import ModelError

F32, F16, Q4_0, TQ1_0, TQ2_0 = 0, 1, 2, 34, 35
#: Of ggml: trits that share a float16 scale.
TQ_BLOCK, Q4_BLOCK = 256, 32
_TQ_NAMES = {TQ1_0: "TQ1_0", TQ2_0: "TQ2_0"}
_Q4_SIZE = 18
#: Of a scale to float16 and back: 2^-11 is rounding; more means that it is too small to be kept.
MAX_SCALE_ERROR = 2.0**-10

Trits = NDArray[np.int8]
Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]


def q4_0(trits: Trits) -> Bytes:
    """Pack (..., 32) trits to (..., 16): the first half in low nibbles, 8 is zero."""
    codes = (trits + 8).astype(np.uint8)
    return codes[..., :16] | codes[..., 16:] << np.uint8(4)


@dataclass(frozen=True, slots=True)
class Packing:
    """How one matrix is stored."""

    kind: int
    block: int  # trits that share a scale; 1: every value is its own float16
    n_bytes: int


def choose(shape: tuple[int, int], groups: int, wanted: int) -> Packing:
    """Return the packing for (out, in) trits with `groups` scales a row.

    Args:
        shape: (out, in).
        groups: equal runs of inputs that have a scale of their own.
        wanted: TQ1_0 or TQ2_0.
    """
    out, width = shape
    run = width // groups
    n_bytes = TERNARY_BLOCKS[_TQ_NAMES[wanted]].n_bytes
    if run % TQ_BLOCK == 0:
        return Packing(wanted, TQ_BLOCK, out * (width // TQ_BLOCK) * n_bytes)
    if run % Q4_BLOCK == 0:
        return Packing(Q4_0, Q4_BLOCK, out * (width // Q4_BLOCK) * _Q4_SIZE)
    return Packing(F16, 1, out * width * 2)


def half_scales(scales: NDArray[np.float32], name: str) -> Halves:
    """Round scales to float16.

    Raises:
        ModelError: one of them is too large or too small for it.
    """
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
    left = np.abs(halves.astype(np.float64) - scales)
    if not (np.isfinite(halves).all() and (left <= np.abs(scales) * MAX_SCALE_ERROR).all()):
        raise ModelError(
            f"{name}: expected scales from 6e-5 to 65504, which is what GGUF's float16 holds, "
            f"got {scales.min():g} to {scales.max():g}"
        )
    return halves


def encode(matrix: TritMatrix, packing: Packing, name: str) -> NDArray[np.uint8] | Halves:
    """Encode a matrix: (out, bytes) uint8, or (out, in) float16.

    Raises:
        ModelError: its scales do not fit float16.
    """
    out, width = matrix.trits.shape
    groups = matrix.scales.shape[0]
    scales = np.broadcast_to(half_scales(matrix.scales, name), (groups, out)).T
    if packing.kind == F16:
        runs = matrix.trits.reshape(out, groups, width // groups)
        return (runs * scales[:, :, None]).astype(np.float16).reshape(out, width)
    each = np.repeat(scales, width // packing.block // groups, axis=1)
    if packing.kind == Q4_0:
        packed = q4_0(matrix.trits.reshape(out, -1, Q4_BLOCK))
        d = np.ascontiguousarray(each).view(np.uint8).reshape(out, -1, 2)
        return np.concatenate((d, packed), axis=-1).reshape(out, -1)
    return encode_blocks(_TQ_NAMES[packing.kind], matrix.trits, each.astype(np.float32))
