"""The ``.etd`` container: a delta from one model to another, or a whole model.  Pure.

Layout, integers little-endian::

    0    "ETD" 0x02
    4    u32   length of the plan, raw
    8    u32   length of the plan, packed
    12   32 B  root of the base; zeros: no base, this is a full image
    44   32 B  root of the result
    76         the plan (ota.plan), one zstd frame; dictionary: the base's release.json
               then the columns of ota.delta, one after the other:
               CODED one zstd frame (of a stream that does not shrink: for its checksum and its
               borders), BYTES a frame a block

Laws: the base is checked before anything else is believed.  Every declared number has a bound and
is checked against the others before a byte is made.  Memory is bounded by ``PIECE_BYTES``,
``BLOCK_BYTES`` and ``WINDOW_BYTES``, never by a declared number.  Each result file is hashed as it
comes out.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Protocol, cast

import zstandard

from ota.delta import CodedReader, Column
from ota.errors import DeltaFormatError, PayloadMismatch, WrongBase
from ota.plan import (
    BLOCK_BYTES,
    MAX_PLAN_BYTES,
    ColumnSize,
    Plan,
    Region,
    RegionKind,
    kept_files,
    parse_plan,
)
from ota.release import FileEntry, Release

MAGIC = b"ETD\x02"
HEADER = struct.Struct("<4sII32s32s")
NO_BASE = bytes(32)
WINDOW_BYTES = 1 << 20  # what a decoder must hold for the one open frame
PIECE_BYTES = 1 << 18  # of a plane in memory: a few pieces fit a small core's cache
READ_BYTES = 1 << 16  # what is unpacked at once from a column
FRAME_HEADER_BYTES = 18  # the longest header of a zstd frame (RFC 8878 section 3.1.1)


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
        packed = blob.read_at(HEADER.size, n_packed)
        text = unpack_frame(packed, n_plan, self.base.text if self.base else b"")
        self.plan = parse_plan(text, self.base)
        if self.release.root != root.hex():
            raise DeltaFormatError(
                f"delta: expected a result {root.hex()}, its plan says {self.release.root}"
            )
        self._blob = blob
        self._starts = self._check_length(HEADER.size + n_packed)

    @property
    def release(self) -> Release:
        """The result."""
        return self.plan.release

    @property
    def sizes(self) -> Mapping[Column, ColumnSize]:
        """How much of the container each column takes."""
        return self.plan.sizes

    @property
    def regions(self) -> Mapping[str, tuple[Region, ...]]:
        """The files that are written rather than linked."""
        return self.plan.regions

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
        with self._maker() as maker:
            for name, regions in self.regions.items():
                pieces = maker.file(regions, _OldFile(old, name))
                yield name, _hashed(name, self.release.files[name], pieces)

    def make_regions(self, old: Files) -> Iterator[tuple[str, Region, bytes]]:
        """Yield every region that is not a copy, made from ``old``, whatever that is: no hashes.

        ``ota.compose`` gives a blind container planes of zeros and gets the differences themselves.

        Raises:
            DeltaFormatError: a column ended early, late, or breaks a rule.
        """
        with self._maker() as maker:
            for name, regions in self.regions.items():
                for region in regions:
                    if region.kind is not RegionKind.COPY:
                        pieces = maker.file((region,), _OldFile(old, name))
                        yield name, region, b"".join(pieces)

    @contextmanager
    def _maker(self) -> Iterator[_Maker]:
        """Open both columns, and check at the end that they are used up."""
        coded = _ColumnReader(self._blob, self._starts[Column.CODED], self.sizes[Column.CODED])
        reader = CodedReader(coded.chunks(), self.plan.mean_gap, self.plan.is_blind)
        yield _Maker(self.plan, reader, _BlockReader(self._blob, self._starts[Column.BYTES]))
        reader.end()
        coded.end()

    def _check_length(self, start: int) -> dict[Column, int]:
        """Return where each column starts; together they must be all there is."""
        starts = {}
        for column, size in self.sizes.items():
            starts[column] = start
            start += size.packed
        if len(self._blob.read_at(start - 1, 2)) != 1:
            raise DeltaFormatError(f"delta: expected {start} bytes, it has another length")
        return starts


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


class _Maker:
    """Makes the regions of all files, in order."""

    def __init__(self, plan: Plan, coded: CodedReader, blocks: _BlockReader) -> None:
        self._plan = plan
        self._coded = coded
        self._blocks = blocks

    def file(self, regions: tuple[Region, ...], source: _OldFile) -> Iterator[bytes]:
        for region in regions:
            yield from self._region(region, source)

    def _region(self, region: Region, source: _OldFile) -> Iterator[bytes]:
        offset, length = region.old_offset, region.length
        match region.kind:
            case RegionKind.COPY:
                return source.pieces(offset, length, 1)
            case RegionKind.FLIPS:
                shape = self._plan.shapes[region.shape]
                old = source.pieces(offset, length, shape.line_bytes)
                return self._coded.flips(old, length, shape)
            case RegionKind.TRITS:
                shape = self._plan.shapes[region.shape]
                return self._coded.trits(_sizes(length, shape.line_bytes), length, shape)
            case RegionKind.WORDS:
                return self._coded.words(source.pieces(offset, length, region.width), region.width)
            case RegionKind.NEW:
                return self._coded.words(map(first_words, _sizes(length, 4)), region.width, True)
            case RegionKind.BYTES:
                dictionary = source.read(offset, region.old_length)
                return iter([self._blocks.take(region.packed, length, dictionary)])


def first_words(n_bytes: int) -> bytes:
    """Return the old words of a region that has none: zeros."""
    return bytes(n_bytes)


def _sizes(length: int, unit: int) -> Iterator[int]:
    """Cut ``length`` in pieces of whole units."""
    step = PIECE_BYTES // unit * unit
    for start in range(0, length, step):
        yield min(step, length - start)


def _hashed(name: str, entry: FileEntry, pieces: Iterator[bytes]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != entry.sha256:
        raise PayloadMismatch(f"{name}: expected sha256 {entry.sha256}, got {digest.hexdigest()}")


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

    def pieces(self, offset: int, length: int, unit: int) -> Iterator[bytes]:
        for size in _sizes(length, unit):
            yield self.read(offset, size)
            offset += size


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
