"""What a coded plane is: its shape, and how the coder of ``ota._flips`` is driven.  Pure.

A **flip** is a trit that differs between the old and the new plane.  The coder walks a plane in
lines of blocks, predicts for every segment of a line how many flips to expect (old zeros and old
signs apart, with a line's and a place's own rate where the shape asks for it), and writes the
places of the flips and what they become with a range coder.  It needs no table and no second pass,
so both sides stream.  The bytes are defined in ``docs/formats.md`` section 5.

All planes and float words of a container share one stream and one model: what is learnt from one
plane is where the next one starts.  ``Column`` names the two streams of a container.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

from ota import _flips
from ota.errors import DeltaFormatError

BLOCK_BYTES = {0: 32, 1: 64}
BLOCK_TRITS = {0: 128, 1: 320}
"""Of a block of packed trits, by ``base3``."""

WORD_WIDTHS = (1, 2, 4)


class Column(IntEnum):
    """The streams of a container, in the order of the file."""

    CODED = 0
    BYTES = 1


def n_places(base3: int, line_bytes: int) -> int:
    """Return how many trits a line holds, padding included."""
    return line_bytes // BLOCK_BYTES[base3] * BLOCK_TRITS[base3]


@dataclass(frozen=True, slots=True)
class Shape:
    """How a packed plane is walked, and what the model may learn from it.

    Attributes:
        base3: 0 for four codes a byte, 1 for five
        line_bytes: bytes of a line, whole blocks
        valid: trits of a line that are weights; padding follows
        tail_lines: so many lines at the end of the plane have ``tail_valid`` instead
        tail_valid: their trits
        period: lines after which places mean other outputs; 0: never
        segment: trits that share a prediction, a power of two
        k_line: prior of a line's own rate, in flips; 0: none
        k_cross: prior of a place's own rate; 0: none
    """

    base3: int
    line_bytes: int
    valid: int
    tail_lines: int
    tail_valid: int
    period: int
    segment: int
    k_line: int = 0
    k_cross: int = 0

    def numbers(self, blind: bool) -> _flips.ShapeNumbers:
        """Return what the coder takes; ``blind`` makes it ignore the old trits."""
        lines = (self.base3, self.line_bytes, self.valid, self.tail_lines, self.tail_valid)
        return (*lines, self.period, self.segment, self.k_line, self.k_cross, int(blind))

    @property
    def has_padding(self) -> bool:
        """Say whether a line has trits that are no weights."""
        trits = n_places(self.base3, self.line_bytes)
        return self.valid < trits or (self.tail_lines > 0 and self.tail_valid < trits)

    def is_ok(self) -> bool:
        """Say whether the coder takes it."""
        return max(self.numbers(blind=False)) < 1 << 32 and _flips.shape_ok(self.numbers(False))


class CodedReader:
    """The ``CODED`` stream: makes planes and words out of old ones, in the order of the plan.

    What it yields are bytearrays, which nobody else has: to copy half a gigabyte once more would
    take a fifth of the time.

    Args:
        pieces: the stream, unpacked
        mean_gap: how many trits a flip is expected in, before anything is known
        blind: the stream was written without a look at old trits
    """

    def __init__(self, pieces: Iterable[bytes], mean_gap: int, blind: bool) -> None:
        self._reader = _flips.Reader(pieces)
        self._reader.guess(mean_gap)
        self._blind = blind

    def flips(self, old: Iterable[bytes], n_bytes: int, shape: Shape) -> Iterator[bytes]:
        """Yield the new plane; ``old`` comes in pieces of whole lines.

        Raises:
            DeltaFormatError: the stream ended early, or the old plane is none.
        """
        with _clear():
            self._reader.begin(shape.numbers(self._blind), n_bytes)
            for piece in old:
                lines = bytearray(piece)
                self._reader.flips(lines)
                yield cast(bytes, lines)

    def trits(self, sizes: Iterable[int], n_bytes: int, shape: Shape) -> Iterator[bytes]:
        """Yield a plane that comes from nothing, in pieces of the given sizes, whole lines each."""
        with _clear():
            self._reader.begin(shape.numbers(self._blind), n_bytes)
            for size in sizes:
                lines = bytearray(size)
                self._reader.trits(lines)
                yield cast(bytes, lines)

    def words(self, old: Iterable[bytes], width: int, blind: bool = False) -> Iterator[bytes]:
        """Yield new words of ``width`` bytes; ``old`` comes in pieces of whole words."""
        with _clear():
            for piece in old:
                words = bytearray(piece)
                self._reader.words(words, width, self._blind or blind)
                yield cast(bytes, words)

    def end(self) -> None:
        """Check that the stream is used up."""
        with _clear():
            self._reader.end()


@contextmanager
def _clear() -> Iterator[None]:
    try:
        yield
    except _flips.CodeError as err:
        raise DeltaFormatError(f"delta: {err}") from None
