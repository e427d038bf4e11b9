"""The container of GGUF, read strictly: who wrote the file is not believed.

    magic "GGUF", u32 version, u64 tensors, u64 keys
    keys:     string name, u32 type, value; an array is u32 type, u64 length, values
    tensors:  string name, u32 dims, u64 dim each (fastest first), u32 type, u64 offset
    padding to `general.alignment`, then the data section, from which offsets count

Every count is checked against the bytes that are left before anything of its size is made, every
tensor against the end of the file, and no two tensors overlap.
Source: github.com/ggml-org/ggml, docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeagent.convert.disk import DiskFile
from edgeagent.convert.gguf_types import TERNARY_BLOCKS, i2s_bytes
from edgeagent.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
#: A 27B model has some 1,000 tensors and 60 keys.
MAX_TENSORS = 1 << 16
MAX_KEYS = 1 << 12
#: Of a tokenizer: Gemma has 262,144 tokens and 580,604 merges.  A Python list of so many is 32 MB.
MAX_ARRAY = 4 << 20
#: Keys and tensor names are short; a chat template or one token is at most this long.
MAX_NAME_BYTES = 256
MAX_STRING_BYTES = 1 << 20
#: Everything before the data section; Gemma's tokenizer is 13 MB.
MAX_HEADER_BYTES = 256 << 20
MAX_DIMS = 4
MAX_DIM = 1 << 31
MAX_WEIGHTS = 1 << 40
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32
#: Of the header at a time.
_CHUNK = 1 << 20

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """A tensor type that we read: `weights` of a row in `n_bytes`, behind `row_head` bytes."""

    name: str
    weights: int
    n_bytes: int
    row_head: int = 0


def _ternary(number: int, name: str) -> tuple[int, TypeInfo]:
    block = TERNARY_BLOCKS[name]
    return number, TypeInfo(name, block.weights, block.n_bytes, block.row_head)


TYPES = {
    0: TypeInfo("F32", 1, 4),
    1: TypeInfo("F16", 1, 2),
    2: TypeInfo("Q4_0", 32, 18),
    8: TypeInfo("Q8_0", 32, 34),
    12: TypeInfo("Q4_K", 256, 144),
    14: TypeInfo("Q6_K", 256, 210),
    30: TypeInfo("BF16", 1, 2),
    36: TypeInfo("I2_S", 4, 1),  # and a tail
    **dict([_ternary(34, "TQ1_0"), _ternary(35, "TQ2_0")]),
    **dict([_ternary(135, "IQ2_BN"), _ternary(143, "PTQ1_0")]),
    142: TypeInfo("Q2_0_G128", 128, 34),
}
_Q2_0 = 42
_Q2_0_KINDS = {
    "Q2_0_G64": TypeInfo("Q2_0_G64", 64, 18),
    "Q2_0_G128": TypeInfo("Q2_0_G128", 128, 34),
}
_TILED = "its bytes are tiled for one build of bitnet.cpp, and the file does not say for which"
REFUSED = {
    38: f"TL1: {_TILED}: convert from an I2_S file or from safetensors",
    39: f"TL2 (or MXFP4, which has the same number): {_TILED}: convert from I2_S or safetensors",
    37: "I8_S is a type of activations",
    40: "NVFP4 is not ternary",
    41: "Q1_0 is binary",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies.  `shape` is (out, in), as everywhere else here."""

    shape: tuple[int, ...]
    kind: TypeInfo
    begin: int
    n_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; of a type whose rows stand alone."""
        return self.kind.row_head + self.shape[-1] // self.kind.weights * self.kind.n_bytes


class _Reader:
    """The header as a stream; a window of the file is in memory."""

    def __init__(self, file: DiskFile) -> None:
        self._file, self.at = file, 0
        self._begin, self._window = 0, b""
        self.end = min(file.size, MAX_HEADER_BYTES)
        self.where = file.path.name

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.where}: byte {self.at}: {what}")

    def take(self, n: int, what: str) -> bytes:
        """Read `n` bytes."""
        if n > self.end - self.at:
            raise self.fail(f"{what}: {n} bytes wanted, {self.end - self.at} left: cut short?")
        offset = self.at - self._begin
        if offset + n > len(self._window):
            size = min(max(n, _CHUNK), self._file.size - self.at)
            self._window = self._file.read(self.at, size).tobytes()
            self._begin, offset = self.at, 0
        self.at += n
        return self._window[offset : offset + n]

    def u32(self, what: str) -> int:
        return int(struct.unpack("<I", self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(struct.unpack("<Q", self.take(8, what))[0])

    def count(self, what: str, limit: int) -> int:
        n = self.u64(what)
        if n > limit:
            raise self.fail(f"{what}: expected at most {limit}, got {n}")
        return n

    def string(self, what: str, limit: int = MAX_STRING_BYTES) -> str:
        data = self.take(self.count(f"length of {what}", limit), what)
        try:
            return data.decode()
        except UnicodeDecodeError as err:
            raise self.fail(f"{what}: not UTF-8: {err.reason}") from err

    def value(self, key: str) -> Any:
        kind = self.u32(f"type of {key}")
        if kind == _STRING:
            return self.string(key)
        if kind == _ARRAY:
            return self._array(key)
        return self._numbers(key, kind, 1)[0]

    def _array(self, key: str) -> list[Any]:
        kind = self.u32(f"type of {key}")
        n = self.count(f"length of {key}", MAX_ARRAY)
        if kind == _STRING:
            if n * 8 > self.end - self.at:
                raise self.fail(f"{key}: {n} strings do not fit the file")
            return [self.string(key) for _ in range(n)]
        return self._numbers(key, kind, n)

    def _numbers(self, key: str, kind: int, n: int) -> list[Any]:
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise self.fail(f"{key}: expected a type of 0 to 12 and no array in an array: {kind}")
        values = np.frombuffer(self.take(n * int(dtype[-1]), key), dtype)
        return [bool(v) for v in values] if kind == _BOOL else values.tolist()


@dataclass(frozen=True, slots=True)
class _Raw:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _raw_tensor(reader: _Reader) -> _Raw:
    name = reader.string("a tensor's name", MAX_NAME_BYTES)
    n_dims = reader.u32(f"dims of {name}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise reader.fail(f"{name}: expected 1 to {MAX_DIMS} dims, got {n_dims}")
    dims = [reader.u64(f"dims of {name}") for _ in range(n_dims)]
    if not all(1 <= dim < MAX_DIM for dim in dims) or math.prod(dims) > MAX_WEIGHTS:
        raise reader.fail(f"{name}: dims {dims} are not those of a tensor")
    return _Raw(name, tuple(dims[::-1]), reader.u32(name), reader.u64(f"offset of {name}"))


def _size(raw: _Raw, kind: TypeInfo, where: str) -> int:
    if kind.name == "I2_S":
        if math.prod(raw.shape) % 4:
            raise ModelError(f"{where}: {raw.name}: I2_S: expected a multiple of 4 weights")
        return i2s_bytes(math.prod(raw.shape))
    if raw.shape[-1] % kind.weights:
        raise ModelError(
            f"{where}: {raw.name}: {kind.name}: expected rows of a multiple of {kind.weights}, "
            f"got {raw.shape[-1]}"
        )
    heads = math.prod(raw.shape[:-1]) * kind.row_head
    return heads + math.prod(raw.shape) // kind.weights * kind.n_bytes


def _padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


def _q2_0_kind(raws: list[_Raw], data_bytes: int, alignment: int, where: str) -> TypeInfo:
    """Tell the two types of number 42 apart by what the tensors' distances have room for."""
    ends = [*sorted(raw.offset for raw in raws), data_bytes]
    fits = dict.fromkeys(_Q2_0_KINDS, True)
    for raw in raws:
        if raw.kind != _Q2_0:
            continue
        room = next((end for end in ends if end > raw.offset), raw.offset) - raw.offset
        for name, kind in _Q2_0_KINDS.items():
            n_bytes = math.prod(raw.shape) // kind.weights * kind.n_bytes
            whole = raw.shape[-1] % kind.weights == 0
            fits[name] &= whole and n_bytes <= room <= _padded(n_bytes, alignment)
    good = [name for name, fit in fits.items() if fit]
    if not good:
        raise ModelError(f"{where}: type 42: the tensors' sizes are those of no Q2_0 that we know")
    return _Q2_0_KINDS[good[0]]  # both fit tiny tensors only: then the mainline's, blocks of 64


