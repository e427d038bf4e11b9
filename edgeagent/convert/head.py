"""The planes for the two-stage LM head (docs/formats.md, section 3a), made from its float16 rows.

Nothing here is a matter of trust between two programs: the planes may be as bad as they like, and
the engine still gives the exact result, only slower.  What must hold are the bounds of a row: its
norm, and the norms of what the planes leave of it.  They are computed in float64 from the very
float32 scales that are stored, and rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeagent.errors import ModelError

PREFIX = "lm_head.scan."
PANEL_ROWS = 16
GROUP_INPUTS = 32
LEVELS = 32
#: Of 64 bytes: four bits of every code, then the fifth ones.
GROUP_LINES = 5
REFINE_INPUTS = 256
ZERO_LEVEL = 63
SCALE_MAX = 255
#: A head of fewer weights (8 MiB of float16) stays in a cache, where reading it twice costs more.
MIN_WEIGHTS = 4 << 20
#: Rows at once: some 100 MB of float64 at 2560 inputs.
BLOCK_ROWS = 1024
#: Of the largest magnitude of a group: where the outermost level lies.  Trained weights want a
#: smaller one than the largest, evenly spread ones the largest itself.
_SHRINKS = np.linspace(1.06, 0.74, 9, dtype=np.float32)
#: Of the root of the mean square of what codes leave: the step of the refinement (levels +-1, +-3
#: half steps).  0.498 is best for a normal, 0.5 / sqrt(3) * ... for an even distribution.
_REFINE_STEPS = np.linspace(0.36, 0.60, 7, dtype=np.float32)
#: Above the error of a sum of 2^20 squares in float64 (2^-32), below what float32 can tell (2^-23).
_ROUND_UP = 1 + 2.0**-22
#: The engine's proof wants numbers that are 0 or far from float32's smallest.
_LEAST = 2.0**-60
_SAMPLE_ROWS = 128
_LLOYD_STEPS = 10

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class HeadScan:
    """The five tensors; shapes as docs/formats.md has them."""

    codes: Bytes
    scales: Bytes
    levels: Bytes
    refine: Bytes
    rows: Floats

    def tensors(self) -> list[tuple[str, str, tuple[int, ...], bytes]]:
        """Name, dtype, shape and bytes, as a shard holds them."""
        arrays = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return [
            (PREFIX + name, "F32" if name == "rows" else "U8", a.shape, a.tobytes())
            for name, a in arrays.items()
        ]


def pays(vocab: int, hidden: int) -> bool:
    """Tell whether a head of this size is worth its planes."""
    return vocab * hidden >= MIN_WEIGHTS


def _groups(rows: Floats) -> Floats:
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % GROUP_INPUTS)))
    return padded.reshape(rows.shape[0], -1, GROUP_INPUTS)


def fit_levels(head: NDArray[np.float16]) -> Bytes:
    """Return LEVELS levels, symmetric about ZERO_LEVEL, that fit groups scaled to their largest.

    Lloyd's iteration on evenly chosen rows: the error's norm decides how many rows a scan leaves.
    """
    pick = np.linspace(0, head.shape[0] - 1, min(_SAMPLE_ROWS, head.shape[0])).astype(np.int64)
    groups = _groups(head[pick].astype(np.float32)).reshape(-1, GROUP_INPUTS)
    largest = np.abs(groups).max(axis=1)
    groups, largest = groups[largest > 0], largest[largest > 0]
    half = np.linspace(1 / (LEVELS - 1), 1, LEVELS // 2).astype(np.float32)
    for _ in range(_LLOYD_STEPS if len(groups) else 0):
        scale, nearest = _best_scale(np.abs(groups), largest, half)
        weights = np.broadcast_to(scale[:, None] ** 2, groups.shape).ravel()
        mass = np.bincount(nearest.ravel(), weights, len(half))
        share = (np.abs(groups) / scale[:, None]).ravel()
        total = np.bincount(nearest.ravel(), weights * share, len(half))
        half = np.where(mass > 0, total / np.where(mass > 0, mass, 1), half).astype(np.float32)
        half = np.sort(half) / half.max()
    steps = np.rint(half * ZERO_LEVEL)
    return np.concatenate([ZERO_LEVEL - steps[::-1], ZERO_LEVEL + steps]).astype(np.uint8)


def _best_scale(
    magnitudes: Floats, largest: Floats, half: Floats
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the scale of each group that leaves the least, and the nearest levels of `half`."""
    best = np.full(largest.shape, np.inf, np.float32)
    scale = largest.copy()
    nearest = np.zeros(magnitudes.shape, np.int64)
    for shrink in _SHRINKS:
        trial = largest * shrink
        found = np.searchsorted((half[1:] + half[:-1]) / 2, magnitudes / trial[:, None])
        error = ((magnitudes - half[found] * trial[:, None]) ** 2).sum(axis=1)
        better = error < best
        best[better], scale[better], nearest[better] = error[better], trial[better], found[better]
    return scale, nearest


