"""The ``.etd`` container: a delta from one model to another, or a whole model.  Pure.

Layout, integers little-endian::

    0    "ETD" 0x01
    4    u32   length of the plan, raw
    8    u32   length of the plan, packed
    12   32 B  root of the base; zeros: no base, this is a full image
    44   32 B  root of the result
    76         the plan, one zstd frame; dictionary: the base's release.json
               then the columns of ota.delta, one after the other:
               five of them one zstd frame each, BYTES a frame a block

Plan, numbers are unsigned LEB128::

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

A file whose hash and length the base has, under any name, needs no entry: it is kept (hard-linked).

Laws: the base is checked before anything else is believed.  Every declared number has a bound and is
checked against the others before a byte is produced.  Memory is bounded by ``PIECE_BYTES``,
``BLOCK_BYTES`` and ``WINDOW_BYTES``, never by a declared number.  Each result file is hashed as it
comes out.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import IO, Protocol, cast

import zstandard

from ota.delta import FLIP_COLUMNS, MAX_LOW_BYTES, Column, FlipReader, bits_of
from ota.errors import DeltaFormatError, PayloadMismatch, WrongBase
from ota.release import MAX_RELEASE_BYTES, FileEntry, Release, parse_release

MAGIC = b"ETD\x01"
HEADER = struct.Struct("<4sII32s32s")
NO_BASE = bytes(32)
WINDOW_BYTES = 1 << 20  # what a decoder must hold for each open frame; six are open at most
BLOCK_BYTES = 1 << 20  # a block and its dictionary lie in memory at once
MAX_DICTIONARY_BYTES = BLOCK_BYTES + (1 << 17)  # the old bytes around a block: 64 KiB on each side
PIECE_BYTES = 1 << 18  # of a plane in memory: a few pieces fit a small core's cache
READ_BYTES = 1 << 16  # what is unpacked at once from a column
MAX_PLAN_BYTES = 1 << 22  # release.json at its largest, and all regions at 40 bytes each
MAX_REGIONS = 1 << 16  # a 2 B model has 900, most of them blocks of its embedding
FRAME_HEADER_BYTES = 18  # the longest header of a zstd frame (RFC 8878 section 3.1.1)
MAX_NUMBER = 1 << 50  # every offset and length; sums of a few stay exact anywhere


class Blob(Protocol):
    """Bytes that can be read anywhere."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``; fewer only at the end."""
        ...


class Files(Protocol):
    """The files of one model directory."""

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes of file ``name`` from ``offset``; fewer only at the end."""
        ...


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


def kept_files(base: Release | None, result: Release) -> dict[str, str]:
    """Map each result file that the base already has to its name in the base."""
    have = {} if base is None else {entry: name for name, entry in base.files.items()}
    return {name: have[entry] for name, entry in result.files.items() if entry in have}


def changed_files(base: Release | None, result: Release) -> list[str]:
    """Return the result files that the base does not have, in the order of the container."""
    kept = kept_files(base, result)
    return sorted((name for name in result.files if name not in kept), key=str.encode)


class Container:
    """An opened container: its plan is read and checked, and its files can be made.

    Args:
        blob: the container
        base: the release that is here; None if there is none

    Raises:
        WrongBase: the container starts from another model.
        DeltaFormatError, ReleaseFormatError: it breaks a rule.
    """

    def __init__(self, blob: Blob, base: Release | None) -> None:
        header = blob.read_at(0, HEADER.size)
        if len(header) != HEADER.size or not header.startswith(MAGIC):
            raise DeltaFormatError(f"delta: expected a container, got {header[:4]!r}")
        _, n_plan, n_packed, base_root, root = HEADER.unpack(header)
        self.base = _check_base(base_root, base)
        if max(n_plan, n_packed) > MAX_PLAN_BYTES:
            raise DeltaFormatError(f"delta: plan of {n_plan} bytes, at most {MAX_PLAN_BYTES}")
        plan = _Numbers(
            unpack_frame(
                blob.read_at(HEADER.size, n_packed), n_plan, self.base.text if self.base else b""
            )
        )
        self.release = parse_release(plan.take_bytes(MAX_RELEASE_BYTES))
        if self.release.root != root.hex():
            raise DeltaFormatError(
                f"delta: expected a result {root.hex()}, its plan says {self.release.root}"
            )
        self.sizes = {column: ColumnSize(plan.take(), plan.take()) for column in Column}
        self.regions: dict[str, tuple[Region, ...]] = {}
        left = MAX_REGIONS
        for name in changed_files(self.base, self.release):
            self.regions[name] = _take_regions(plan, name, self.release, self.base, left)
            left -= len(self.regions[name])
        plan.end()
        self._blob = blob
        self._check_sums(HEADER.size + n_packed)

    @property
    def kept(self) -> dict[str, str]:
        """Result files that are links to base files: result name to base name."""
        return kept_files(self.base, self.release)

    @property
    def written_bytes(self) -> int:
        """How much of the result is written rather than linked."""
        return sum(self.release.files[name].n_bytes for name in self.regions)

    def make(self, old: Files) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Yield every changed file as its name and its pieces; pieces must be used up in order.

        Raises:
            PayloadMismatch: a file came out with another hash than the release names.
            DeltaFormatError: a column ended early, late, or breaks a rule.
        """
        starts = self._starts
        columns = {
            column: _ColumnReader(self._blob, starts[column], self.sizes[column])
            for column in FLIP_COLUMNS
        }
        flips = FlipReader(
            {
                Column.GAP_HIGH: columns[Column.GAP_HIGH].values(),
                Column.GAP_MID: columns[Column.GAP_MID].values(),
                Column.GAP_LOW: columns[Column.GAP_LOW].values(),
                Column.SIGN: bits_of(columns[Column.SIGN].chunks()),
                Column.FATE: bits_of(columns[Column.FATE].chunks()),
            }
        )
        blocks = _BlockReader(self._blob, starts[Column.BYTES])
        for name, regions in self.regions.items():
            source = _OldFile(old, name)
            pieces = _make_file(regions, source, flips, blocks)
            yield name, _hashed(name, self.release.files[name], pieces)
        for reader in columns.values():
            reader.end()

    def _check_sums(self, start: int) -> None:
        self._starts = {}
        for column, size in self.sizes.items():
            self._starts[column] = start
            start += size.packed
        if len(self._blob.read_at(start - 1, 2)) != 1:
            raise DeltaFormatError(
                f"delta: expected {start} bytes, the container has another length"
            )
        blocks = [
            region
            for regions in self.regions.values()
            for region in regions
            if region.kind is RegionKind.BYTES
        ]
        declared = ColumnSize(sum(b.packed for b in blocks), sum(b.length for b in blocks))
        if declared != self.sizes[Column.BYTES]:
            raise DeltaFormatError(f"delta: expected blocks of {declared}, got {self.sizes}")


