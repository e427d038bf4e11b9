"""The plan of a container: which bytes of which file come from where.  Pure.

Numbers are unsigned LEB128::

    length, bytes         release.json of the result
    flags                 1: blind, the coded stream does not depend on the base
    mean gap              trits that the coder first expects a flip in
    2 x (packed, raw)     lengths of the columns
    number of shapes, then for each the nine numbers of ota.delta.Shape, in its order
    for each file of the result that the base does not have, by name:
        number of regions, then for each region its kind and
        COPY   length, skip              bytes that did not change
        FLIPS  length, skip, shape       a plane of which trits changed
        BYTES  length, packed, skip, old length
                                         a block: a frame, its dictionary are the old bytes
        TRITS  length, shape             a plane that comes from nothing
        WORDS  length, skip, width       words that moved a little; floats, mostly
        NEW    length, width             words that come from nothing
        where `skip` is how far the old bytes lie from where the region before stopped reading
        (zigzag: 0, -1, 1, -2 ... are 0, 1, 2, 3), so that it is nearly always 0

A file whose hash and length the base has, under any name, needs no entry: it is kept (linked).
Every number has a bound and is checked against the others here, before a byte is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from enum import IntEnum

from ota.delta import WORD_WIDTHS, Column, Shape
from ota.errors import DeltaFormatError
from ota.release import MAX_RELEASE_BYTES, Release, parse_release

BLOCK_BYTES = 1 << 20  # a block and its dictionary lie in memory at once
MAX_DICTIONARY_BYTES = BLOCK_BYTES + (1 << 17)  # the old bytes around a block: 64 KiB on each side
MAX_PACKED_BLOCK_BYTES = BLOCK_BYTES + 1024  # a frame of noise is a few bytes longer than it
MAX_PLAN_BYTES = 1 << 22  # release.json at its largest, and all regions at 40 bytes each
MAX_REGIONS = 1 << 16  # a 2 B model has 900, most of them blocks of its embedding
MAX_SHAPES = 1 << 10  # a model has a handful; one rate of flips more makes another
MAX_SHAPE_NUMBER = (1 << 32) - 1
FLAG_BLIND = 1
MAX_NUMBER = 1 << 50  # every offset and length; sums of a few stay exact anywhere


class RegionKind(IntEnum):
    """How a stretch of a result file is made."""

    COPY = 0
    FLIPS = 1
    BYTES = 2
    TRITS = 3
    WORDS = 4
    NEW = 5


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of a result file; the fields that its kind does not have are 0."""

    kind: RegionKind
    length: int
    old_offset: int = 0
    shape: int = 0
    width: int = 0
    packed: int = 0
    old_length: int = 0

    @property
    def old_end(self) -> int:
        """Where it stops reading the old file."""
        if self.kind is RegionKind.BYTES:
            return self.old_offset + self.old_length
        return self.old_offset + (self.length if "old_offset" in FIELDS[self.kind] else 0)


FIELDS: dict[RegionKind, tuple[str, ...]] = {
    RegionKind.COPY: ("length", "old_offset"),
    RegionKind.FLIPS: ("length", "old_offset", "shape"),
    RegionKind.BYTES: ("length", "packed", "old_offset", "old_length"),
    RegionKind.TRITS: ("length", "shape"),
    RegionKind.WORDS: ("length", "old_offset", "width"),
    RegionKind.NEW: ("length", "width"),
}
"""The numbers of a region, in the order of the plan; ``old_offset`` is written as `skip`."""


