"""Matrices that are ternary already: found in floats, and in blocks that carry a scale each.

TriLM keeps one scale for each shard of a matrix that training split (arXiv 2407.12327), Bonsai one
for each 128 inputs; unpacked to floats, both are exactly a trit times that scale, so the scales are
found by equality, never by a tolerance and never by one largest value of a matrix.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert.checkpoint import TritMatrix
from edgeagent.convert.pack import MIN_SCALE

Floats = NDArray[np.float32]
Trits = NDArray[np.int8]

#: Rows looked at before a whole matrix is: a float matrix fails on the first.
SAMPLE_ROWS = 64
#: Inputs that share a scale are whole quads in the engine (cext/include/forward.h).
GROUP_STEP = 4


def _largest(magnitudes: Floats, groups: int) -> Floats:
    """Return (out, groups): the largest of each run of inputs."""
    out, width = magnitudes.shape
    found: Floats = magnitudes.reshape(out, groups, width // groups).max(axis=2)
    return found


def _is_exact(magnitudes: Floats, largest: Floats) -> bool:
    out, groups = largest.shape
    runs = magnitudes.reshape(out, groups, -1)
    return bool(((runs == 0) | (runs == largest[:, :, None])).all())


def find_groups(magnitudes: Floats) -> int | None:
    """Return the smallest number of equal runs with one magnitude each; None: not ternary."""
    width = magnitudes.shape[1]
    for groups in range(1, width // GROUP_STEP + 1):
        if groups > 1 and (width % groups or width // groups % GROUP_STEP):
            continue
        if _is_exact(magnitudes, _largest(magnitudes, groups)):
            return groups
    return None


def sample(out: int) -> NDArray[np.intp]:
    """Return the rows that decide whether a matrix of `out` rows is worth a closer look."""
    return np.unique(np.linspace(0, out - 1, min(out, SAMPLE_ROWS)).astype(np.intp))


def exact_ternary(values: Floats) -> TritMatrix | None:
    """Return floats (out, in) as trits and scales that give the same floats; None: they are none.

    A sample of rows finds the number of groups; the whole matrix must then agree with it, or with
    a finer one.
    """
    magnitudes = np.abs(values)
    if find_groups(magnitudes[sample(len(values))]) is None or not np.isfinite(values).all():
        return None
    groups = find_groups(magnitudes)
    if groups is None:
        return None
    scales = np.ascontiguousarray(_largest(magnitudes, groups).T)  # (groups, out)
    return TritMatrix(np.sign(values).astype(np.int8), _one_if_equal(scales))


def _one_if_equal(scales: Floats) -> Floats:
    """Make (G, out) a (1, 1) where all that matter are the same; 0 marks a run of zeros."""
    used = scales[scales > 0]
    if used.size == 0:
        return np.full((1, 1), MIN_SCALE, np.float32)
    if (used == used[0]).all():
        return np.full((1, 1), used[0], np.float32)
    return scales


def fold_scales(trits: Trits, scales: Floats) -> TritMatrix:
    """Join the scales of blocks (out, n) to as few as say the same: one, a row's, or a group's.

    A scale beside nothing but zeros says nothing; a negative one turns its trits around.
    """
    out, blocks = scales.shape
    runs = trits.reshape(out, blocks, -1)
    if (scales < 0).any():
        runs = np.where(scales[:, :, None] < 0, -runs, runs)
    used = (runs != 0).any(axis=2) & (scales != 0)
    if not used.all():
        runs = runs * used[:, :, None]
    sizes = np.where(used, np.abs(scales), np.float32(0)).astype(np.float32)
    groups = next(g for g in range(1, blocks + 1) if blocks % g == 0 and _joins(sizes, g))
    joined = np.ascontiguousarray(sizes.reshape(out, groups, -1).max(axis=2).T)
    return TritMatrix(runs.astype(np.int8).reshape(trits.shape), _one_if_equal(joined))


def _joins(sizes: Floats, groups: int) -> bool:
    runs = sizes.reshape(len(sizes), groups, -1)
    return bool(((runs == 0) | (runs == runs.max(axis=2, keepdims=True))).all())
