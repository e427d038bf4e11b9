"""Flips of packed trits: how a changed plane is written down, and how it is applied.  Pure.

A **flip** is a trit that differs between the old and the new plane.  Trits are counted in packed
byte order, four codes a byte, lowest bits first, so nothing here knows shapes.  A plane with ``n``
flips is

* the gaps between flips (unchanged trits skipped), split into bytes.  The highest digit may exceed
  a byte, so it is written in base 255 with 255 as "add 255 and go on"; the digits below it are
  plain bytes.  Gaps between independent flips are geometric, so their digits are independent of
  each other, and one entropy code a digit loses nothing;
* one bit a flip, conditional on the old trit: from 0 the sign (1 is +1), from +-1 whether the trit
  goes to the opposite sign (1) or, as nearly always, to 0.

The five columns of all planes (see ``Column``) lie in five streams, each one zstd frame in
``ota.container``, so that each has statistics of its own and a plane of a hundred flips costs no
headers.  Writing them is ``ota.encoder``'s part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from itertools import chain

from ota.errors import DeltaFormatError

TRITS_PER_BYTE = 4
ESCAPE = 255  # a digit of the highest byte: 255 more, and another digit follows
MAX_MEAN_DIGIT = 480  # at a mean of 480 the escape has probability 0.59, just above one bit
MAX_LOW_BYTES = 2  # 16 low bits are enough for flip rates down to 1e-7
NEVER = 1 << 62  # beyond every trit there can be


class Column(IntEnum):
    """The streams of a container, in the order of the file."""

    GAP_HIGH = 0
    GAP_MID = 1
    GAP_LOW = 2
    SIGN = 3
    FATE = 4
    BYTES = 5


FLIP_COLUMNS: tuple[Column, ...] = tuple(Column)[: Column.BYTES]

LOW_COLUMNS: tuple[tuple[Column, ...], ...] = (
    (),
    (Column.GAP_LOW,),
    (Column.GAP_MID, Column.GAP_LOW),
)
"""Which columns hold the low bytes of a gap, by the number of low bytes."""

_BITS_OF_BYTE = tuple(tuple(byte >> k & 1 for k in range(8)) for byte in range(256))


def bits_of(chunks: Iterable[bytes]) -> Iterator[int]:
    """Yield the bits of ``chunks``, lowest bit of each byte first."""
    for chunk in chunks:
        yield from chain.from_iterable(map(_BITS_OF_BYTE.__getitem__, chunk))


def low_bytes_for(n_flips: int, n_trits: int) -> int:
    """Choose how many low bytes a gap gets.

    Measured over means of 20 to 2000: up to ``MAX_MEAN_DIGIT`` escapes cost less than a second
    digit, and both stay within 1.4 % of the bound.
    """
    mean_gap = n_trits // max(n_flips, 1)
    low_bytes = 0
    while mean_gap >= MAX_MEAN_DIGIT and low_bytes < MAX_LOW_BYTES:
        mean_gap >>= 8
        low_bytes += 1
    return low_bytes


class FlipReader:
    """Applies flips to old planes, in the order in which they were written."""

    def __init__(self, columns: dict[Column, Iterator[int]]) -> None:
        """Take one iterator a column: bytes of the gap columns, bits of ``SIGN`` and ``FATE``."""
        self._columns = columns

    def apply(
        self, old: Iterable[bytes], n_bytes: int, n_flips: int, low_bytes: int
    ) -> Iterator[bytes]:
        """Yield the new plane, piece by piece as ``old`` comes.

        Args:
            old: the pieces of the old plane, ``n_bytes`` together
            n_bytes: length of the plane
            n_flips: how many trits differ
            low_bytes: how many low bytes a gap has, at most ``MAX_LOW_BYTES``

        Raises:
            DeltaFormatError: a flip lies outside the plane or hits an illegal code, or a stream
                ended early.
        """
        positions = self._positions(n_flips, low_bytes, n_bytes * TRITS_PER_BYTE)
        flip = next(positions, NEVER)
        start = 0
        for piece in old:
            end = start + len(piece) * TRITS_PER_BYTE
            if flip < end:
                new = bytearray(piece)
                flip = self._flip_piece(new, flip, positions, start, end)
                yield bytes(new)
            else:
                yield piece
            start = end
        if flip != NEVER or start != n_bytes * TRITS_PER_BYTE:
            raise DeltaFormatError(f"delta: a plane of {n_bytes} bytes ended at {start // 4}")

    def _positions(self, n_flips: int, low_bytes: int, n_trits: int) -> Iterator[int]:
        high = self._columns[Column.GAP_HIGH]
        lows = [self._columns[column] for column in LOW_COLUMNS[low_bytes]]
        position = -1
        try:
            for _ in range(n_flips):
                gap = digit = next(high)
                while digit == ESCAPE:
                    digit = next(high)
                    gap += digit
                for low in lows:
                    gap = gap << 8 | next(low)
                position += gap + 1
                if position >= n_trits:
                    raise DeltaFormatError(f"delta: flip at trit {position} of {n_trits}")
                yield position
        except StopIteration:
            raise DeltaFormatError("delta: the stream of gaps ended early") from None

    def _flip_piece(
        self, piece: bytearray, flip: int, positions: Iterator[int], start: int, end: int
    ) -> int:
        """Flip what lies in ``[start, end)`` and return the first position after it."""
        sign, fate = self._columns[Column.SIGN], self._columns[Column.FATE]
        try:
            while flip < end:
                index = (flip - start) >> 2
                shift = (flip & 3) << 1
                byte = piece[index]
                code = byte >> shift & 3
                if code == 1:  # 0 becomes +1 or -1: code 2 or 0
                    change = 3 if next(sign) else 1
                elif code == 3:
                    raise DeltaFormatError(f"delta: the old plane has an illegal code at {flip}")
                elif next(fate):  # -1 and +1 exchanged: codes 0 and 2
                    change = 2
                else:  # to 0, code 1
                    change = 1 if code == 0 else 3
                piece[index] = byte ^ change << shift
                flip = next(positions, NEVER)
        except StopIteration:
            raise DeltaFormatError("delta: a stream of bits ended early") from None
        return flip
