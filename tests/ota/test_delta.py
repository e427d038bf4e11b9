"""The coder of flips, through the reader that a device has."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota import _flips
from ota.delta import BLOCK_BYTES, BLOCK_TRITS, CodedReader, Shape
from ota.errors import DeltaFormatError

STEP3 = 3 ** np.arange(5, dtype=np.uint8)


def pack(codes, base3):
    """Pack codes in the order of a line: block by block, field by field."""
    block = BLOCK_BYTES[base3]
    fields = codes.reshape(-1, 5 if base3 else 4, block).astype(np.uint8)
    factors = STEP3 if base3 else np.array([1, 4, 16, 64], np.uint8)
    return (fields * factors[:, None]).sum(axis=1, dtype=np.uint8).tobytes()


def lines_of(shape, n_lines, rng, p_zero=0.4):
    """Codes of a plane; 1 in the padding."""
    n_places = shape.line_bytes // BLOCK_BYTES[shape.base3] * BLOCK_TRITS[shape.base3]
    codes = rng.choice(
        [0, 1, 2], (n_lines, n_places), p=[(1 - p_zero) / 2, p_zero, (1 - p_zero) / 2]
    )
    codes[:, shape.valid :] = 1
    if shape.tail_lines:
        codes[n_lines - shape.tail_lines :, shape.tail_valid :] = 1
    return codes


def flipped(shape, codes, rate, rng):
    hit = rng.random(codes.shape) < rate
    hit &= lines_of(shape, len(codes), rng, 0.0) != 1  # only weights
    return np.where(hit, (codes + rng.choice([1, 2], codes.shape)) % 3, codes)


def write(shape, pairs, blind=False, gap=100):
    writer = _flips.Writer()
    writer.guess(gap)
    for old, new in pairs:
        writer.begin(shape.numbers(blind), len(new))
        writer.flips(old, new) if old is not None else writer.trits(new)
    writer.end()
    return writer.take()


def read(shape, data, olds, blind=False, gap=100, piece=None, chunk=1000):
    """Make the planes again, by each variant of the reader; all must make the same."""
    made = []
    try:
        for level in (2, 1, 0):
            _flips.use_plain(level)
            made.append(read_once(shape, data, olds, blind, gap, piece, chunk))
    finally:
        _flips.use_plain(0)
    assert made[0] == made[1] == made[2]
    return made[0]


def read_once(shape, data, olds, blind, gap, piece, chunk):
    """Make the planes again, from chunks of the stream and pieces of the old planes."""
    reader = CodedReader([data[k : k + chunk] for k in range(0, len(data), chunk)], gap, blind)
    step = (piece or 1) * shape.line_bytes
    made = []
    for old in olds:
        pieces = [old[k : k + step] for k in range(0, len(old), step)]
        made.append(b"".join(reader.flips(pieces, len(old), shape)))
    reader.end()
    return made


@st.composite
def shapes(draw):
    base3 = draw(st.integers(0, 1))
    n_blocks = draw(st.integers(1, 5))
    places = n_blocks * BLOCK_TRITS[base3]
    n_lines = draw(st.integers(1, 12))
    tail_lines = draw(st.integers(0, n_lines))
    valid = draw(st.integers(1, places))
    shape = Shape(
        base3,
        n_blocks * BLOCK_BYTES[base3],
        valid,
        tail_lines,
        draw(st.integers(0, valid)) if tail_lines else 0,
        draw(st.sampled_from([0, 1, 3])),
        draw(st.sampled_from([64, 128, 4096])),
        draw(st.sampled_from([0, 1, 50])),
        draw(st.sampled_from([0, 1, 50])),
    )
    return shape, n_lines


@settings(max_examples=150, deadline=None)
@given(shapes(), st.sampled_from([0, 1e-3, 0.02, 0.3, 1]), st.booleans(), st.integers(0, 1 << 32))
def test_any_planes_survive(drawn, rate, blind, seed):
    shape, n_lines = drawn
    assert shape.is_ok()
    rng = np.random.default_rng(seed)
    olds = [lines_of(shape, n_lines, rng) for _ in range(2)]
    news = [flipped(shape, codes, rate, rng) for codes in olds]
    old_planes = [pack(codes, shape.base3) for codes in olds]
    new_planes = [pack(codes, shape.base3) for codes in news]
    data = write(shape, zip(old_planes, new_planes, strict=True), blind)
    piece, chunk = int(rng.integers(1, 9)), int(rng.integers(1, 99))
    assert read(shape, data, old_planes, blind, piece=piece, chunk=chunk) == new_planes


@settings(max_examples=60, deadline=None)
@given(shapes(), st.sampled_from([0, 0.02, 0.4, 1]), st.integers(0, 1 << 32))
def test_any_planes_from_nothing_survive(drawn, p_zero, seed):
    shape, n_lines = drawn
    codes = lines_of(shape, n_lines, np.random.default_rng(seed), p_zero)
    plane = pack(codes, shape.base3)
    data = write(shape, [(None, plane)])
    reader = CodedReader([data], 100, blind=False)
    sizes = [shape.line_bytes] * n_lines
    assert b"".join(reader.trits(sizes, len(plane), shape)) == plane
    reader.end()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.booleans(), st.integers(0, 1 << 32), st.integers(0, 4000))
def test_any_words_survive(width, blind, seed, n_words):
    rng = np.random.default_rng(seed)
    old = rng.bytes(n_words * width)
    new = np.frombuffer(old, f"<u{width}") + rng.integers(0, 3, n_words).astype(f"<u{width}")
    new[rng.random(n_words) < 0.1] = 0
    new = rng.bytes(len(old)) if rng.random() < 0.2 else new.tobytes()
    writer = _flips.Writer()
    writer.words(old, new, width, blind)
    writer.end()
    reader = CodedReader([writer.take()], 1, blind)
    assert b"".join(reader.words([old], width)) == new
    reader.end()


PLAIN = Shape(0, 64, 256, 0, 0, 0, 64)


def independent(rate, n_lines, rng, shape=PLAIN):
    """A plane, its flipped twin and the bound of their difference in bytes."""
    old = lines_of(shape, n_lines, rng, 0.42)
    hit = rng.random(old.shape) < rate
    new = np.where(hit, np.where(old == 1, rng.choice([0, 2], old.shape), 1), old)
    p = hit.mean()
    entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    bound = (old.size * entropy + (hit & (old == 1)).sum()) / 8
    return pack(old, shape.base3), pack(new, shape.base3), bound


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2, 5e-2, 0.2])
def test_independent_flips_cost_the_bound(rate):
    rng = np.random.default_rng(7)
    shape = Shape(0, 64, 256, 0, 0, 0, int(min(4096, max(64, 2 ** int(math.log2(0.7 / rate))))))
    old, new, bound = independent(rate, 1 << 14, rng)
    data = write(shape, [(old, new)], gap=int(1 / rate))
    assert len(data) < 1.002 * bound + 8


def test_flips_that_prefer_old_zeros_cost_less_than_the_bound():
    rng = np.random.default_rng(8)
    old = lines_of(PLAIN, 4096, rng, 0.35)
    hit = rng.random(old.shape) < np.where(old == 1, 0.02, 0.01)
    new = np.where(hit, np.where(old == 1, rng.choice([0, 2], old.shape), 1), old)
    p = hit.mean()
    bound = old.size * (-p * math.log2(p) - (1 - p) * math.log2(1 - p)) + (hit & (old == 1)).sum()
    assert len(write(PLAIN, [(pack(old, 0), pack(new, 0))])) < 0.99 * bound / 8


@pytest.mark.parametrize(("axis", "priors"), [(0, (0, 1)), (1, (1, 0))])
def test_clustered_flips_cost_less_than_independent_ones(axis, priors):
    """A tenth of the lines, or of the places, has nine tenths of the flips."""
    rng = np.random.default_rng(9)
    shape = Shape(0, 512, 2048, 0, 0, 0, 64, *priors)
    old = lines_of(shape, 512, rng)
    hot = rng.random(old.shape[1 - axis]) < 0.1
    rates = np.where(hot, 0.09, 0.001)
    hit = rng.random(old.shape) < (rates if axis == 0 else rates[:, None])
    new = np.where(hit, np.where(old == 1, 2, 1), old)  # what a flip becomes costs nothing here
    p = hit.mean()
    bound = old.size * (-p * math.log2(p) - (1 - p) * math.log2(1 - p)) / 8
    assert len(write(shape, [(pack(old, 0), pack(new, 0))])) < 0.78 * bound


def test_a_blind_delta_of_two_steps_is_the_sum_of_two_deltas():
    """On a plane of zeros a blind stream makes the difference itself: old plus both is new."""
    rng = np.random.default_rng(10)
    first = lines_of(PLAIN, 64, rng)
    second, third = flipped(PLAIN, first, 0.1, rng), None
    third = flipped(PLAIN, second, 0.1, rng)
    planes = [pack(codes, 0) for codes in (first, second, third)]
    one = write(PLAIN, [(planes[0], planes[1])], blind=True)
    two = write(PLAIN, [(planes[1], planes[2])], blind=True)
    zeros = pack(np.ones_like(first), 0)
    step = read(PLAIN, one, [zeros], blind=True)
    both = read(PLAIN, two, step, blind=True)[0]
    assert both == pack((third - first + 1) % 3, 0)
    assert read(PLAIN, write(PLAIN, [(zeros, both)], blind=True), [planes[0]], True) == [planes[2]]
    back = write(PLAIN, [(both, zeros)], blind=True)
    assert read(PLAIN, back, [planes[2]], blind=True) == [planes[0]]


def test_a_stream_that_ends_early_is_refused():
    rng = np.random.default_rng(11)
    old, new, _ = independent(0.1, 64, rng)
    data = write(PLAIN, [(old, new)])
    for length in (0, 10, len(data) // 2):
        with pytest.raises(DeltaFormatError, match="ended early"):
            read(PLAIN, data[:length], [old])


@settings(max_examples=100, deadline=None)
@given(
    shapes(), st.sampled_from([1e-3, 0.02, 0.3]), st.integers(0, 1 << 32), st.integers(0, 1 << 32)
)
def test_of_a_damaged_stream_all_variants_make_the_same(drawn, rate, seed, damage):
    shape, n_lines = drawn
    rng = np.random.default_rng(seed)
    old = lines_of(shape, n_lines, rng)
    plane = pack(old, shape.base3)
    data = bytearray(write(shape, [(plane, pack(flipped(shape, old, rate, rng), shape.base3))]))
    for at in np.random.default_rng(damage).integers(0, len(data) + 1, 3):
        data[at : at + 1] = rng.bytes(1)
    found = []
    for level in (2, 1, 0):
        _flips.use_plain(level)
        try:
            found.append(read_once(shape, bytes(data), [plane], False, 100, None, 1000))
        except DeltaFormatError as err:
            found.append(str(err))
        finally:
            _flips.use_plain(0)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize("base3", [0, 1])
def test_many_flips_in_long_segments_are_read_by_every_variant(base3, ratio):
    rng = np.random.default_rng(13)
    shape = Shape(base3, 8192, 8192 * (5 if base3 else 4), 0, 0, 0, 1024)
    old = lines_of(shape, 8, rng)
    hit = rng.random(old.shape) < np.where(old == 1, 0.01 * ratio, 0.01)
    new = np.where(hit, np.where(old == 1, rng.choice([0, 2], old.shape), 1), old)
    planes = [pack(codes, base3) for codes in (old, new)]
    assert read(shape, write(shape, [planes]), planes[:1], chunk=1 << 16) == planes[1:]


def test_a_stream_that_is_too_long_is_refused():
    old, new, _ = independent(0.1, 64, np.random.default_rng(12))
    with pytest.raises(DeltaFormatError, match="longer"):
        read(PLAIN, write(PLAIN, [(old, new)]) + bytes(10), [old])


@pytest.mark.parametrize(("base3", "byte"), [(0, 0xFF), (0, 0b1100), (1, 243), (1, 255)])
def test_an_illegal_code_in_the_old_plane_is_refused(base3, byte):
    shape = Shape(base3, 64, 64, 0, 0, 0, 64)
    with pytest.raises(DeltaFormatError, match="illegal code"):
        read(shape, bytes(20), [bytes([byte]) + bytes(63)])


@pytest.mark.parametrize(
    "change",
    [
        {0: 2}, {1: 0}, {1: 33}, {1: 1 << 31}, {2: 0}, {2: 257}, {4: 257}, {6: 63}, {6: 8192},
        {6: 96}, {7: 1 << 14}, {8: 1 << 14}, {9: 2},
    ],
)  # fmt: skip
def test_shapes_out_of_bounds_are_refused(change):
    numbers = list(PLAIN.numbers(blind=False))
    for index, value in change.items():
        numbers[index] = value
    assert not _flips.shape_ok(tuple(numbers))
    with pytest.raises(_flips.CodeError):
        _flips.Writer().begin(tuple(numbers), 64)


def test_tails_and_lengths_that_do_not_fit_are_refused():
    for numbers, n_bytes in ((PLAIN.numbers(False), 65), ((0, 64, 256, 2, 9, 0, 64, 0, 0, 0), 64)):
        with pytest.raises(_flips.CodeError):
            _flips.Writer().begin(numbers, n_bytes)


def test_reading_and_writing_need_no_plane_at_all():
    writer = _flips.Writer()
    writer.begin(PLAIN.numbers(False), 0)
    writer.flips(b"", b"")
    writer.end()
    assert read(PLAIN, writer.take(), [b""]) == [b""]


@pytest.mark.parametrize("gap", [1, 1 << 29])
@pytest.mark.parametrize("segment", [64, 4096])
@pytest.mark.parametrize(
    "where", [slice(0, 9), slice(4087, 4096), slice(2000, 2100), slice(0, None)]
)
def test_flips_are_found_where_nobody_expects_them(gap, segment, where):
    """The reader guesses where a flip is and corrects itself, however wrong the guess."""
    rng = np.random.default_rng(6)
    shape = Shape(0, 1024, 4096, 0, 0, 0, segment)
    for share in (0, 0.4, 1):
        old = lines_of(shape, 2, rng, share)
        new = old.copy()
        new[0, where] = (new[0, where] + 1) % 3
        planes = pack(old, 0), pack(new, 0)
        assert read(shape, write(shape, [planes], gap=gap), planes[:1], gap=gap) == [planes[1]]
