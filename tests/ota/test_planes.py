import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ota.planes import LENGTH_BYTES, header_length, parse_header
from tests.ota.models import safetensors

SHARD = safetensors({"a": np.zeros(64, np.uint8), "b": np.zeros(3, np.float32)})


def spans_of(shard):
    length = header_length(shard[:LENGTH_BYTES], len(shard))
    return parse_header(shard[LENGTH_BYTES : LENGTH_BYTES + length], len(shard))


def test_planes_and_other_tensors_are_told_apart():
    spans = spans_of(SHARD)
    found = [(s.name, s.length, s.dtype, s.dims) for s in spans]
    assert found == [("a", 64, "U8", (64,)), ("b", 12, "F32", (3,))]
    assert spans[-1].start + spans[-1].length == len(SHARD)


def test_a_file_that_is_no_shard_has_no_header():
    assert header_length(b"short", 100) is None
    assert header_length((99).to_bytes(8, "little"), 100) is None
    assert header_length((1 << 60).to_bytes(8, "little"), 1 << 62) is None


def test_tensors_that_overlap_or_leave_a_hole_are_not_believed():
    for offsets in ([0, 3], [2, 4]), ([0, 2], [3, 4]), ([0, 2], [2, 3]), ([0, 5], [5, 4]):
        table = {
            name: {"dtype": "U8", "shape": [3], "data_offsets": pair}
            for name, pair in zip("ab", offsets, strict=True)
        }
        header = json.dumps(table).encode()
        assert parse_header(header, LENGTH_BYTES + len(header) + 4) is None


def test_a_tensor_without_whole_dimensions_is_not_believed():
    for shape in (None, 4, ["4"], [4.0]):
        table = {"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, 4]}}
        header = json.dumps(table).encode()
        assert parse_header(header, LENGTH_BYTES + len(header) + 4) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_not(data):
    assert parse_header(data, len(data) + LENGTH_BYTES) in (None, [])
