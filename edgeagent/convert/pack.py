"""Float weights to trits, and trits to packed layout 1 (docs/formats.md, section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK_TRITS = 128
PANEL_OUTPUTS = 256
#: Floor of a scale, as in the reference implementations of BitNet b1.58.
MIN_SCALE = 1e-5

Trits = NDArray[np.int8]


def ternarise_absmean(weights: NDArray[np.float32]) -> tuple[Trits, np.float32]:
    """Return trits and their scale: s = mean|w|, t = clamp(round_half_even(w / s), -1, 1).

    Source: BitNet b1.58 (arXiv 2402.17764), equations 1 to 3; one scale a matrix.
    """
    scale = np.float32(max(np.abs(weights).mean(dtype=np.float64), MIN_SCALE))
    return np.clip(np.rint(weights / scale), -1, 1).astype(np.int8), scale


def _pack_blocks(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack codes (..., 128 n) into bytes (..., 32 n)."""
    quarters = codes.reshape(*codes.shape[:-1], -1, 4, 32)
    packed = np.zeros((*quarters.shape[:-2], 32), np.uint8)
    for i in range(4):
        packed |= quarters[..., i, :] << np.uint8(2 * i)
    return packed.reshape(*codes.shape[:-1], -1)


def pack_output_major(trits: Trits) -> NDArray[np.uint8]:
    """Pack (out, in) trits row by row: `[out, ceil(in / 128) * 32]`."""
    padded = np.pad(trits, ((0, 0), (0, -trits.shape[1] % BLOCK_TRITS)))
    return _pack_blocks((padded + 1).astype(np.uint8))


def pack_input_major(trits: Trits) -> NDArray[np.uint8]:
    """Pack (out, in) trits in panels of 256 outputs: `[ceil(out / 256), in, 64]`."""
    padded = np.pad(trits, ((0, -trits.shape[0] % PANEL_OUTPUTS), (0, 0)))
    panels = padded.reshape(-1, PANEL_OUTPUTS, trits.shape[1]).transpose(0, 2, 1)
    return _pack_blocks((panels + 1).astype(np.uint8))


def _unpack_blocks(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    blocks = packed.reshape(*packed.shape[:-1], -1, 32)
    codes = np.stack([(blocks >> (2 * i)) & 3 for i in range(4)], axis=-2)
    return codes.reshape(*packed.shape[:-1], -1)


def unpack(packed: NDArray[np.uint8], rows: int, cols: int) -> Trits:
    """Return the (rows, cols) trits of a packed matrix of either orientation."""
    codes = _unpack_blocks(packed)
    if packed.ndim == 3:
        codes = codes.transpose(0, 2, 1).reshape(-1, packed.shape[1])
    return (codes[:rows, :cols].astype(np.int8) - 1).astype(np.int8)