def _check_base(base_root: bytes, base: Release | None) -> Release | None:
    """Return what the decoder may read old bytes from: nothing for a full image."""
    if base_root == NO_BASE:
        return None
    if base is None or base.root != base_root.hex():
        here = base.root if base else "no model"
        raise WrongBase(
            f"delta: expected base {base_root.hex()}, here is {here}; fetch the full image"
        )
    return base


def _take_regions(
    plan: _Numbers, name: str, result: Release, base: Release | None, max_regions: int
) -> tuple[Region, ...]:
    old_bytes = base.files[name].n_bytes if base and name in base.files else 0
    regions: list[Region] = []
    old_end = 0
    for _ in range(plan.take(max_regions)):
        regions.append(_take_region(plan, name, old_end, old_bytes))
        old_end = regions[-1].old_end
    n_bytes = sum(region.length for region in regions)
    if n_bytes != result.files[name].n_bytes:
        raise DeltaFormatError(
            f"delta: {name}: expected {result.files[name].n_bytes} bytes, its regions make {n_bytes}"
        )
    return tuple(regions)


def _take_region(plan: _Numbers, name: str, old_end: int, old_bytes: int) -> Region:
    code = plan.take()
    if code not in FIELDS:
        raise DeltaFormatError(f"delta: {name}: unknown kind of region {code}")
    kind = RegionKind(code)
    numbers = {field: plan.take() for field in FIELDS[kind]}
    numbers["old_offset"] = old_end + _unzigzag(numbers["old_offset"])
    region = Region(kind, **numbers)
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
        # A frame of incompressible bytes is a few bytes longer than they are.
        return (
            region.length <= BLOCK_BYTES
            and region.old_length <= MAX_DICTIONARY_BYTES
            and region.packed <= BLOCK_BYTES + 1024
        )
    return True


def _make_file(
    regions: tuple[Region, ...], source: _OldFile, flips: FlipReader, blocks: _BlockReader
) -> Iterator[bytes]:
    for region in regions:
        if region.kind is RegionKind.COPY:
            yield from source.pieces(region.old_offset, region.length)
        elif region.kind is RegionKind.FLIPS:
            old = source.pieces(region.old_offset, region.length)
            yield from flips.apply(old, region.length, region.n_flips, region.low_bytes)
        else:
            dictionary = source.read(region.old_offset, region.old_length)
            yield blocks.take(region.packed, region.length, dictionary)


