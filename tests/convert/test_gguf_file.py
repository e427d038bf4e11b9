"""The container of GGUF: what is refused, and with which line."""

import struct

import numpy as np
import pytest

from edgeagent.convert.disk import DiskFile
from edgeagent.convert.gguf_file import GgufFile
from edgeagent.errors import ModelError


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def u32(name, value):
    return key(name, 4, struct.pack("<I", value))


def tensor(name, dims, kind, offset):
    head = text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return head + struct.pack("<IQ", kind, offset)


def gguf(keys=(), tensors=(), data=b"", version=3, n_keys=None, n_tensors=None, alignment=32):
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    out = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return out + bytes(-len(out) % alignment) + data


def open_bytes(tmp_path, data):
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    return GgufFile(DiskFile(path))


def test_every_kind_of_value_is_read(tmp_path):
    keys = [
        key("u8", 0, b"\x07"), key("i8", 1, b"\xff"), key("u16", 2, b"\x01\x02"),
        key("f32", 6, struct.pack("<f", 0.5)), key("yes", 7, b"\x01"), key("word", 8, text("ü")),
        key("u64", 10, struct.pack("<Q", 2**40)), key("f64", 12, struct.pack("<d", 0.25)),
        key("words", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
        key("numbers", 9, struct.pack("<IQ", 5, 3) + struct.pack("<3i", -1, 0, 1)),
        key("flags", 9, struct.pack("<IQ", 7, 2) + b"\x00\x01"),
    ]  # fmt: skip
    found = open_bytes(tmp_path, gguf(keys)).metadata
    assert found == {
        "u8": 7, "i8": -1, "u16": 513, "f32": 0.5, "yes": True, "word": "ü", "u64": 2**40,
        "f64": 0.25, "words": ["a", "b"], "numbers": [-1, 0, 1], "flags": [False, True],
    }  # fmt: skip


def test_a_tensor_is_where_its_offset_says(tmp_path):
    data = np.arange(16, dtype="<f4").tobytes()
    file = open_bytes(
        tmp_path, gguf([], [tensor("a", [8], 0, 0), tensor("b", [4, 2], 0, 32)], data)
    )
    b = file.tensors["b"]
    assert (b.shape, b.kind.name, b.n_bytes) == ((2, 4), "F32", 32)
    assert file.file.read(b.begin, b.n_bytes).tobytes() == data[32:]


HOSTILE = {
    "not GGUF": (b"GGML" + bytes(100), "expected a GGUF file"),
    "empty": (b"", "cut short"),
    "version 1": (gguf(version=1), "version 2 or 3"),
    "big-endian": (gguf(version=3 << 24), "little-endian, got 0x3000000"),
    "tensors without end": (gguf(n_tensors=2**62), "number of tensors: expected at most"),
    "keys without end": (gguf(n_keys=2**62), "number of keys: expected at most"),
    "more keys than there are": (gguf(n_keys=9), "cut short"),
    "a string longer than the file": (
        gguf([text("a") + struct.pack("<IQ", 8, 2**20)]), "cut short"),
    "a string longer than 2^63": (gguf([struct.pack("<Q", 2**63)], n_keys=1), "length of a key"),
    "an array longer than the file": (
        gguf([key("a", 9, struct.pack("<IQ", 8, 2**21))]), "strings do not fit"),
    "an array without end": (
        gguf([key("a", 9, struct.pack("<IQ", 0, 2**60))]), "length of a: expected at most"),
    "an array of arrays": (
        gguf([key("a", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 9, 1))]), "no array in"),
    "an unknown value type": (gguf([key("a", 99, b"")]), "type of 0 to 12"),
    "a key twice": (gguf([u32("a", 1), u32("a", 2)]), "'a' appears twice"),
    "no UTF-8": (gguf([struct.pack("<Q", 1) + b"\xff"], n_keys=1), "not UTF-8"),
    "an alignment of 3": (gguf([u32("general.alignment", 3)]), "power of two"),
    "an alignment of 0": (gguf([u32("general.alignment", 0)]), "power of two"),
    "no dims": (gguf([], [tensor("t", [], 0, 0)]), "1 to 4 dims"),
    "a dim of 0": (gguf([], [tensor("t", [0], 0, 0)]), "not those of a tensor"),
    "dims whose product wraps": (
        gguf([], [tensor("t", [2**30, 2**30, 2**30], 0, 0)]), "not those of a tensor"),
    "a tensor beyond the end": (gguf([], [tensor("t", [64], 0, 0)], bytes(64)), "within 64"),
    "an offset near 2^64": (gguf([], [tensor("t", [8], 0, 2**64 - 32)], bytes(64)), "within 64"),
    "an offset off the grid": (gguf([], [tensor("t", [8], 0, 4)], bytes(64)), "multiple of 32"),
    "two tensors in one place": (
        gguf([], [tensor("a", [16], 0, 0), tensor("b", [8], 0, 32)], bytes(64)), "b overlaps a"),
    "a name twice": (
        gguf([], [tensor("a", [8], 0, 0), tensor("a", [8], 0, 32)], bytes(64)), "appears twice"),
    "TL1": (gguf([], [tensor("a", [8], 38, 0)], bytes(64)), "TL1: its bytes are tiled"),
    "TL2": (gguf([], [tensor("a", [8], 39, 0)], bytes(64)), "TL2 .* tiled"),
    "a type of nobody": (gguf([], [tensor("a", [8], 99, 0)], bytes(64)), "type 99 is none"),
    "rows that are no whole blocks": (
        gguf([], [tensor("a", [100, 2], 35, 0)], bytes(640)), "rows of a multiple of 256"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_is_refused_in_one_line(tmp_path, what):
    data, line = HOSTILE[what]
    with pytest.raises(ModelError, match=line) as caught:
        open_bytes(tmp_path, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n", range(0, 200, 7))
def test_a_file_cut_short_anywhere_is_refused(tmp_path, n):
    whole = gguf([u32("a", 1), key("b", 8, text("word"))], [tensor("t", [64], 0, 0)], bytes(256))
    open_bytes(tmp_path, whole)
    with pytest.raises(ModelError):
        open_bytes(tmp_path, whole[: len(whole) - 1 - n])


@pytest.mark.parametrize(
    ("block", "block_bytes", "name"), [(64, 18, "Q2_0_G64"), (128, 34, "Q2_0_G128")]
)
def test_the_two_types_of_number_42_are_told_apart_by_their_room(
    tmp_path, block, block_bytes, name
):
    n = 4 * 256 // block * block_bytes
    padded = n + -n % 32
    tensors = [tensor("a", [256, 4], 42, 0), tensor("b", [256, 4], 42, padded)]
    file = open_bytes(tmp_path, gguf([], tensors, bytes(padded + n)))
    assert {t.kind.name for t in file.tensors.values()} == {name}


def test_number_42_that_fits_neither_is_refused(tmp_path):
    with pytest.raises(ModelError, match="type 42"):
        open_bytes(tmp_path, gguf([], [tensor("a", [256, 4], 42, 0)], bytes(4096)))
