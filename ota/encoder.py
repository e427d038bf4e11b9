"""Writing ``.etd`` containers: the operator's half of the codec.  Pure; needs numpy.

The format is defined in ``ota.container``, the columns in ``ota.delta``.  One plane, or one block,
is in memory at a time; packed columns go to scratch files that the caller opens.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
import zstandard

from ota.container import HEADER, MAGIC, NO_BASE, WINDOW_BYTES, Files
from ota.delta import ESCAPE, FLIP_COLUMNS, LOW_COLUMNS, Column, low_bytes_for
from ota.plan import BLOCK_BYTES, ColumnSize, Plan, Region, RegionKind, changed_files, pack_plan
from ota.planes import LENGTH_BYTES, Span, header_length, parse_header
from ota.release import Release

LEVEL = 19  # the strongest that keeps to a small window; deltas are made once and sent often
DICTIONARY_SLACK = (
    1 << 16
)  # old bytes on each side of a block: text moves a little when it is edited
SHARD_SUFFIX = ".safetensors"
COPY_BYTES = 1 << 20

Trits = np.ndarray[tuple[int], np.dtype[np.uint8]]


class _ColumnWriter:
    """One column: bytes in, one zstd frame out."""

    def __init__(self, scratch: IO[bytes]) -> None:
        self._packer: zstandard.ZstdCompressionObj | None = None
        self.scratch = scratch
        self.raw = 0

    def write(self, data: bytes) -> None:
        if not data:
            return
        if self._packer is None:  # not before it is needed: level 19 takes 80 MB for its tables
            parameters = zstandard.ZstdCompressionParameters.from_level(
                LEVEL, window_log=WINDOW_BYTES.bit_length() - 1, write_checksum=True
            )
            self._packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        self.raw += len(data)
        self.scratch.write(self._packer.compress(data))

    def end(self) -> ColumnSize:
        if self._packer is not None:
            self.scratch.write(self._packer.flush())
        return ColumnSize(self.scratch.tell(), self.raw)


class _BitWriter:
    """Packs bits, lowest first, and keeps a started byte for the next plane."""

    def __init__(self, column: _ColumnWriter) -> None:
        self._column = column
        self._rest = np.zeros(0, dtype=bool)

    def write(self, bits: np.ndarray) -> None:
        bits = np.concatenate((self._rest, bits))
        whole = len(bits) & ~7
        self._column.write(np.packbits(bits[:whole], bitorder="little").tobytes())
        self._rest = bits[whole:]

    def end(self) -> None:
        self._column.write(np.packbits(self._rest, bitorder="little").tobytes())


class _BlockWriter:
    """The ``BYTES`` column: one frame a block."""

    def __init__(self, scratch: IO[bytes]) -> None:
        self.scratch = scratch
        self.raw = 0

    def write(self, block: bytes, dictionary: bytes) -> int:
        frame = pack_frame(block, dictionary)
        self.raw += len(block)
        self.scratch.write(frame)
        return len(frame)

    def end(self) -> ColumnSize:
        return ColumnSize(self.scratch.tell(), self.raw)


def pack_frame(data: bytes, dictionary: bytes) -> bytes:
    """Pack ``data`` as one checked zstd frame with ``dictionary`` as raw content."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL,
        source_size=len(data),
        dict_size=len(dictionary),
        write_checksum=True,
        write_content_size=True,
        write_dict_id=False,
    )
    content = (
        zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        if dictionary
        else None
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters, dict_data=content)
    frame: bytes = packer.compress(data)
    return frame