def _kind(raw: _Raw, q2_0: TypeInfo | None, where: str) -> TypeInfo:
    if raw.kind == _Q2_0 and q2_0 is not None:
        return q2_0
    if raw.kind not in TYPES:
        reason = REFUSED.get(raw.kind, f"type {raw.kind} is none that a ternary model needs")
        raise ModelError(f"{where}: {raw.name}: {reason}")
    return TYPES[raw.kind]


def _check_overlaps(tensors: Mapping[str, GgufTensor], where: str) -> None:
    at, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if tensor.begin < at:
            raise ModelError(f"{where}: {name} overlaps {before}")
        at, before = tensor.begin + tensor.n_bytes, name


def _alignment(metadata: Mapping[str, Any], where: str) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise ModelError(f"{where}: general.alignment: expected a power of two, got {value!r}")
    return value


class GgufFile:
    """An open GGUF file: its metadata, and where its tensors are."""

    def __init__(self, file: DiskFile) -> None:
        """Read and check the header.

        Raises:
            ModelError: anything about it does not agree with itself or with the file's size.
        """
        self.file = file
        reader = _Reader(file)
        where = reader.where
        if reader.take(4, "magic") != MAGIC:
            raise ModelError(f"{where}: expected a GGUF file")
        version = reader.u32("version")
        if version not in VERSIONS:
            raise ModelError(
                f"{where}: expected GGUF version 2 or 3, little-endian, got {version:#x}"
            )
        n_tensors = reader.count("number of tensors", MAX_TENSORS)
        n_keys = reader.count("number of keys", MAX_KEYS)
        self.metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = reader.string("a key", MAX_NAME_BYTES)
            if key in self.metadata:
                raise reader.fail(f"key {key!r} appears twice")
            self.metadata[key] = reader.value(key)
        raws = [_raw_tensor(reader) for _ in range(n_tensors)]
        alignment = _alignment(self.metadata, where)
        self.tensors = _place(raws, _padded(reader.at, alignment), file.size, alignment, where)


def _place(
    raws: list[_Raw], begin: int, size: int, alignment: int, where: str
) -> dict[str, GgufTensor]:
    """Check the tensors against the data section, which goes from `begin` to `size`."""
    q2_0 = None
    if any(raw.kind == _Q2_0 for raw in raws):
        q2_0 = _q2_0_kind(raws, size - begin, alignment, where)
    tensors: dict[str, GgufTensor] = {}
    for raw in raws:
        if raw.name in tensors:
            raise ModelError(f"{where}: tensor {raw.name} appears twice")
        kind = _kind(raw, q2_0, where)
        n_bytes = _size(raw, kind, where)
        if raw.offset % alignment or raw.offset + n_bytes > size - begin:
            raise ModelError(
                f"{where}: {raw.name}: bytes {raw.offset} to {raw.offset + n_bytes} of the data "
                f"section: expected a multiple of {alignment}, within {max(size - begin, 0)}"
            )
        tensors[raw.name] = GgufTensor(raw.shape, kind, begin + raw.offset, n_bytes)
    _check_overlaps(tensors, where)
    return tensors
