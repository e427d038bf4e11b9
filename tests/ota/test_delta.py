import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.delta import ESCAPE, Column, FlipReader, bits_of, low_bytes_for
from ota.errors import DeltaFormatError

ZEROS = bytes([0b01010101]) * 64  # 256 trits of 0: code 1 four times a byte


def reader(high=b"", mid=b"", low=b"", sign=(), fate=()):
    return FlipReader(
        {
            Column.GAP_HIGH: iter(high),
            Column.GAP_MID: iter(mid),
            Column.GAP_LOW: iter(low),
            Column.SIGN: iter(sign),
            Column.FATE: iter(fate),
        }
    )


def apply(flips, old, n_flips, low_bytes=0, piece=64):
    pieces = [old[k : k + piece] for k in range(0, len(old), piece)]
    return b"".join(flips.apply(pieces, len(old), n_flips, low_bytes))


def test_a_zero_becomes_what_its_sign_says():
    new = apply(reader(high=[0, 2], sign=[1, 0]), ZEROS, 2)
    assert new[0] == 0b00010110  # trit 0 is +1 (code 2), trit 3 is -1 (code 0)
    assert new[1:] == ZEROS[1:]


def test_a_sign_becomes_zero_or_the_other_sign():
    old = bytes([0b00100010])  # codes 2, 0, 2, 0
    assert apply(reader(high=[0, 0, 0, 0], fate=[0, 0, 1, 1]), old, 4) == bytes([0b10000101])


def test_an_escape_adds_to_the_gap():
    new = apply(reader(high=[ESCAPE, 0], sign=[1]), ZEROS, 1)
    assert new[63] == 0b10010101


@pytest.mark.parametrize(
    ("low_bytes", "columns"),
    [
        (0, {"high": [ESCAPE, 45]}),
        (1, {"high": [1], "low": [44]}),
        (2, {"high": [0], "mid": [1], "low": [44]}),
    ],
)
def test_a_gap_may_have_low_bytes(low_bytes, columns):
    old = ZEROS * 2
    new = apply(reader(**columns, sign=[1]), old, 1, low_bytes)
    assert [k for k, (a, b) in enumerate(zip(old, new, strict=True)) if a != b] == [300 // 4]


@given(st.integers(1, 64))
def test_the_size_of_pieces_does_not_matter(piece):
    columns = {"high": [3, 100, 0, 140], "sign": [1, 0, 1, 1]}
    assert apply(reader(**columns), ZEROS, 4, piece=piece) == apply(reader(**columns), ZEROS, 4)


@pytest.mark.parametrize(
    ("columns", "n_flips", "says"),
    [
        ({"high": [ESCAPE, 1], "sign": [1]}, 1, "flip at trit 256 of 256"),
        ({"high": [0], "sign": [1]}, 2, "gaps ended early"),
        ({"high": [ESCAPE], "sign": [1]}, 1, "gaps ended early"),
        ({"high": [0]}, 1, "bits ended early"),
    ],
)
def test_flips_that_make_no_sense_are_refused(columns, n_flips, says):
    with pytest.raises(DeltaFormatError, match=says):
        apply(reader(**columns), ZEROS, n_flips)


def test_an_illegal_code_in_the_old_plane_is_refused():
    with pytest.raises(DeltaFormatError, match="illegal code at 0"):
        apply(reader(high=[0], sign=[1], fate=[1]), b"\xff", 1)


def test_an_old_plane_of_another_length_is_refused():
    with pytest.raises(DeltaFormatError, match="ended at 64"):
        b"".join(reader().apply([ZEROS], 65, 0, 0))


@given(st.binary(max_size=50))
def test_bits_come_lowest_first(data):
    bits = list(bits_of([data]))
    assert sum(bit << k for k, bit in enumerate(bits)) == int.from_bytes(data, "little")


@pytest.mark.parametrize(
    ("rate", "low_bytes"), [(0.5, 0), (0.01, 0), (1 / 300, 0), (1e-3, 1), (1e-5, 1), (1e-6, 2)]
)
def test_rare_flips_get_low_bytes(rate, low_bytes):
    assert low_bytes_for(int(rate * 1e8), int(1e8)) == low_bytes


def test_no_flips_and_no_trits_are_no_trouble():
    assert low_bytes_for(0, 0) == 0
    assert low_bytes_for(0, 1 << 40) == 2
