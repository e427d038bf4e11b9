"""The plan of a container: which bytes of which file come from where.  Pure.

Numbers are unsigned LEB128::

    length, bytes         release.json of the result
    6 x (packed, raw)     lengths of the columns
    for each file of the result that the base does not have, by name:
        number of regions, then for each region its kind and
        COPY   length, skip              bytes that did not change
        FLIPS  length, skip, n, low      a plane: n flips, gaps with `low` low bytes
        BYTES  length, packed, skip, old length
                                         a block: a frame, its dictionary are the old bytes
        where `skip` is how far the old bytes lie from where the region before stopped reading
        (zigzag: 0, -1, 1, -2 ... are 0, 1, 2, 3), so that it is nearly always 0

A file whose hash and length the base has, under any name, needs no entry: it is kept (linked).
Every number has a bound and is checked against the others here, before a byte is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from ota.delta import MAX_LOW_BYTES, Column
from ota.errors import DeltaFormatError
from ota.release import MAX_RELEASE_BYTES, Release, parse_release

BLOCK_BYTES = 1 << 20  # a block and its dictionary lie in memory at once
MAX_DICTIONARY_BYTES = BLOCK_BYTES + (1 << 17)  # the old bytes around a block: 64 KiB on each side
MAX_PACKED_BLOCK_BYTES = BLOCK_BYTES + 1024  # a frame of noise is a few bytes longer than it
MAX_PLAN_BYTES = 1 << 22  # release.json at its largest, and all regions at 40 bytes each
MAX_REGIONS = 1 << 16  # a 2 B model has 900, most of them blocks of its embedding
MAX_NUMBER = 1 << 50  # every offset and length; sums of a few stay exact anywhere


class RegionKind(IntEnum):
    """How a stretch of a result file is made."""

    COPY = 0
    FLIPS = 1
    BYTES = 2


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of a result file; the fields that its kind does not have are 0."""

    kind: RegionKind
    length: int
    old_offset: int = 0
    n_flips: int = 0
    low_bytes: int = 0
    packed: int = 0
    old_length: int = 0

    @property
    def old_end(self) -> int:
        """Where it stops reading the old file."""
        reads = self.old_length if self.kind is RegionKind.BYTES else self.length
        return self.old_offset + reads


FIELDS: dict[RegionKind, tuple[str, ...]] = {
    RegionKind.COPY: ("length", "old_offset"),
    RegionKind.FLIPS: ("length", "old_offset", "n_flips", "low_bytes"),
    RegionKind.BYTES: ("length", "packed", "old_offset", "old_length"),
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
    sizes = {column: ColumnSize(numbers.take(), numbers.take()) for column in Column}
    regions: dict[str, tuple[Region, ...]] = {}
    left = MAX_REGIONS
    for name in changed_files(base, release):
        regions[name] = _take_regions(numbers, name, release, base, left)
        left -= len(regions[name])
    numbers.end()
    plan = Plan(release, sizes, regions)
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
    for column in Column:
        put_number(out, plan.sizes[column].packed)
        put_number(out, plan.sizes[column].raw)
    for regions in plan.regions.values():
        put_number(out, len(regions))
        old_end = 0
        for region in regions:
            put_number(out, region.kind)
            for field in FIELDS[region.kind]:
                value = getattr(region, field)
                put_number(out, _zigzag(value - old_end) if field == "old_offset" else value)
            old_end = region.old_end
    return bytes(out)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else ~value << 1 | 1


def _unzigzag(value: int) -> int:
    return ~(value >> 1) if value & 1 else value >> 1


def _take_regions(
    numbers: _Numbers, name: str, result: Release, base: Release | None, max_regions: int
) -> tuple[Region, ...]:
    old_bytes = base.files[name].n_bytes if base and name in base.files else 0
    regions: list[Region] = []
    old_end = 0
    for _ in range(numbers.take(max_regions)):
        regions.append(_take_region(numbers, name, old_end, old_bytes))
        old_end = regions[-1].old_end
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
    fields = {field: numbers.take() for field in FIELDS[kind]}
    fields["old_offset"] = old_end + _unzigzag(fields["old_offset"])
    region = Region(kind, **fields)
    if region.old_offset < 0 or region.old_end > old_bytes:
        raise DeltaFormatError(
            f"delta: {name}: expected {old_bytes} old bytes, "
            f"a region reads {region.old_offset} to {region.old_end}"
        )
    if not _is_bounded(region):
        raise DeltaFormatError(f"delta: {name}: a region breaks a limit: {region}")
    return region


def _is_bounded(region: Region) -> bool:
    if region.kind is RegionKind.FLIPS:
        return region.n_flips <= region.length * 4 and region.low_bytes <= MAX_LOW_BYTES
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
