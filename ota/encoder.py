"""Writing ``.etd`` containers: the operator's half of the codec.  Pure; needs numpy.

The format is defined in ``docs/formats.md`` section 5.  One tensor is in memory at a time, old and
new; packed columns go to scratch files that the caller opens.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO

import numpy as np
import zstandard

from ota import _flips
from ota.container import FRAME_MAGIC, Files, first_words, pack_head
from ota.delta import Shape
from ota.hollow import hollow_text
from ota.plan import BLOCK_BYTES, MAX_GAP_LOG, Plan, Region, RegionKind, changed_files, pack_plan
from ota.planes import LENGTH_BYTES, Span, header_length, parse_header
from ota.release import Release
from ota.shapes import Plane, n_trits, radix_of, shape_of

LEVEL = 19  # the strongest that keeps to a small window; deltas are made once and sent often
DICTIONARY_SLACK = (
    1 << 16
)  # old bytes on each side of a block: text moves a little when it is edited
SHARD_SUFFIX = ".safetensors"
COPY_BYTES = 1 << 20
WORD_BLOCK_BYTES = 1 << 16  # unchanged stretches of at least this length are copied, not coded
WIDTHS = {"F16": 2, "BF16": 2, "F32": 4, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "U8": 1, "I8": 1}
MIN_PLANE_BYTES = 32  # a block of trits
CODED_KINDS = {RegionKind.FLIPS, RegionKind.TRITS, RegionKind.WORDS, RegionKind.NEW}


class CodedWriter:
    """The ``CODED`` column: one stream of the coder."""

    def __init__(self, scratch: IO[bytes], blind: bool) -> None:
        self._coder = _flips.Writer()
        self.is_blind = blind
        self._shapes: dict[Shape, int] = {}
        self.mean_gap = 1
        self._has_guessed = False
        self.scratch = scratch
        self.n_bytes = 0

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes so far, by number."""
        return tuple(self._shapes)

    def flips(self, old: bytes, new: bytes, shape: Shape) -> int:
        """Code a plane and return the number of its shape."""
        if not self._has_guessed:
            self._has_guessed = True
            self.mean_gap = mean_gap(old, new, shape)
            self._coder.guess(self.mean_gap)
        self._coder.begin(shape.numbers(self.is_blind), len(new))
        self._coder.flips(old, new)
        return self._number(shape)

    def trits(self, plane: bytes, shape: Shape) -> int:
        """Code a plane that comes from nothing and return the number of its shape."""
        self._coder.begin(shape.numbers(self.is_blind), len(plane))
        self._coder.trits(plane)
        return self._number(shape)

    def words(self, old: bytes, new: bytes, width: int, blind: bool = False) -> None:
        """Code words that moved."""
        self._coder.words(old, new, width, self.is_blind or blind)
        self._take()

    def _number(self, shape: Shape) -> int:
        self._take()
        return self._shapes.setdefault(shape, len(self._shapes))

    def _take(self) -> None:
        data = self._coder.take()
        self.n_bytes += len(data)
        self.scratch.write(data)

    def end(self, is_used: bool) -> int:
        """End the column and return its length; one that was not used is empty."""
        if is_used:
            self._coder.end()
            self._take()
        return self.n_bytes


