"""A GGUF file, version 3, written in one pass: the table first, then a tensor at a time.

    "GGUF"   u32 version   u64 tensors   u64 keys
    key      string, u32 type, value                    in the order they were given
    tensor   string name, u32 n, u64 dims (row length first), u32 type, u64 offset
    data     every tensor at a multiple of 32

The format is that of github.com/ggml-org/ggml, docs/gguf.md.  The file appears under its name when
it is whole and on the disk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgeagent.errors import AdapterError

VERSION = 3
ALIGNMENT = 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the table: its name and type there, its dims as (rows, ..., row length)."""

    name: str
    kind: int
    shape: tuple[int, ...]
    n_bytes: int


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _array(values: Sequence[Any]) -> bytes:
    """Encode a list of one type; an empty one is of strings."""
    if all(isinstance(v, str) for v in values):
        kind, body = _STRING, b"".join(map(_string, values))
    elif all(type(v) is int for v in values):
        kind, body = _I32, struct.pack(f"<{len(values)}i", *values)
    else:
        kind, body = _F32, struct.pack(f"<{len(values)}f", *values)
    return struct.pack("<IQ", kind, len(values)) + body


def _value(value: Any) -> bytes:
    """Encode a value with its type: whole numbers as u32, others as f32."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    return struct.pack("<I", _ARRAY) + _array(value)


def _table(metadata: Mapping[str, Any], tensors: Sequence[Planned]) -> Iterator[bytes]:
    yield b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
    for key, value in metadata.items():
        yield _string(key) + _value(value)
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        yield _string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        yield struct.pack("<IQ", tensor.kind, offset)
        offset += tensor.n_bytes + -tensor.n_bytes % ALIGNMENT


def _write(
    out: BinaryIO,
    metadata: Mapping[str, Any],
    tensors: Sequence[Planned],
    read: Callable[[int], Iterator[NDArray[Any]]],
) -> None:
    for part in _table(metadata, tensors):
        out.write(part)
    out.write(bytes(-out.tell() % ALIGNMENT))
    for i, tensor in enumerate(tensors):
        begin = out.tell()
        for array in read(i):
            out.write(np.ascontiguousarray(array).data.cast("B"))
        if out.tell() - begin != tensor.n_bytes:
            raise AssertionError(f"{tensor.name}: planned {tensor.n_bytes} bytes")
        out.write(bytes(-tensor.n_bytes % ALIGNMENT))


def write_gguf_file(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[Planned],
    read: Callable[[int], Iterator[NDArray[Any]]],
) -> None:
    """Write a file that is there whole or not at all.

    Args:
        path: of the file; what was there is replaced.
        metadata: keys to str, bool, int (u32), float (f32), or a list of str, int (i32) or float.
        tensors: the table.
        read: gives the bytes of tensor i as arrays, one after the other.

    Raises:
        AdapterError: the disk refuses.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as out:
            _write(out, metadata, tensors, read)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as err:
        raise AdapterError(f"{path}: cannot be written: {err.strerror}") from err
    finally:
        part.unlink(missing_ok=True)
