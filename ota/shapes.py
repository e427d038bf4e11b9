"""How a tensor of packed trits is best walked: the encoder's choice of ``Shape``.  Pure; numpy.

Nothing here is part of the format: any shape that covers all changes makes a correct delta.  The
orientation follows from the tensor's dimensions (``docs/formats.md`` section 3), padding from what
is zero in both planes, the length of a segment from the rate of flips, and the priors from how much
more the flips of lines and of places scatter than independent ones would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ota.delta import BLOCK_BYTES, Shape

MIN_SEGMENT, MAX_SEGMENT = 64, 4096
FLIPS_A_SEGMENT = 1.5  # fewer make more symbols, more make more sums; measured
SAMPLE_BYTES = 1 << 24  # of a plane, for the scatter; enough for a million flips in a dense one
JOINED_SEGMENT = 1024  # at least, where rates are the plane's: what a segment costs is then little
JOINED_BYTES = 1 << 13  # of lines that are walked as one; their bitmaps fit a small core's cache
MAX_LINE_BYTES = 1 << 15  # of a plane whose dimensions say nothing
MIN_SCATTER_SIGMAS = 4.0  # how unlikely a scatter must be before the model believes it
MAX_PRIOR = 4096  # a prior above it is no different from none

Plane = NDArray[np.uint8]

_FIELDS3 = np.zeros(256, np.uint8)  # bit f: field f of a base-3 byte is not zero
for _byte in range(243):
    for _field in range(5):
        _FIELDS3[_byte] |= (_byte // 3**_field % 3 != 1) << _field


def radix_of(*planes: Plane) -> int | None:
    """Return 0 if all planes are legal 2-bit trits, 1 if base 3, None if neither."""
    if not any(bool((plane & plane >> 1 & 0x55).any()) for plane in planes):
        return 0
    return 1 if all(int(plane.max(initial=0)) < 243 for plane in planes) else None


def shape_of(dims: Sequence[int], base3: int, old: Plane | None, new: Plane) -> Shape | None:
    """Choose the shape of a plane; None if its length fits no block."""
    line_bytes, period = _orientation(dims, base3, len(new))
    if line_bytes == 0:
        return None
    n_lines = len(new) // line_bytes
    tail_lines = period if period < n_lines or len(dims) > 2 else 0
    used = [_used(p, base3, line_bytes) for p in (old, new) if p is not None]
    valid = _valid(used, slice(0, n_lines - tail_lines), base3)
    tail_valid = _valid(used, slice(n_lines - tail_lines, n_lines), base3)
    valid = max(valid, tail_valid)
    if tail_valid in (0, valid):
        tail_lines, tail_valid = (0, 0) if tail_valid else (tail_lines, 0)
    shape = Shape(base3, line_bytes, max(valid, 1), tail_lines, tail_valid, period, MIN_SEGMENT)
    return shape if old is None else _tuned(shape, old, new)


def _orientation(dims: Sequence[int], base3: int, n_bytes: int) -> tuple[int, int]:
    """Return the bytes of a line and how many lines have places of one meaning (0: all)."""
    block = BLOCK_BYTES[base3]
    match (base3, list(dims)):
        case (0, [_, inputs, 64]):  # lines
            return 64, inputs
        case (1, [_, quads, 16, 4]):  # tiles
            return 64, quads
        case (1, [_, groups, 64]) if groups * 64 <= MAX_LINE_BYTES:  # channels
            return groups * 64, 0
        case (_, [_, width]) if width % block == 0 and 0 < width <= MAX_LINE_BYTES:  # rows
            return width, 0
    if n_bytes % block:
        return 0, 0
    n_blocks = n_bytes // block
    most = MAX_LINE_BYTES // block
    return block * max((k for k in range(1, most + 1) if n_blocks % k == 0), default=0), 0


def _bits(plane: Plane, base3: int) -> Plane:
    """Return a bit a field where it is not zero: bit 2 f of layout 1, bit f of base 3."""
    if base3:
        return _FIELDS3[plane]
    return _either_bit(plane ^ np.uint8(0x55))


def _either_bit(codes: Plane) -> Plane:
    bits: Plane = (codes | codes >> np.uint8(1)) & np.uint8(0x55)
    return bits


def _used(plane: Plane, base3: int, line_bytes: int) -> Plane:
    """(lines, line bytes) of fields that are not zero."""
    return _bits(plane, base3).reshape(-1, line_bytes)


def _valid(used: Sequence[Plane], lines: slice, base3: int) -> int:
    """Return one more than the last place that is not zero in any of these lines."""
    if lines.start == lines.stop:
        return 0
    ored = used[0][lines][0] * np.uint8(0)
    for bits in used:
        ored = ored | np.bitwise_or.reduce(bits[lines], axis=0)
    places = np.flatnonzero(_places(ored[None], base3)[0])
    return int(places[-1]) + 1 if len(places) else 0


def _places(bits: Plane, base3: int) -> Plane:
    """Spread field bits of (lines, line bytes) to 0 or 1 a trit, in the order of a line."""
    block, step = BLOCK_BYTES[base3], 1 if base3 else 2
    blocks = bits.reshape(len(bits), -1, block)
    fields = [blocks >> np.uint8(step * f) & np.uint8(1) for f in range(5 if base3 else 4)]
    return np.stack(fields, axis=2).reshape(len(bits), -1)


def _tuned(shape: Shape, old: Plane, new: Plane) -> Shape:
    """Fit the segment and the priors to the flips of the first ``SAMPLE_BYTES``."""
    n_lines = max(1, min(len(old), SAMPLE_BYTES) // shape.line_bytes)
    if shape.period:
        n_lines = max(min(shape.period, len(old) // shape.line_bytes), n_lines)
    end = n_lines * shape.line_bytes
    flips = _changed(old[:end], new[:end], shape.base3).reshape(-1, shape.line_bytes)
    a_line = _count_bits(flips).sum(axis=1, dtype=np.int64)
    total = int(a_line.sum())
    n_trits = max(1, n_lines * shape.valid)
    segment = MIN_SEGMENT
    while segment < MAX_SEGMENT and 2 * segment * total < FLIPS_A_SEGMENT * n_trits:
        segment *= 2
    a_line = a_line[: max(0, len(old) // shape.line_bytes - shape.tail_lines)]
    k_line = _prior(a_line) if shape.valid >= 4 * segment else 0
    k_cross = _prior(_a_place(flips, shape))
    tuned = replace(shape, segment=segment, k_line=k_line, k_cross=k_cross)
    return _joined(tuned, len(old))


def _joined(shape: Shape, n_bytes: int) -> Shape:
    """Make one long line of many: where lines mean nothing, segments need not end with them."""
    if shape.k_line or shape.k_cross or shape.has_padding:
        return shape
    segment = max(shape.segment, JOINED_SEGMENT)
    longest = segment // 5 if shape.base3 else JOINED_BYTES  # base 3: borders fall on segments
    n_lines, most = n_bytes // shape.line_bytes, max(1, longest // shape.line_bytes)
    joined = max(k for k in range(1, most + 1) if n_lines % k == 0)
    line_bytes, valid = joined * shape.line_bytes, joined * shape.valid
    return replace(shape, line_bytes=line_bytes, valid=valid, period=0, segment=segment)


def _changed(old: Plane, new: Plane, base3: int) -> Plane:
    if not base3:
        return _either_bit(old ^ new)
    at = np.flatnonzero(old != new)
    bits = np.zeros(len(old), np.uint8)
    for field in range(5):
        factor = np.uint8(3**field)
        differs = old[at] // factor % 3 != new[at] // factor % 3
        bits[at] |= differs.astype(np.uint8) << np.uint8(field)
    return bits


_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def _count_bits(bits: Plane) -> Plane:
    return _ONES[bits]


def _a_place(flips: Plane, shape: Shape) -> NDArray[np.int64]:
    """Return the flips of each place, of each period apart."""
    period = min(shape.period or len(flips), len(flips))
    counts = []
    for start in range(0, len(flips) - period + 1, period):
        lines = flips[start : start + period]
        some = [
            _places(part, shape.base3).sum(axis=0, dtype=np.int64)
            for part in np.array_split(lines, max(1, lines.size >> 20))
        ]
        counts.append(np.sum(some, axis=0)[: shape.valid])
    return np.concatenate(counts)


def _prior(counts: NDArray[np.int64]) -> int:
    """Return the prior, in flips, under which counts scatter as these do; 0: as independent ones.

    Counts of a Poisson process whose rate is gamma distributed have variance m + m^2 / k.
    """
    n, mean = len(counts), float(counts.mean()) if len(counts) else 0.0
    if n < 8 or mean == 0:
        return 0
    excess = float(counts.var()) / mean - 1
    if excess < MIN_SCATTER_SIGMAS * (2 / n) ** 0.5:
        return 0
    prior = mean / excess
    return max(1, round(prior)) if prior < MAX_PRIOR else 0


def n_trits(shape: Shape, n_bytes: int) -> int:
    """Return how many trits of a plane the coder walks, padding apart."""
    n_lines = n_bytes // shape.line_bytes
    return (n_lines - shape.tail_lines) * shape.valid + shape.tail_lines * shape.tail_valid
