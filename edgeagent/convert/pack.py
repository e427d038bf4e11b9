"""Float weights to trits, and trits to packed planes (docs/formats.md, section 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_TRITS = 128
PANEL_OUTPUTS = 256
BLOCK3_TRITS = 320
TILE_OUTPUTS = 80
TILE_CHANNELS = 4
#: Of the layouts to compare with, section 3b.
LANES, CHANNELS = 16, 4
INT8_ZERO = 128
#: More trits than this do not fit the caches of a board: then fewer bytes beat fewer instructions.
BASE3_MIN_TRITS = 100_000_000
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


def choose_layout(n_trits: int) -> int:
    """Return the layout for a model of so many trits: 1 (2 bit) or 2 (base 3)."""
    return 2 if n_trits > BASE3_MIN_TRITS else 1


def pack_plane(trits: Trits, projection: str, *, relu2: bool, layout: int) -> NDArray[np.uint8]:
    """Pack the (out, in) trits of `up_proj`, `down_proj`, ... in the orientation that serves it.

    Where gates close, rows of `up` are skipped; zero activations skip lines and channels of `down`.
    """
    if relu2 and projection == "up_proj":
        return pack_output_major(trits) if layout == 1 else pack_rows3(trits)
    if layout == 1:
        return pack_input_major(trits)
    if relu2 and projection == "down_proj":
        return pack_channels3(trits)
    return pack_tiles3(trits)


def pack_output_major(trits: Trits) -> NDArray[np.uint8]:
    """Pack (out, in) trits row by row: `[out, ceil(in / 128) * 32]`."""
    padded = np.pad(trits, ((0, 0), (0, -trits.shape[1] % BLOCK_TRITS)))
    return _pack_blocks((padded + 1).astype(np.uint8))


def pack_input_major(trits: Trits) -> NDArray[np.uint8]:
    """Pack (out, in) trits in panels of 256 outputs: `[ceil(out / 256), in, 64]`."""
    padded = np.pad(trits, ((0, -trits.shape[0] % PANEL_OUTPUTS), (0, 0)))
    panels = padded.reshape(-1, PANEL_OUTPUTS, trits.shape[1]).transpose(0, 2, 1)
    return _pack_blocks((panels + 1).astype(np.uint8))


def _codes3(trits: Trits, rows: int, cols: int) -> NDArray[np.uint8]:
    padded = np.pad(trits, ((0, -trits.shape[0] % rows), (0, -trits.shape[1] % cols)))
    return (padded + 1).astype(np.uint8)


def _join3(codes: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    """Five codes along `axis` to one byte: c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4."""
    fields = np.moveaxis(codes, axis, 0)
    packed = np.zeros(fields.shape[1:], np.uint8)
    for field in fields[::-1]:
        packed *= np.uint8(3)
        packed += field
    return packed


def pack_rows3(trits: Trits) -> NDArray[np.uint8]:
    """Pack (out, in) trits in base 3, row by row: `[out, ceil(in / 320) * 64]`."""
    codes = _codes3(trits, 1, BLOCK3_TRITS)
    return _join3(codes.reshape(len(codes), -1, 5, 64), 2).reshape(len(codes), -1)


def pack_channels3(trits: Trits) -> NDArray[np.uint8]:
    """Pack (out, in) trits in base 3, channel by channel: `[in, ceil(out / 320), 64]`."""
    rows = pack_rows3(np.ascontiguousarray(trits.T))
    return rows.reshape(len(rows), -1, 64)


def pack_tiles3(trits: Trits) -> NDArray[np.uint8]:
    """Pack (out, in) trits in base 3, in tiles: `[ceil(out / 80), ceil(in / 4), 16, 4]`."""
    codes = _codes3(trits, TILE_OUTPUTS, TILE_CHANNELS)
    tiles = codes.reshape(-1, 5, 16, codes.shape[1] // TILE_CHANNELS, TILE_CHANNELS)
    return np.ascontiguousarray(_join3(tiles, 1).transpose(0, 2, 1, 3))


def _in_tiles(weights: NDArray[Any], fields: int) -> NDArray[Any]:
    """Return (out, in) as (panels, quads, fields, 16, 4), padded with zeros."""
    n_out, n_in = weights.shape
    padded = np.pad(weights, ((0, -n_out % (LANES * fields)), (0, -n_in % CHANNELS)))
    tiles = padded.reshape(-1, fields, LANES, padded.shape[1] // CHANNELS, CHANNELS)
    return tiles.transpose(0, 3, 1, 2, 4)


def pack_binary(signs: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack (out, in) signs, true for +1: bit f of byte [p, q, j, c] is output 128 p + 16 f + j."""
    return np.packbits(_in_tiles(signs, 8), axis=2, bitorder="little")[:, :, 0]


def pack_int8(weights: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack (out, in) weights: byte [p, q, j, c] is output 16 p + j, plus 128."""
    return _in_tiles(weights, 1)[:, :, 0].view(np.uint8) ^ np.uint8(INT8_ZERO)


def _split3(packed: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    codes, rest = [], packed
    for _ in range(5):
        codes.append(rest % np.uint8(3))
        rest = rest // np.uint8(3)
    return np.stack(codes, axis=axis)


def _unpack3(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the (rows, cols) codes of a base-3 plane, padding included."""
    if packed.ndim == 4:
        tiles = _split3(packed.transpose(0, 2, 1, 3), 1)
        return tiles.reshape(tiles.shape[0] * TILE_OUTPUTS, -1)
    blocks = _split3(packed.reshape(len(packed), -1, 64), 2).reshape(len(packed), -1)
    return blocks.T if packed.ndim == 3 else blocks


def _unpack_blocks(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    blocks = packed.reshape(*packed.shape[:-1], -1, 32)
    codes = np.stack([(blocks >> (2 * i)) & 3 for i in range(4)], axis=-2)
    return codes.reshape(*packed.shape[:-1], -1)


def unpack(packed: NDArray[np.uint8], rows: int, cols: int, layout: int = 1) -> Trits:
    """Return the (rows, cols) trits of a packed matrix of any orientation."""
    if layout == 2:
        codes = _unpack3(packed)
    else:
        codes = _unpack_blocks(packed)
        if packed.ndim == 3:
            codes = codes.transpose(0, 2, 1).reshape(-1, packed.shape[1])
    return (codes[:rows, :cols].astype(np.int8) - 1).astype(np.int8)
