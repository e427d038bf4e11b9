"""The plan of a container: which bytes of which file come from where.  Pure.

Numbers are unsigned LEB128::

    flags                 1: blind, the coded stream does not depend on the base
                          2: hollow, the release.json has hashes to be filled in (ota.hollow)
    length, bytes         release.json of the result
    e                     the coder first expects a flip in 2^e trits
    length of the column CODED
    number of shapes, then for each
        fields            1: base 3; then which of the last six numbers it has: 2, 4 ... 64
        line bytes / 32, log2 of segment
        valid, tail lines, tail valid, period, k_line, k_cross
                          the others are 0, but `valid` is then all trits of a line
    for each file of the result, by name: 0 if the base has it (same hash and length, any name), or
        1 + number of regions, then for each region its kind, + 8 if `skip` is not 0, and
        COPY   length, skip              bytes that did not change
        FLIPS  length, skip, shape       a plane of which trits changed
        BYTES  length, packed, skip, old length
                                         a block: a frame, its dictionary are the old bytes
        TRITS  length, shape             a plane that comes from nothing
        WORDS  length, skip, width       words that moved a little; floats, mostly
        NEW    length, width             words that come from nothing
        where `skip` is how far the old bytes lie from where the region before stopped reading
        (zigzag: -1, 1, -2 ... are 1, 2, 3); it is nearly always 0, and then left out

Every number has a bound and is checked against the others here, before a byte is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from ota.delta import WORD_WIDTHS, Column, Shape, n_places
from ota.errors import DeltaFormatError
from ota.hollow import draft_of
from ota.release import MAX_RELEASE_BYTES, Release, parse_hollow, parse_release

BLOCK_BYTES = 1 << 20  # a block and its dictionary lie in memory at once
MAX_DICTIONARY_BYTES = BLOCK_BYTES + (1 << 17)  # the old bytes around a block: 64 KiB on each side
MAX_PACKED_BLOCK_BYTES = BLOCK_BYTES + 1024  # a frame of noise is a few bytes longer than it
MAX_PLAN_BYTES = 1 << 22  # release.json at its largest, and all regions at 40 bytes each
MAX_REGIONS = 1 << 16  # a 2 B model has 900, most of them blocks of its embedding
MAX_SHAPES = 1 << 10  # a model has a handful; one rate of flips more makes another
MAX_SHAPE_NUMBER = (1 << 32) - 1
SHAPE_FIELDS = ("valid", "tail_lines", "tail_valid", "period", "k_line", "k_cross")
LINE_UNIT = 32  # bytes of the smallest block
MAX_SEGMENT_LOG = 16
MAX_GAP_LOG = 29  # of the coder's bound on counts
HAS_SKIP = 8
FLAG_BLIND = 1
FLAG_HOLLOW = 2
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
class Plan:
    """Everything a container says about its result.

    ``release`` is a draft where ``is_hollow``: the files to be made have the hash ``UNKNOWN``, and
    the text has hashes to be filled in.
    """

    release: Release
    n_coded: int
    shapes: tuple[Shape, ...]
    mean_gap: int
    is_blind: bool
    regions: Mapping[str, tuple[Region, ...]]
    """The files that are not kept, in the order of the container."""

    is_hollow: bool = False

    def sizes(self) -> dict[Column, int]:
        """Return how many bytes of the container each column is."""
        blocks = sum(region.packed for regions in self.regions.values() for region in regions)
        return {Column.CODED: self.n_coded, Column.BYTES: blocks}


def kept_files(base: Release | None, result: Release) -> dict[str, str]:
    """Map each result file that the base already has to its name in the base."""
    have = {} if base is None else {entry: name for name, entry in base.files.items()}
    return {name: have[entry] for name, entry in result.files.items() if entry in have}


def changed_files(base: Release | None, result: Release) -> list[str]:
    """Return the result files that the base does not have, in the order of the container."""
    kept = kept_files(base, result)
    return sorted((name for name in result.files if name not in kept), key=str.encode)


def parse_plan(data: bytes, base: Release | None, root: str) -> Plan:
    """Read a plan.

    Args:
        data: the plan, unpacked
        base: the release it starts from; None for a full image
        root: what the container says about its result

    Raises:
        DeltaFormatError, ReleaseFormatError: it breaks a rule.
    """
    numbers = _Numbers(data)
    flags = numbers.take(FLAG_BLIND | FLAG_HOLLOW)
    is_hollow = bool(flags & FLAG_HOLLOW)
    text = numbers.take_bytes(MAX_RELEASE_BYTES)
    release = parse_hollow(text) if is_hollow else parse_release(text)
    mean_gap = 1 << numbers.take(MAX_GAP_LOG)
    n_coded = numbers.take()
    shapes = tuple(_take_shape(numbers) for _ in range(numbers.take(MAX_SHAPES)))
    regions = _take_files(numbers, release, base, shapes)
    numbers.end()
    if is_hollow:
        release = draft_of(text, root, regions)
    if release.root != root:
        raise DeltaFormatError(f"delta: expected a result {root}, its plan says {release.root}")
    expected = changed_files(base, release)
    if list(regions) != expected:
        odd = sorted({*regions} ^ {*expected})[:5]
        raise DeltaFormatError(f"delta: expected files that are kept or made, check {odd}")
    return Plan(release, n_coded, shapes, mean_gap, bool(flags & FLAG_BLIND), regions, is_hollow)


def _take_files(
    numbers: _Numbers, release: Release, base: Release | None, shapes: Sequence[Shape]
) -> dict[str, tuple[Region, ...]]:
    regions: dict[str, tuple[Region, ...]] = {}
    left = MAX_REGIONS
    for name in sorted(release.files, key=str.encode):
        count = numbers.take(left + 1)
        if count:
            regions[name] = _take_regions(numbers, name, release, base, count - 1, shapes)
            left -= count - 1
    return regions


def put_number(out: bytearray, value: int) -> None:
    """Append ``value`` as the plan writes numbers."""
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def pack_plan(plan: Plan) -> bytes:
    """Write a plan; ``parse_plan`` reads it."""
    out = bytearray()
    put_number(out, FLAG_BLIND * plan.is_blind | FLAG_HOLLOW * plan.is_hollow)
    put_number(out, len(plan.release.text))
    out += plan.release.text
    for value in (plan.mean_gap.bit_length() - 1, plan.n_coded, len(plan.shapes)):
        put_number(out, value)
    for shape in plan.shapes:
        _put_shape(out, shape)
    for name in sorted(plan.release.files, key=str.encode):
        if name in plan.regions:
            _put_regions(out, plan.regions[name])
        else:
            put_number(out, 0)
    return bytes(out)


def _put_regions(out: bytearray, regions: Sequence[Region]) -> None:
    put_number(out, 1 + len(regions))
    old_end = 0
    for region in regions:
        values = {field: getattr(region, field) for field in FIELDS[region.kind]}
        skip = _zigzag(values["old_offset"] - old_end) if "old_offset" in values else 0
        put_number(out, region.kind | HAS_SKIP * (skip != 0))
        for field, value in values.items():
            if field != "old_offset":
                put_number(out, value)
            elif skip:
                put_number(out, skip)
        old_end = region.old_end or old_end


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else ~value << 1 | 1


def _unzigzag(value: int) -> int:
    return ~(value >> 1) if value & 1 else value >> 1


def _put_shape(out: bytearray, shape: Shape) -> None:
    values = {field: getattr(shape, field) for field in SHAPE_FIELDS}
    if shape.valid == n_places(shape.base3, shape.line_bytes):
        values["valid"] = 0
    fields = shape.base3 | sum(2 << k for k, value in enumerate(values.values()) if value)
    numbers = fields, shape.line_bytes // LINE_UNIT, shape.segment.bit_length() - 1
    for value in (*numbers, *filter(None, values.values())):
        put_number(out, value)


def _take_shape(numbers: _Numbers) -> Shape:
    fields = numbers.take(2 ** (1 + len(SHAPE_FIELDS)) - 1)
    base3, line_bytes = fields & 1, numbers.take(MAX_SHAPE_NUMBER) * LINE_UNIT
    segment = 1 << numbers.take(MAX_SEGMENT_LOG)
    values = {
        field: numbers.take(MAX_SHAPE_NUMBER) if fields & 2 << k else 0
        for k, field in enumerate(SHAPE_FIELDS)
    }
    values["valid"] = values["valid"] or n_places(base3, line_bytes)
    shape = Shape(base3=base3, line_bytes=line_bytes, segment=segment, **values)
    if not shape.is_ok():
        raise DeltaFormatError(f"delta: a shape breaks a limit: {shape}")
    return shape


def _take_regions(
    numbers: _Numbers,
    name: str,
    result: Release,
    base: Release | None,
    n_regions: int,
    shapes: Sequence[Shape],
) -> tuple[Region, ...]:
    old_bytes = base.files[name].n_bytes if base and name in base.files else 0
    regions: list[Region] = []
    old_end = 0
    for _ in range(n_regions):
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
    has_skip, code = code & HAS_SKIP, code & ~HAS_SKIP
    if code not in FIELDS or (has_skip and "old_offset" not in FIELDS[RegionKind(code)]):
        raise DeltaFormatError(f"delta: {name}: unknown kind of region {code | has_skip}")
    kind = RegionKind(code)
    values = {
        field: numbers.take() if field != "old_offset" or has_skip else 0 for field in FIELDS[kind]
    }
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