def _hashed(name: str, entry: FileEntry, pieces: Iterator[bytes]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != entry.sha256:
        raise PayloadMismatch(
            f"{name}: expected sha256 {entry.sha256}, got {digest.hexdigest()}; fetch the full image"
        )


class _OldFile:
    """One file of the base, read in pieces."""

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self._name = name

    def read(self, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        data = self._files.read_at(self._name, offset, length)
        if len(data) != length:
            raise WrongBase(f"{self._name}: expected {length} bytes at {offset}, got {len(data)}")
        return data

    def pieces(self, offset: int, length: int) -> Iterator[bytes]:
        end = offset + length
        while offset < end:
            piece = self.read(offset, min(PIECE_BYTES, end - offset))
            offset += len(piece)
            yield piece


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


class _Cursor:
    """Reads a stretch of the container as a file would."""

    def __init__(self, blob: Blob, start: int, length: int) -> None:
        self._blob = blob
        self._at = start
        self._end = start + length

    def read(self, size: int = -1) -> bytes:
        left = self._end - self._at
        data = self._blob.read_at(self._at, left if size < 0 else min(size, left))
        self._at += len(data)
        return data


class _ColumnReader:
    """Unpacks one column, never more than ``READ_BYTES`` at a time."""

    def __init__(self, blob: Blob, start: int, size: ColumnSize) -> None:
        self._size = size
        self._left = size.raw
        _check_column_head(blob.read_at(start, min(size.packed, FRAME_HEADER_BYTES)), size)
        source = cast(IO[bytes], _Cursor(blob, start, size.packed))  # only read() is called
        self._reader = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).stream_reader(
            source, read_size=READ_BYTES
        )

    def chunks(self) -> Iterator[bytes]:
        while self._left:
            chunk = _checked_read(self._reader, min(READ_BYTES, self._left))
            if not chunk:
                return
            self._left -= len(chunk)
            yield chunk

    def values(self) -> Iterator[int]:
        for chunk in self.chunks():
            yield from chunk

    def end(self) -> None:
        """Check that the column is used up; this also makes zstd check the frame's checksum."""
        if self._left or (self._size.packed and _checked_read(self._reader, 1)):
            raise DeltaFormatError(f"delta: {self._left} of {self._size.raw} bytes were not used")


class _BlockReader:
    """Unpacks the frames of the ``BYTES`` column one by one."""

    def __init__(self, blob: Blob, start: int) -> None:
        self._blob = blob
        self._at = start

    def take(self, n_packed: int, length: int, dictionary: bytes) -> bytes:
        frame = self._blob.read_at(self._at, n_packed)
        self._at += n_packed
        return unpack_frame(frame, length, dictionary)


def unpack_frame(frame: bytes, length: int, dictionary: bytes) -> bytes:
    """Unpack one whole zstd frame that must hold ``length`` bytes.

    Raises:
        DeltaFormatError: it holds another length, has no checksum, or is damaged.
    """
    try:
        head = zstandard.get_frame_parameters(frame)
        if head.content_size != length or not head.has_checksum:
            raise DeltaFormatError(
                f"delta: expected a checked frame of {length} bytes, got {head.content_size}"
            )
        return unpacker(dictionary).decompress(frame, max_output_size=length)
    except zstandard.ZstdError as err:
        raise DeltaFormatError(f"delta: damaged frame of {len(frame)} bytes: {err}") from None


def unpacker(dictionary: bytes) -> zstandard.ZstdDecompressor:
    """Return a bounded unpacker with ``dictionary`` as raw content."""
    if not dictionary:
        return zstandard.ZstdDecompressor(max_window_size=2 * BLOCK_BYTES)
    content = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdDecompressor(dict_data=content, max_window_size=2 * BLOCK_BYTES)


def _checked_read(reader: zstandard.ZstdDecompressionReader, size: int) -> bytes:
    try:
        data: bytes = reader.read(size)
    except zstandard.ZstdError as err:
        raise DeltaFormatError(f"delta: damaged column: {err}") from None
    return data


def _check_column_head(head: bytes, size: ColumnSize) -> None:
    if not head and not size.raw:
        return
    try:
        is_checked = zstandard.get_frame_parameters(head).has_checksum
    except zstandard.ZstdError as err:
        raise DeltaFormatError(f"delta: damaged column of {size.packed} bytes: {err}") from None
    if not is_checked:
        raise DeltaFormatError(f"delta: a column of {size.packed} bytes has no checksum")


def put_number(out: bytearray, value: int) -> None:
    """Append ``value`` as the plan writes numbers."""
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def pack_plan(
    release: Release,
    sizes: Mapping[Column, ColumnSize],
    regions: Mapping[str, tuple[Region, ...]],
) -> bytes:
    """Write the plan; the inverse of what ``Container`` reads."""
    plan = bytearray()
    put_number(plan, len(release.text))
    plan += release.text
    for column in Column:
        put_number(plan, sizes[column].packed)
        put_number(plan, sizes[column].raw)
    for entries in regions.values():
        put_number(plan, len(entries))
        old_end = 0
        for region in entries:
            put_number(plan, region.kind)
            for field in FIELDS[region.kind]:
                value = getattr(region, field)
                put_number(plan, _zigzag(value - old_end) if field == "old_offset" else value)
            old_end = region.old_end
    return bytes(plan)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else ~value << 1 | 1


def _unzigzag(value: int) -> int:
    return ~(value >> 1) if value & 1 else value >> 1
