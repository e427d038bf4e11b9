"""Deltas as what they are, differences: added, and turned round, without any model.  Pure; numpy.

A blind container (``Encoder(..., reversible=True)``) codes trits as steps modulo 3 and words as
moves modulo 2^b.  Decoded onto planes of zeros it gives the difference itself, and a second one
decoded onto that gives the sum.  So a chain of deltas becomes one, and a delta becomes the way
back, where only the containers and the ``release.json`` of each release are at hand.

Bytes that are neither trits nor words (texts, new tensors) are not differences: a sum takes the
newer ones, and a delta that has any has no way back.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO

from ota.container import Blob, Container
from ota.delta import Shape
from ota.encoder import BlockWriter, CodedWriter, write_container
from ota.errors import DeltaFormatError
from ota.plan import BLOCK_BYTES, Region, RegionKind, changed_files
from ota.release import Release

ZERO_TRITS = {0: b"\x55", 1: b"\x79"}  # a byte of code 1, by base3
ZERO_WORDS = b"\xff"  # every byte of the word whose place in the order of floats is 0

Scratch = Callable[[], IO[bytes]]


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of a file: ``COPY`` of the base, a difference, or ``BYTES`` as they are.

    ``data`` is empty for a copy; ``offset`` is where the base has it.
    """

    kind: RegionKind
    start: int
    length: int
    offset: int = 0
    data: bytes = b""
    shape: Shape | None = None
    width: int = 0

    @property
    def end(self) -> int:
        return self.start + self.length

    def cut(self, start: int, end: int) -> _Part:
        """Return the part of it within [start, end)."""
        start, end = max(start, self.start), min(end, self.end)
        skip = start - self.start
        if self.kind is RegionKind.FLIPS and (skip or end != self.end):
            raise _cannot("a plane was cut in two")
        data = self.data[skip : skip + end - start]
        return replace(self, start=start, length=end - start, offset=self.offset + skip, data=data)


def compose(
    first: tuple[Blob, Release],
    second: tuple[Blob, Release],
    out: IO[bytes],
    scratch: Scratch = io.BytesIO,
) -> None:
    """Write the delta from the first one's base to the second one's result.

    Args:
        first: a blind container, and the release it starts from
        second: a blind container, and the release it starts from: the first one's result
        out: where the sum goes
        scratch: opens an empty file that is read back once

    Raises:
        PayloadError: a container is broken, or the second does not start where the first ends.
        DeltaFormatError: they are not blind, or a file changed in a way that does not add up.
    """
    base = first[1]
    one, two = _open(*first), _open(*second)
    if one.release.root != second[1].root:
        raise _cannot(f"the first ends at {one.release.root}, the second starts elsewhere")
    middle = {name: list(_parts(one, name, base)) for name in one.release.files}
    _fill(one, middle, _Old({}))
    result = {name: list(_parts(two, name, one.release)) for name in two.release.files}
    _fill(two, result, _Old(middle))
    sums = {name: list(_joined(parts, name, two, middle)) for name, parts in result.items()}
    _write(out, base, two.release, sums, scratch)


def invert(delta: tuple[Blob, Release], out: IO[bytes], scratch: Scratch = io.BytesIO) -> None:
    """Write the way back: the delta from a blind container's result to its base.

    Raises:
        PayloadError: the container is broken.
        DeltaFormatError: it is not blind, or holds bytes that are no difference.
    """
    container, base = _open(*delta), delta[1]
    parts = {name: list(_parts(container, name, base)) for name in container.regions}
    _fill(container, parts, _Old({}))
    lost = set(base.files) - set(container.release.files) - set(container.kept.values())
    if lost:
        raise _cannot(f"{min(lost)} is gone from the result")
    for name, some in parts.items():
        moved = any(part.offset != part.start for part in some)
        if moved or any(part.kind is RegionKind.BYTES for part in some):
            raise _cannot(f"{name} holds bytes that are no difference")
    back = {name: some for name, some in parts.items() if name in base.files}
    _write(out, container.release, base, back, scratch, negated=True)


def _cannot(why: str) -> DeltaFormatError:
    return DeltaFormatError(f"delta: {why}; make the delta from both models instead")


def _open(blob: Blob, base: Release) -> Container:
    container = Container(blob, base)
    if container.base is None or not container.plan.is_blind:
        raise _cannot("expected a delta that was made with --reversible")
    return container


def _parts(container: Container, name: str, base: Release) -> Iterator[_Part]:
    """Yield what a file of the result is made of; data is filled in later."""
    length = container.release.files[name].n_bytes
    if name not in container.regions:
        if container.kept[name] != name:
            raise _cannot(f"{name} was {container.kept[name]} before")
        yield _Part(RegionKind.COPY, 0, length)
        return
    start = 0
    for region in container.regions[name]:
        yield _part_of(container, region, start)
        start += region.length


def _part_of(container: Container, region: Region, start: int) -> _Part:
    shape = container.plan.shapes[region.shape] if region.kind is RegionKind.FLIPS else None
    whole = {RegionKind.TRITS, RegionKind.NEW, RegionKind.BYTES}
    kind = RegionKind.BYTES if region.kind in whole else region.kind
    offset = start if kind is RegionKind.BYTES else region.old_offset
    return _Part(kind, start, region.length, offset, b"", shape, region.width)