def mean_gap(old: bytes, new: bytes, shape: Shape) -> int:
    """Return in how many trits a changed byte is, a power of two; the coder's first guess."""
    n_changed = int(np.count_nonzero(_plane(old) != _plane(new)))
    gap = max(1, n_trits(shape, len(new)) // max(1, n_changed))
    return 1 << min((gap * gap).bit_length() // 2, MAX_GAP_LOG)


class BlockWriter:
    """The ``BYTES`` column: one frame a block."""

    def __init__(self, scratch: IO[bytes]) -> None:
        self.scratch = scratch

    def write(self, block: bytes, dictionary: bytes) -> int:
        """Write a block and return how long it became."""
        frame = pack_frame(block, dictionary)
        self.scratch.write(frame)
        return len(frame)


def pack_frame(data: bytes, dictionary: bytes) -> bytes:
    """Pack ``data`` as one checked zstd frame, less its magic number."""
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
    return frame[len(FRAME_MAGIC) :]


def write_container(
    out: IO[bytes],
    base: Release | None,
    result: Release,
    coded: CodedWriter,
    blocks: BlockWriter,
    regions: dict[str, tuple[Region, ...]],
) -> None:
    """Write header, plan and both columns, whose regions have all been written."""
    kinds = {region.kind for some in regions.values() for region in some}
    size = coded.end(bool(kinds & CODED_KINDS))
    text = None
    if base is not None and not coded.is_blind:  # what is added up is needed as it is
        text = hollow_text(result, base, regions)
    described = result if text is None else replace(result, text=text)
    shapes = coded.shapes, coded.mean_gap, coded.is_blind
    plan = pack_plan(Plan(described, size, *shapes, regions, text is not None))
    packed = pack_frame(plan, base.text if base else b"")
    out.write(pack_head(base, result.root, len(packed)))
    out.write(packed)
    for scratch in (coded.scratch, blocks.scratch):
        scratch.seek(0)
        while chunk := scratch.read(COPY_BYTES):
            out.write(chunk)


class Encoder:
    """Makes one container.

    Args:
        base: the release and the files that the device has; None makes a full image
        result: the release and the files to be made
        open_scratch: opens an empty file that is read back once
        reversible: nothing depends on the base's trits, so that the delta composes with others
            and inverts without any model (``ota.compose``); costs about 5 % more
    """

    def __init__(
        self,
        base: tuple[Release, Files] | None,
        result: tuple[Release, Files],
        open_scratch: Callable[[], IO[bytes]] = io.BytesIO,
        *,
        reversible: bool = False,
    ) -> None:
        self._base = base
        self._release, self._new = result
        self._blind = reversible
        self._coded = CodedWriter(open_scratch(), reversible)
        self._blocks = BlockWriter(open_scratch())

    def write(self, out: IO[bytes]) -> None:
        """Write the container to ``out``."""
        base = self._base[0] if self._base else None
        regions = {name: self._regions(name) for name in changed_files(base, self._release)}
        write_container(out, base, self._release, self._coded, self._blocks, regions)

    def _regions(self, name: str) -> tuple[Region, ...]:
        """Encode one changed file."""
        new_spans = _spans(self._new, name, self._release.files[name].n_bytes)
        old_spans: dict[str, Span] = {}
        if self._base is not None and name in self._base[0].files:
            spans = _spans(self._base[1], name, self._base[0].files[name].n_bytes)
            old_spans = {span.name: span for span in spans}
        regions: list[Region] = []
        for span in new_spans:
            regions += self._span(name, span, old_spans.get(span.name))
        return tuple(_merged(regions))

    def _span(self, name: str, span: Span, old: Span | None) -> Iterator[Region]:
        if old is None or self._base is None:
            yield from self._from_nothing(name, span)
            return
        if span.dtype != old.dtype or span.length != old.length or span.dtype not in WIDTHS:
            yield from self._blocks_of(name, span, old)
            return
        before = self._base[1].read_at(name, old.start, old.length)
        after = self._new.read_at(name, span.start, span.length)
        if before == after:
            yield Region(RegionKind.COPY, span.length, old.start)
            return
        shape = _flips_shape(span, before, after)
        if shape is not None:
            number = self._coded.flips(before, after, shape)
            yield Region(RegionKind.FLIPS, span.length, old.start, shape=number)
            return
        yield from self._words(before, after, old.start, WIDTHS[span.dtype])

    def _words(self, old: bytes, new: bytes, offset: int, width: int) -> Iterator[Region]:
        """Encode words that moved; stretches that did not change are copied."""
        for start, end, is_same in _stretches(old, new):
            if is_same:
                yield Region(RegionKind.COPY, end - start, offset + start)
            else:
                self._coded.words(old[start:end], new[start:end], width)
                yield Region(RegionKind.WORDS, end - start, offset + start, width=width)

    def _from_nothing(self, name: str, span: Span) -> Iterator[Region]:
        """Encode a tensor that the base does not have."""
        data = b""
        if span.dtype in WIDTHS:
            data = self._new.read_at(name, span.start, span.length)
        shape = _whole_shape(span, data) if span.dtype == "U8" else None
        if shape is not None:
            number = self._coded.trits(data, shape)
            yield Region(RegionKind.TRITS, span.length, shape=number)
        elif data and WIDTHS[span.dtype] > 1:
            self._coded.words(first_words(len(data)), data, WIDTHS[span.dtype], blind=True)
            yield Region(RegionKind.NEW, span.length, width=WIDTHS[span.dtype])
        else:
            yield from self._blocks_of(name, span, None)

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
            if self._blind:
                from_, dictionary = 0, b""
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
    whole = [Span("", 0, n_bytes)]
    if not name.endswith(SHARD_SUFFIX):
        return whole
    length = header_length(files.read_at(name, 0, LENGTH_BYTES), n_bytes)
    if length is None:
        return whole
    tensors = parse_header(files.read_at(name, LENGTH_BYTES, length), n_bytes)
    if tensors is None:
        return whole
    return _joined([Span("", 0, LENGTH_BYTES + length), *tensors])


def _joined(spans: list[Span]) -> list[Span]:
    """Join small neighbours that are not planes: one frame for all norms of a layer."""
    joined: list[Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last and last.name and span.dtype != "U8" and _is_small(last, span):
            joined[-1] = Span(last.name, last.start, last.length + span.length, last.dtype)
        else:
            joined.append(span)
    return joined


def _is_small(first: Span, second: Span) -> bool:
    return first.length + second.length <= BLOCK_BYTES and first.dtype == second.dtype


def _stretches(old: bytes, new: bytes) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, end, is it the same) of runs of blocks."""
    start, held = 0, old[:WORD_BLOCK_BYTES] == new[:WORD_BLOCK_BYTES]
    for at in range(WORD_BLOCK_BYTES, len(new), WORD_BLOCK_BYTES):
        end = at + WORD_BLOCK_BYTES
        is_same = old[at:end] == new[at:end]
        if is_same != held:
            yield start, at, held
            start, held = at, is_same
    yield start, len(new), held


def _flips_shape(span: Span, old: bytes, new: bytes) -> Shape | None:
    """Return how to walk a plane of which trits changed; None if it is no plane of trits."""
    if span.dtype != "U8" or span.length < MIN_PLANE_BYTES:
        return None
    base3 = radix_of(_plane(old), _plane(new))
    return None if base3 is None else shape_of(span.dims, base3, _plane(old), _plane(new))


def _whole_shape(span: Span, data: bytes) -> Shape | None:
    if span.length < MIN_PLANE_BYTES:
        return None
    base3 = radix_of(_plane(data))
    return None if base3 is None else shape_of(span.dims, base3, None, _plane(data))


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


def _plane(data: bytes) -> Plane:
    return np.frombuffer(data, dtype=np.uint8)