class Encoder:
    """Makes one container.

    Args:
        base: the release and the files that the device has; None makes a full image
        result: the release and the files to be made
        open_scratch: opens an empty file that is read back once
    """

    def __init__(
        self,
        base: tuple[Release, Files] | None,
        result: tuple[Release, Files],
        open_scratch: Callable[[], IO[bytes]] = io.BytesIO,
    ) -> None:
        self._base = base
        self._release, self._new = result
        self._gaps = {c: _ColumnWriter(open_scratch()) for c in FLIP_COLUMNS}
        self._signs = _BitWriter(self._gaps[Column.SIGN])
        self._fates = _BitWriter(self._gaps[Column.FATE])
        self._blocks = _BlockWriter(open_scratch())

    def write(self, out: IO[bytes]) -> None:
        """Write the container to ``out``."""
        base = self._base[0] if self._base else None
        regions = {name: self._regions(name) for name in changed_files(base, self._release)}
        self._signs.end()
        self._fates.end()
        writers: dict[Column, _ColumnWriter | _BlockWriter] = {
            **self._gaps,
            Column.BYTES: self._blocks,
        }
        sizes = {column: writers[column].end() for column in Column}
        plan = pack_plan(Plan(self._release, sizes, regions))
        packed = pack_frame(plan, base.text if base else b"")
        base_root = bytes.fromhex(base.root) if base else NO_BASE
        root = bytes.fromhex(self._release.root)
        out.write(HEADER.pack(MAGIC, len(plan), len(packed), base_root, root))
        out.write(packed)
        for column in Column:
            scratch = writers[column].scratch
            scratch.seek(0)
            while chunk := scratch.read(COPY_BYTES):
                out.write(chunk)

    def _regions(self, name: str) -> tuple[Region, ...]:
        """Encode one changed file."""
        new_bytes = self._release.files[name].n_bytes
        if self._base is None or name not in self._base[0].files:
            return tuple(self._blocks_of(name, Span("", 0, new_bytes, False), None))
        old_bytes = self._base[0].files[name].n_bytes
        new_spans = _spans(self._new, name, new_bytes)
        old_spans = {span.name: span for span in _spans(self._base[1], name, old_bytes)}
        regions: list[Region] = []
        for span in new_spans:
            regions += self._span(name, span, old_spans.get(span.name))
        return tuple(_merged(regions))

    def _span(self, name: str, span: Span, old: Span | None) -> Iterator[Region]:
        if old is None or self._base is None:
            yield from self._blocks_of(name, span, None)
            return
        if span.is_u8 and old.is_u8 and span.length == old.length:
            before = self._base[1].read_at(name, old.start, old.length)
            after = self._new.read_at(name, span.start, span.length)
            if before == after:
                yield Region(RegionKind.COPY, span.length, old.start)
                return
            old_plane, new_plane = _plane(before), _plane(after)
            if _is_ternary(old_plane) and _is_ternary(new_plane):
                yield self._flips(old_plane, new_plane, old.start)
                return
        yield from self._blocks_of(name, span, old)

    def _flips(self, old: Trits, new: Trits, old_offset: int) -> Region:
        bytes_at = np.flatnonzero(old != new)
        shifts = np.arange(0, 8, 2, dtype=np.uint8)
        before = old[bytes_at, None] >> shifts & 3
        after = new[bytes_at, None] >> shifts & 3
        changed = before != after
        positions = (bytes_at[:, None] * 4 + np.arange(4))[changed]
        before, after = before[changed], after[changed]
        gaps = np.diff(positions, prepend=-1) - 1
        low_bytes = low_bytes_for(len(gaps), len(old) * 4)
        self._gaps[Column.GAP_HIGH].write(_digits(gaps >> (8 * low_bytes)))
        for k, column in enumerate(reversed(LOW_COLUMNS[low_bytes])):
            self._gaps[column].write((gaps >> (8 * k)).astype(np.uint8).tobytes())
        from_zero = before == 1
        self._signs.write(after[from_zero] == 2)
        self._fates.write(after[~from_zero] != 1)
        return Region(
            RegionKind.FLIPS, len(old), old_offset, n_flips=len(gaps), low_bytes=low_bytes
        )

    def _blocks_of(self, name: str, span: Span, old: Span | None) -> Iterator[Region]:
        """Encode a stretch as blocks; each has the old bytes around its place as dictionary."""
        for start in range(0, span.length, BLOCK_BYTES):
            length = min(BLOCK_BYTES, span.length - start)
            block = self._new.read_at(name, span.start + start, length)
            from_, to = _old_range(start, length, old)
            dictionary = b""
            if self._base is not None and to > from_:
                dictionary = self._base[1].read_at(name, from_, to - from_)
            if old is not None and block == dictionary[start + old.start - from_ :][:length]:
                yield Region(RegionKind.COPY, length, old.start + start)
                continue
            packed = self._blocks.write(block, dictionary)
            yield Region(RegionKind.BYTES, length, from_, packed=packed, old_length=len(dictionary))


def _old_range(start: int, length: int, old: Span | None) -> tuple[int, int]:
    """Return the stretch of the old file that serves a block as dictionary."""
    if old is None:
        return 0, 0
    from_ = max(start - DICTIONARY_SLACK, 0)
    to = min(start + length + DICTIONARY_SLACK, old.length)
    return (old.start + from_, old.start + to) if to > from_ else (0, 0)


def _spans(files: Files, name: str, n_bytes: int) -> list[Span]:
    """Cut a file into its header, its tensors and what lies between; or take it as one."""
    whole = [Span("", 0, n_bytes, False)]
    if not name.endswith(SHARD_SUFFIX):
        return whole
    length = header_length(files.read_at(name, 0, LENGTH_BYTES), n_bytes)
    if length is None:
        return whole
    tensors = parse_header(files.read_at(name, LENGTH_BYTES, length), n_bytes)
    if tensors is None:
        return whole
    return _joined([Span("", 0, LENGTH_BYTES + length, False), *tensors])


def _joined(spans: list[Span]) -> list[Span]:
    """Join small neighbours that are not planes: one frame for all norms of a layer."""
    joined: list[Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last and last.name and not (last.is_u8 or span.is_u8) and _is_small(last, span):
            joined[-1] = Span(last.name, last.start, last.length + span.length, False)
        else:
            joined.append(span)
    return joined


def _is_small(first: Span, second: Span) -> bool:
    return first.length + second.length <= BLOCK_BYTES


def _merged(regions: list[Region]) -> Iterator[Region]:
    """Join copies that follow each other in the old file too."""
    held: Region | None = None
    for region in regions:
        if region.length == 0:
            continue
        if held is not None and _follows(held, region):
            held = Region(RegionKind.COPY, held.length + region.length, held.old_offset)
            continue
        if held is not None:
            yield held
        held = region
    if held is not None:
        yield held


def _follows(held: Region, region: Region) -> bool:
    return (
        held.kind is region.kind is RegionKind.COPY
        and held.old_offset + held.length == region.old_offset
    )


def _plane(data: bytes) -> Trits:
    return np.frombuffer(data, dtype=np.uint8)


def _is_ternary(plane: Trits) -> bool:
    """Say whether no code is 3."""
    return not bool((plane & plane >> 1 & 0x55).any())


def _digits(highs: np.ndarray) -> bytes:
    """Write each number in base 255 with escapes."""
    escapes = highs // ESCAPE
    ends = np.cumsum(escapes + 1)
    digits = np.full(int(ends[-1]) if len(ends) else 0, ESCAPE, dtype=np.uint8)
    digits[ends - 1] = highs % ESCAPE
    return digits.tobytes()