class _Old:
    """What a container is decoded onto: differences and bytes where there are any, else zeros."""

    def __init__(self, files: dict[str, list[_Part]]) -> None:
        self._files = files
        self._zero = b"\0"

    def expect(self, part: _Part) -> None:
        """Say what the next reads are for."""
        self._zero = zero_of(part)

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        pieces, end = [], offset + length
        for part in self._files.get(name, []):
            if part.end <= offset or part.start >= end:
                continue
            start, stop = max(part.start, offset), min(part.end, end)
            if part.kind is RegionKind.COPY:
                pieces.append(self._zero * (stop - start))
            else:
                pieces.append(part.data[start - part.start : stop - part.start])
        return b"".join(pieces) or self._zero * length


def zero_of(part: _Part) -> bytes:
    """Return the byte of which the zero of a difference is made."""
    return ZERO_WORDS if part.shape is None else ZERO_TRITS[part.shape.base3]


def _fill(container: Container, files: dict[str, list[_Part]], old: _Old) -> None:
    """Decode all regions onto ``old`` and put them into their parts."""
    made = container.make_regions(old)
    for name in container.regions:
        for k, part in enumerate(files[name]):
            if part.kind is not RegionKind.COPY:
                old.expect(part)
                files[name][k] = replace(part, data=next(made)[2])
    for _ in made:  # checks the ends of the columns
        pass


def _joined(
    parts: list[_Part], name: str, two: Container, middle: dict[str, list[_Part]]
) -> Iterator[_Part]:
    """Express what the second container made in terms of the first one's base."""
    for part in parts:
        if part.kind is RegionKind.BYTES:
            yield part
            continue
        start, end = part.offset, part.offset + part.length
        for under in middle[name]:
            if under.end > start and under.start < end:
                yield _sum(under.cut(start, end), part, part.start - part.offset)


def _sum(under: _Part, over: _Part, shift: int) -> _Part:
    """Return ``over`` on top of ``under``; the data of ``over`` has ``under`` in it already."""
    start = under.start + shift
    if over.kind is RegionKind.COPY:
        return replace(under, start=start)
    data = over.data[start - over.start :][: under.length]
    if under.kind is RegionKind.BYTES:
        return _Part(RegionKind.BYTES, start, under.length, start, data)
    if under.kind is RegionKind.COPY:
        if over.kind is RegionKind.FLIPS and under.length != over.length:
            raise _cannot("a plane was cut in two")
        return replace(over, start=start, length=under.length, offset=under.offset, data=data)
    if under.kind is not over.kind or under.width != over.width:
        raise _cannot("a tensor changed its type")
    shape = _both(under.shape, over.shape)
    return replace(under, start=start, data=data, shape=shape)


def _both(first: Shape | None, second: Shape | None) -> Shape | None:
    """Return a shape that covers the flips of both."""
    if first is None or second is None:
        return None
    if first.base3 != second.base3:
        raise _cannot("a plane changed its layout")
    if first.line_bytes != second.line_bytes:
        return _without_padding(first, second)
    valid = max(first.valid, second.valid)
    tails = {(first.tail_lines), (second.tail_lines)}
    if len(tails) > 1:
        return replace(first, valid=valid, tail_lines=0, tail_valid=0)
    return replace(first, valid=valid, tail_valid=max(first.tail_valid, second.tail_valid))


def _without_padding(first: Shape, second: Shape) -> Shape:
    """Return the shape that covers every trit, where lines are of different lengths."""
    for shape in (first, second):
        if not shape.has_padding:
            return shape
    raise _cannot("a plane changed its layout")


def _write(
    out: IO[bytes],
    base: Release,
    result: Release,
    files: dict[str, list[_Part]],
    scratch: Scratch,
    *,
    negated: bool = False,
) -> None:
    coded, blocks = CodedWriter(scratch(), True), BlockWriter(scratch())
    regions = {
        name: tuple(r for part in files[name] for r in _encode(part, coded, blocks, negated))
        for name in changed_files(base, result)
    }
    write_container(out, base, result, coded, blocks, regions)


def _encode(
    part: _Part, coded: CodedWriter, blocks: BlockWriter, negated: bool
) -> Iterator[Region]:
    if part.kind is RegionKind.BYTES:
        for at in range(0, part.length, BLOCK_BYTES):
            block = part.data[at : at + BLOCK_BYTES]
            yield Region(RegionKind.BYTES, len(block), packed=blocks.write(block, b""))
        return
    zero = zero_of(part) * part.length
    if part.kind is RegionKind.COPY or part.data == zero:
        yield Region(RegionKind.COPY, part.length, part.offset)
        return
    old, new = (part.data, zero) if negated else (zero, part.data)
    if part.shape is not None:
        number = coded.flips(old, new, part.shape)
        yield Region(RegionKind.FLIPS, part.length, part.offset, shape=number)
    else:
        coded.words(old, new, part.width)
        yield Region(RegionKind.WORDS, part.length, part.offset, width=part.width)
