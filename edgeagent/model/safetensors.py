"""Safetensors, read without copying and written in one pass.

    8 bytes   little-endian length N of the header
    N bytes   JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}
    rest      the tensors; offsets count from here

The reader believes nothing: it is handed files that came over the air.  Every number is checked
against the file's real size before it is used, the tensors must tile the data section without holes
or overlaps (as the format demands), and each must be aligned to its element, because C reads it in
place.  The `safetensors` package copies every tensor or needs numpy; the device does neither.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgeagent.errors import ModelError
from edgeagent.model.pages import WholePieces, want_huge

ELEMENT_BYTES = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}
#: What files of others may hold besides; only conversion reads such files.
SOURCE_ELEMENT_BYTES = ELEMENT_BYTES | {
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8,
    "U64": 8, "F64": 8,
}  # fmt: skip
#: At 60 bytes a tensor it takes 60,000 tensors to get here; our shards have fewer than 30.
MAX_HEADER_BYTES = 4 << 20
#: Tensors of at most this rank and extent: products of two dims stay far below 2**63.
MAX_RANK = 4
MAX_DIM = 1 << 31
#: Data sections start on a cache line, so that a panel's 64-byte lines are whole lines.
DATA_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: bytes `begin` to `end` of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"key {key!r} appears twice")
        out[key] = value
    return out


def _is_count(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


def _tensor(
    name: str, entry: Any, data_begin: int, data_bytes: int, where: str, *, in_place: bool
) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{where}: {name}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    element_bytes = ELEMENT_BYTES if in_place else SOURCE_ELEMENT_BYTES
    if not isinstance(dtype, str) or dtype not in element_bytes:
        raise ModelError(
            f"{where}: {name}: expected dtype of {sorted(element_bytes)}, got {dtype!r}"
        )
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise ModelError(f"{where}: {name}: expected a shape of at most {MAX_RANK} dims")
    if not all(_is_count(dim, MAX_DIM) for dim in shape):
        raise ModelError(f"{where}: {name}: expected dims below {MAX_DIM}, got {shape}")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(_is_count(offset, data_bytes + 1) for offset in offsets)
    ):
        raise ModelError(
            f"{where}: {name}: expected offsets within {data_bytes} bytes of data, got {offsets}"
        )
    elements = 1
    for dim in shape:
        elements *= dim
    want, got = elements * element_bytes[dtype], offsets[1] - offsets[0]
    if want != got:
        raise ModelError(f"{where}: {name}: expected {want} bytes for {dtype} {shape}, got {got}")
    if in_place and (data_begin + offsets[0]) % element_bytes[dtype]:
        raise ModelError(f"{where}: {name}: {dtype} data is not aligned to its element")
    return TensorInfo(dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _check_tiling(tensors: Mapping[str, TensorInfo], begin: int, end: int, where: str) -> None:
    at = begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != at:
            kind = "overlaps another tensor" if info.begin < at else "leaves a hole before it"
            raise ModelError(f"{where}: {name}: {kind} at byte {info.begin}, expected {at}")
        at = info.end
    if at != end:
        raise ModelError(f"{where}: expected tensors up to byte {end}, got {at}")


def parse_header(
    data: bytes | memoryview | mmap.mmap, where: str, *, in_place: bool = True
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Validate the header of a whole safetensors file in `data`.

    Args:
        data: the file.
        where: its name, for messages.
        in_place: C will read the tensors where they are: each must be aligned to its element, and
            of a dtype that the engine has.  Files that are only converted need neither.

    Returns:
        Tensor name to place, and the free-form metadata.

    Raises:
        ModelError: anything about the header does not agree with itself or with the file's size.
    """
    size = len(data)
    if size < 8:
        raise ModelError(f"{where}: expected a safetensors file, got {size} bytes")
    (header_bytes,) = struct.unpack("<Q", bytes(data[:8]))
    if header_bytes > min(MAX_HEADER_BYTES, size - 8):
        raise ModelError(
            f"{where}: header says {header_bytes} bytes, the file has {size}: "
            "cut short or not safetensors"
        )
    try:
        header = json.loads(bytes(data[8 : 8 + header_bytes]), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as err:
        raise ModelError(f"{where}: header is not JSON: {err}") from err
    if not isinstance(header, dict):
        raise ModelError(f"{where}: expected a JSON object as header, got {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ModelError(f"{where}: expected an object as __metadata__")
    begin = 8 + header_bytes
    tensors = {
        n: _tensor(n, e, begin, size - begin, where, in_place=in_place) for n, e in header.items()
    }
    _check_tiling(tensors, begin, size, where)
    return tensors, {str(key): str(value) for key, value in metadata.items()}


class SafetensorsFile:
    """One mmapped, read-only safetensors file; its tensors are views into the mapping."""

    def __init__(self, path: Path) -> None:
        """Map and validate `path`.

        Raises:
            ModelError: missing, unreadable, or not a sound safetensors file.
        """
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as err:  # ValueError: an empty file cannot be mapped
            raise ModelError(f"{path.name}: cannot be mapped: {err}") from err
        self.infos, self.metadata = parse_header(self._map, path.name)
        # Planes are read for every token.  Of the float16 rows behind them a few are: a huge page
        # that was dropped would be read again for a single row.
        planes = [info.end for info in self.infos.values() if info.dtype == "U8"]
        want_huge(self._map, max(planes, default=0))

    def tensor(self, name: str) -> tuple[str, tuple[int, ...], memoryview]:
        """Return `(dtype, shape, bytes)`; the view keeps the mapping alive."""
        info = self.infos[name]
        return info.dtype, info.shape, memoryview(self._map)[info.begin : info.end]


@dataclass(frozen=True, slots=True)
class Stream:
    """The bytes of a tensor that is never whole in memory: `parts` makes them, `n_bytes` in all."""

    n_bytes: int
    parts: Callable[[], Iterator[bytes | memoryview]]

    def __len__(self) -> int:
        return self.n_bytes


Data = bytes | memoryview | Stream


def _order(item: tuple[str, str, tuple[int, ...], Data]) -> tuple[int, str]:
    # U8 planes are multiples of 32 bytes; F32 before F16 keeps both aligned after them.
    rank = {"U8": 0, "F32": 1, "F16": 2, "BF16": 2, "I8": 3}
    return rank[item[1]], item[0]


def write_safetensors(
    out: BinaryIO,
    tensors: Iterable[tuple[str, str, tuple[int, ...], Data]],
    metadata: Mapping[str, str],
) -> None:
    """Write `(name, dtype, shape, bytes)` tensors in an order that keeps every element aligned."""
    ordered = sorted(tensors, key=_order)
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    at = 0
    for name, dtype, shape, data in ordered:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    pieces = WholePieces(out)
    pieces.write(struct.pack("<Q", len(text)) + text)
    for *_, data in ordered:
        for part in data.parts() if isinstance(data, Stream) else (data,):
            pieces.write(part)
    pieces.close()