def _code_table(values: Floats) -> Bytes:
    """Return the nearest code of every quarter step from -ZERO_LEVEL to +ZERO_LEVEL."""
    quarters = np.arange(-4 * ZERO_LEVEL, 4 * ZERO_LEVEL + 1) / 4
    return np.searchsorted((values[1:] + values[:-1]) / 2, quarters).astype(np.uint8)


def _nearest(groups: Floats, scale: Floats, values: Floats) -> tuple[Bytes, Floats]:
    """Return the codes of `groups / scale` to a quarter of a step, and what they leave."""
    safe = np.where(scale > 0, scale, np.float32(1))
    quarters = np.rint(groups * (np.float32(4) / safe)) + np.float32(4 * ZERO_LEVEL)
    at = np.clip(quarters, 0, 8 * ZERO_LEVEL).astype(np.uint16)
    codes = _code_table(values)[at]
    return codes, groups - values[codes] * scale


def _quantise(groups: Floats, levels: Bytes) -> tuple[Floats, Bytes, Bytes]:
    """Return the row scales, the group scales and the codes with the least squares left."""
    values = levels.astype(np.float32) - ZERO_LEVEL
    largest = np.abs(groups).max(axis=2)
    span = values[-1] * SCALE_MAX
    row_scale = (largest.max(axis=1) * _SHRINKS[0] / span).astype(np.float32)
    safe = np.where(row_scale > 0, row_scale, np.float32(1))[:, None]
    best = np.full(largest.shape, np.inf, np.float32)
    codes = np.zeros(groups.shape, np.uint8)
    scales = np.zeros(largest.shape, np.uint8)
    for shrink in _SHRINKS:
        step = np.rint(largest * (shrink / values[-1]) / safe)
        trial = np.clip(step, largest > 0, SCALE_MAX).astype(np.uint8)
        found, left = _nearest(groups, (trial * row_scale[:, None])[:, :, None], values)
        error = np.einsum("rgi,rgi->rg", left, left)
        better = error < best
        best[better] = error[better]
        scales[better] = trial[better]
        codes[better] = found[better]
    return row_scale, scales, codes


def _refine(left: NDArray[np.float64]) -> tuple[Floats, Bytes]:
    """Return the row scales and the 2-bit codes of what the first codes leave."""
    rms = np.sqrt((left**2).mean(axis=1)).astype(np.float32)
    best = np.full(rms.shape, np.inf)
    scale = np.zeros(rms.shape, np.float32)
    codes = np.zeros(left.shape, np.uint8)
    for step in _REFINE_STEPS:
        trial = np.where(rms * step > _LEAST, rms * step, 0).astype(np.float32)
        safe = np.where(trial > 0, trial, np.float32(1))[:, None]
        found = np.clip(np.floor(left / safe / 2) + 2, 0, 3).astype(np.uint8)
        error = ((left - (2.0 * found - 3) * trial[:, None]) ** 2).sum(axis=1)
        better = error < best
        best[better] = error[better]
        scale[better] = trial[better]
        codes[better] = found[better]
    return scale, codes


def _round_up(norms: NDArray[np.float64]) -> Floats:
    wide = np.where(norms > 0, np.maximum(norms * _ROUND_UP, _LEAST), 0)
    near = wide.astype(np.float32)
    return np.where(near < wide, np.nextafter(near, np.float32(np.inf)), near).astype(np.float32)