@dataclass(frozen=True, slots=True)
class ColumnSize:
    """Length of a column in the container, and unpacked."""

    packed: int
    raw: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a container says about its result."""

    release: Release
    sizes: Mapping[Column, ColumnSize]
    shapes: tuple[Shape, ...]
    mean_gap: int
    is_blind: bool
    regions: Mapping[str, tuple[Region, ...]]
    """The files that are not kept, in the order of the container."""

    def blocks_size(self) -> ColumnSize:
        """Return what the ``BYTES`` column must be, going by the regions."""
        blocks = [
            region
            for regions in self.regions.values()
            for region in regions
            if region.kind is RegionKind.BYTES
        ]
        return ColumnSize(sum(b.packed for b in blocks), sum(b.length for b in blocks))


def kept_files(base: Release | None, result: Release) -> dict[str, str]:
    """Map each result file that the base already has to its name in the base."""
    have = {} if base is None else {entry: name for name, entry in base.files.items()}
    return {name: have[entry] for name, entry in result.files.items() if entry in have}


def changed_files(base: Release | None, result: Release) -> list[str]:
    """Return the result files that the base does not have, in the order of the container."""
    kept = kept_files(base, result)
    return sorted((name for name in result.files if name not in kept), key=str.encode)


def parse_plan(data: bytes, base: Release | None) -> Plan:
    """Read a plan.

    Args:
        data: the plan, unpacked
        base: the release it starts from; None for a full image

    Raises:
        DeltaFormatError, ReleaseFormatError: it breaks a rule.
    """
    numbers = _Numbers(data)
    release = parse_release(numbers.take_bytes(MAX_RELEASE_BYTES))
    is_blind = numbers.take(FLAG_BLIND) == FLAG_BLIND
    mean_gap = numbers.take()
    sizes = {column: ColumnSize(numbers.take(), numbers.take()) for column in Column}
    shapes = tuple(_take_shape(numbers) for _ in range(numbers.take(MAX_SHAPES)))
    regions: dict[str, tuple[Region, ...]] = {}
    left = MAX_REGIONS
    for name in changed_files(base, release):
        regions[name] = _take_regions(numbers, name, release, base, left, shapes)
        left -= len(regions[name])
    numbers.end()
    plan = Plan(release, sizes, shapes, mean_gap, is_blind, regions)
    if plan.blocks_size() != sizes[Column.BYTES]:
        raise DeltaFormatError(
            f"delta: expected blocks of {plan.blocks_size()}, got {sizes[Column.BYTES]}"
        )
    return plan


def put_number(out: bytearray, value: int) -> None:
    """Append ``value`` as the plan writes numbers."""
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def pack_plan(plan: Plan) -> bytes:
    """Write a plan; ``parse_plan`` reads it."""
    out = bytearray()
    put_number(out, len(plan.release.text))
    out += plan.release.text
    put_number(out, FLAG_BLIND if plan.is_blind else 0)
    put_number(out, plan.mean_gap)
    for column in Column:
        put_number(out, plan.sizes[column].packed)
        put_number(out, plan.sizes[column].raw)
    put_number(out, len(plan.shapes))
    for shape in plan.shapes:
        for value in astuple(shape):
            put_number(out, value)
    for regions in plan.regions.values():
        put_number(out, len(regions))
        old_end = 0
        for region in regions:
            put_number(out, region.kind)
            for field in FIELDS[region.kind]:
                value = getattr(region, field)
                put_number(out, _zigzag(value - old_end) if field == "old_offset" else value)
            old_end = region.old_end or old_end
    return bytes(out)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else ~value << 1 | 1


def _unzigzag(value: int) -> int:
    return ~(value >> 1) if value & 1 else value >> 1


def _take_shape(numbers: _Numbers) -> Shape:
    shape = Shape(*(numbers.take(MAX_SHAPE_NUMBER) for _ in fields(Shape)))
    if not shape.is_ok():
        raise DeltaFormatError(f"delta: a shape breaks a limit: {shape}")
    return shape


def _take_regions(
    numbers: _Numbers,
    name: str,
    result: Release,
    base: Release | None,
    max_regions: int,
    shapes: Sequence[Shape],
) -> tuple[Region, ...]:
    old_bytes = base.files[name].n_bytes if base and name in base.files else 0
    regions: list[Region] = []
    old_end = 0
    for _ in range(numbers.take(max_regions)):
        region = _take_region(numbers, name, old_end, old_bytes)
        if not _is_bounded(region, shapes):
            raise DeltaFormatError(f"delta: {name}: a region breaks a limit: {region}")
        regions.append(region)
        old_end = region.old_end or old_end
    n_bytes = sum(region.length for region in regions)
    if n_bytes != result.files[name].n_bytes:
        raise DeltaFormatError(
            f"delta: {name}: expected {result.files[name].n_bytes} bytes, regions make {n_bytes}"
        )
    return tuple(regions)


def _take_region(numbers: _Numbers, name: str, old_end: int, old_bytes: int) -> Region:
    code = numbers.take()
    if code not in FIELDS:
        raise DeltaFormatError(f"delta: {name}: unknown kind of region {code}")
    kind = RegionKind(code)
    values = {field: numbers.take() for field in FIELDS[kind]}
    if "old_offset" in values:
        values["old_offset"] = old_end + _unzigzag(values["old_offset"])
    region = Region(kind, **values)
    if region.old_offset < 0 or region.old_end > old_bytes:
        raise DeltaFormatError(
            f"delta: {name}: expected {old_bytes} old bytes, "
            f"a region reads {region.old_offset} to {region.old_end}"
        )
    return region


def _is_bounded(region: Region, shapes: Sequence[Shape]) -> bool:
    if region.kind in (RegionKind.FLIPS, RegionKind.TRITS):
        if region.shape >= len(shapes):
            return False
        shape = shapes[region.shape]
        n_lines, rest = divmod(region.length, shape.line_bytes)
        return rest == 0 and shape.tail_lines <= n_lines
    if region.kind in (RegionKind.WORDS, RegionKind.NEW):
        return region.width in WORD_WIDTHS and region.length % region.width == 0
    if region.kind is RegionKind.BYTES:
        return (
            region.length <= BLOCK_BYTES
            and region.old_length <= MAX_DICTIONARY_BYTES
            and region.packed <= MAX_PACKED_BLOCK_BYTES
        )
    return True


class _Numbers:
    """The plan, read number by number."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, limit: int = MAX_NUMBER) -> int:
        value = shift = 0
        while True:
            if self._at >= len(self._data) or shift > 56:
                raise DeltaFormatError(f"delta: the plan ends inside a number at {self._at}")
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        if value > limit:
            raise DeltaFormatError(f"delta: expected a number up to {limit}, got {value}")
        return value

    def take_bytes(self, limit: int) -> bytes:
        length = self.take(limit)
        data = self._data[self._at : self._at + length]
        if len(data) != length:
            raise DeltaFormatError(f"delta: the plan ends inside {length} bytes")
        self._at += length
        return data

    def end(self) -> None:
        if self._at != len(self._data):
            raise DeltaFormatError(f"delta: plan of {len(self._data)} bytes, used {self._at}")
