"""Trits as the bytes of GGUF tensors, losing none of them.

llama.cpp's own quantiser gives TQ1_0 and TQ2_0 only rows of a multiple of 256 and everything else
Q4_0, in blocks of 32 (src/llama-quant.cpp).  So do we; but a block of Q4_0 is written here as codes
7, 8, 9 and the scale itself, which is exact, where a quantiser of floats would make -7/8 of every
-1.  Rows that are no multiple of 32 are F16.

IQ2_BN is ik_llama.cpp's: blocks of 64 behind one float32 scale a row, which keeps the scale too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert.checkpoint import TritMatrix
from edgeagent.convert.gguf_types import TERNARY_BLOCKS, encode_blocks
from edgeagent.errors import ModelError

F32, F16, Q4_0, TQ1_0, TQ2_0, IQ2_BN = 0, 1, 2, 34, 35, 135
Q4_BLOCK = 32  # of ggml: trits that share a float16 scale
_NAMES = {TQ1_0: "TQ1_0", TQ2_0: "TQ2_0", IQ2_BN: "IQ2_BN"}
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
        wanted: TQ1_0, TQ2_0 or IQ2_BN.
    """
    out, width = shape
    run = width // groups
    block = TERNARY_BLOCKS[_NAMES[wanted]]
    if run % block.weights == 0 and (groups == 1 or not block.row_scale):
        n_bytes = block.row_head + width // block.weights * block.n_bytes
        return Packing(wanted, width if block.row_scale else block.weights, out * n_bytes)
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
    if packing.kind == IQ2_BN:
        return encode_blocks("IQ2_BN", matrix.trits, matrix.scales.T)
    scales = np.broadcast_to(half_scales(matrix.scales, name), (groups, out)).T
    if packing.kind == F16:
        runs = matrix.trits.reshape(out, groups, width // groups)
        return (runs * scales[:, :, None]).astype(np.float16).reshape(out, width)
    each = np.repeat(scales, width // packing.block // groups, axis=1)
    if packing.kind == Q4_0:
        packed = q4_0(matrix.trits.reshape(out, -1, Q4_BLOCK))
        d = np.ascontiguousarray(each).view(np.uint8).reshape(out, -1, 2)
        return np.concatenate((d, packed), axis=-1).reshape(out, -1)
    return encode_blocks(_NAMES[packing.kind], matrix.trits, each.astype(np.float32))