def _pack_codes(codes: Bytes) -> Bytes:
    """Pack codes (16 p, groups, 32) into lines (p, 5 * groups, 64)."""
    panels, groups = len(codes) // PANEL_ROWS, codes.shape[1]
    #: (panel, group, line, half of a line, row, input of four)
    halves = codes.reshape(panels, PANEL_ROWS, groups, 4, 2, 4).transpose(0, 2, 3, 4, 1, 5)
    low = (halves[:, :, :, 0] & 15) | (halves[:, :, :, 1] & 15) << 4
    bits = (halves >> 4).reshape(panels, groups, 8, PANEL_ROWS, 4)
    shifts = np.arange(8, dtype=np.uint8)[:, None, None]
    fifth = np.bitwise_or.reduce(bits << shifts, axis=2, keepdims=True)
    lines = np.concatenate([low, fifth], axis=2).astype(np.uint8)
    return lines.reshape(panels, groups * GROUP_LINES, -1)


def _pack_refine(codes: Bytes) -> Bytes:
    """Pack codes (rows, inputs) into (rows, ceil(inputs / 256) * 64)."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % REFINE_INPUTS)))
    quarters = padded.reshape(codes.shape[0], -1, 4, 64)
    packed = quarters[:, :, 0] | quarters[:, :, 1] << 2
    packed |= quarters[:, :, 2] << 4 | quarters[:, :, 3] << 6
    return packed.astype(np.uint8).reshape(codes.shape[0], -1)


def _block(head: NDArray[np.float16], levels: Bytes) -> tuple[Bytes, Bytes, Bytes, Floats]:
    """Codes, scales and refinement of some rows, and their five numbers each."""
    hidden = head.shape[1]
    rows = head.astype(np.float32)
    if not np.isfinite(rows).all():
        raise ModelError("lm_head: expected finite weights, found infinity or NaN")
    groups = _groups(rows)
    row_scale, scales, codes = _quantise(groups, levels)
    values = levels.astype(np.float64) - ZERO_LEVEL
    steps = row_scale.astype(np.float64)[:, None] * scales
    coded = (values[codes] * steps[:, :, None]).reshape(len(rows), -1)[:, :hidden]
    left = rows - coded
    refine_scale, refine = _refine(left)
    rest = left - (2.0 * refine - 3) * refine_scale.astype(np.float64)[:, None]
    norm = np.maximum(
        np.linalg.norm(rows.astype(np.float64), axis=1), np.linalg.norm(coded, axis=1)
    )
    bounds = [
        _round_up(n) for n in (norm, np.linalg.norm(left, axis=1), np.linalg.norm(rest, axis=1))
    ]
    return codes, scales, _pack_refine(refine), np.stack([row_scale, refine_scale, *bounds])


def make_scan(head: NDArray[np.float16]) -> HeadScan:
    """Make the planes of a head (vocab, hidden), some rows at a time.

    Raises:
        ModelError: a weight is not finite.
    """
    vocab, hidden = head.shape
    panels, n_groups = -(-vocab // PANEL_ROWS), -(-hidden // GROUP_INPUTS)
    levels = fit_levels(head)
    scan = HeadScan(
        codes=np.zeros((panels, n_groups * GROUP_LINES, 64), np.uint8),
        scales=np.zeros((panels, n_groups, PANEL_ROWS), np.uint8),
        levels=levels,
        refine=np.zeros((vocab, -(-hidden // REFINE_INPUTS) * 64), np.uint8),
        rows=np.zeros((5, vocab), np.float32),
    )
    for begin in range(0, vocab, BLOCK_ROWS):
        end = min(begin + BLOCK_ROWS, vocab)
        codes, scales, refine, rows = _block(head[begin:end], levels)
        pad = ((0, -len(codes) % PANEL_ROWS), (0, 0))
        at = slice(begin // PANEL_ROWS, -(-end // PANEL_ROWS))
        scan.codes[at] = _pack_codes(np.pad(codes, (*pad, (0, 0))))
        scan.scales[at] = np.pad(scales, pad).reshape(-1, PANEL_ROWS, n_groups).transpose(0, 2, 1)
        scan.refine[begin:end] = refine
        scan.rows[:, begin:end] = rows
    return scan
