"""The encoder's choice of a shape: orientation, padding, segment, priors."""

import numpy as np
import pytest

from edgeagent.convert import pack as packing
from ota.shapes import n_trits, radix_of, shape_of

RNG = np.random.default_rng(17)


def trits(rows, cols):
    return RNG.choice([-1, 0, 1], (rows, cols), p=[0.3, 0.4, 0.3]).astype(np.int8)


def shape(packed, base3, new=None):
    flat = packed.reshape(-1)
    return shape_of(
        packed.shape, base3, None if new is None else flat, flat if new is None else new
    )


@pytest.mark.parametrize(
    ("pack", "size", "base3", "expected"),
    [
        (packing.pack_output_major, (40, 200), 0, (64, 200, 0, 0, 0)),
        (packing.pack_input_major, (300, 20), 0, (64, 256, 20, 44, 20)),
        (packing.pack_input_major, (128, 20), 0, (64, 128, 0, 0, 20)),
        (packing.pack_input_major, (512, 20), 0, (64, 256, 0, 0, 20)),
        (packing.pack_rows3, (40, 400), 1, (128, 400, 0, 0, 0)),
        (packing.pack_channels3, (330, 40), 1, (128, 330, 0, 0, 0)),
        (packing.pack_tiles3, (100, 24), 1, (64, 320, 6, 80, 6)),
        (packing.pack_tiles3, (160, 24), 1, (64, 320, 0, 0, 6)),
    ],
)
def test_orientation_and_padding_are_found(pack, size, base3, expected):
    matrix = trits(*size)
    matrix[-1, :] = 1  # the last row and column are not zero by chance
    matrix[:, -1] = 1
    packed = pack(matrix)
    assert radix_of(packed.reshape(-1)) == base3
    found = shape(packed, base3)
    lines = (found.line_bytes, found.valid, found.tail_lines, found.tail_valid, found.period)
    assert lines == expected
    assert n_trits(found, packed.size) == matrix.size


def test_bytes_that_are_no_trits_have_no_radix():
    assert radix_of(np.array([0xFF], np.uint8)) is None
    assert radix_of(np.array([0b1100], np.uint8)) == 1
    assert radix_of(np.array([242], np.uint8)) == 1


def test_a_length_that_fits_no_block_has_no_shape():
    assert shape_of([33], 0, None, np.zeros(33, np.uint8)) is None
    assert shape_of([32], 1, None, np.zeros(32, np.uint8)) is None


def flipped(matrix, rates):
    hit = RNG.random(matrix.shape) < rates
    return np.where(hit, np.where(matrix == 0, 1, 0), matrix).astype(np.int8)


@pytest.mark.parametrize(
    ("rate", "segment"), [(0.2, 1024), (0.02, 1024), (1.5e-3, 1024), (5e-4, 2048), (1e-5, 4096)]
)
def test_rarer_flips_have_longer_segments_and_no_priors(rate, segment):
    matrix = trits(512, 2048)
    old = packing.pack_output_major(matrix)
    new = packing.pack_output_major(flipped(matrix, rate)).reshape(-1)
    found = shape(old, 0, new)
    assert found.segment in (segment, max(1024, segment // 2))
    assert (found.k_line, found.k_cross) == (0, 0)


def test_lines_without_rates_or_padding_are_walked_as_one():
    full, padded = trits(512, 2048), trits(512, 2000)
    for matrix, line_bytes in ((full, 8192), (padded, 512)):
        old = packing.pack_output_major(matrix)
        new = packing.pack_output_major(flipped(matrix, 0.01)).reshape(-1)
        assert shape(old, 0, new).line_bytes == line_bytes


def test_joined_lines_of_base_3_are_no_longer_than_a_segment():
    matrix = trits(64, 640)
    old = packing.pack_rows3(matrix)
    new = packing.pack_rows3(flipped(matrix, 0.01)).reshape(-1)
    found = shape(old, 1, new)
    assert found.valid <= found.segment and found.line_bytes == 128


@pytest.mark.parametrize("axis", [0, 1])
def test_flips_that_cluster_have_priors(axis):
    matrix = trits(512, 2048)
    hot = np.where(RNG.random(matrix.shape[1 - axis]) < 0.1, 0.09, 0.001)
    old = packing.pack_output_major(matrix)
    rates = hot if axis == 0 else hot[:, None]
    found = shape(old, 0, packing.pack_output_major(flipped(matrix, rates)).reshape(-1))
    assert (found.k_cross > 0) == (axis == 0)
    assert (found.k_line > 0) == (axis == 1)
