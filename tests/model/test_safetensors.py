import io
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.errors import ModelError
from edgeagent.model.safetensors import SafetensorsFile, parse_header, write_safetensors


def build(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def good():
    out = io.BytesIO()
    tensors = [
        ("norm", "F32", (3,), bytes(12)),
        ("embed", "F16", (5,), bytes(10)),
        ("plane", "U8", (2, 32), bytes(range(64))),
    ]
    write_safetensors(out, tensors, {"format": "edgeagent"})
    return out.getvalue()


def test_what_is_written_is_read_back_in_place(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(good())
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert file.metadata == {"format": "edgeagent"}
    dtype, shape, data = file.tensor("plane")
    assert (dtype, shape, bytes(data)) == ("U8", (2, 32), bytes(range(64)))
    assert data.readonly
    assert file.infos["plane"].begin % 64 == 0


ONE = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (b"", "got 0 bytes"),
        (b"1234567", "got 7 bytes"),
        (build({}, length=1 << 60), "header says 1152921504606846976"),
        (build({}, length=400), "cut short"),
        (build(b"{nope"), "not JSON"),
        (build(b"[1]"), "JSON object"),
        (build(b'{"a":1,"a":2}'), "appears twice"),
        (build(b"[" * 100_000), "not JSON"),
        (build({"a": 1}), "a: expected dtype"),
        (build({"a": {**ONE, "dtype": "F64"}}, bytes(4)), "expected dtype"),
        (build({"a": {**ONE, "dtype": ["U8"]}}, bytes(4)), "expected dtype"),
        (build({"a": {**ONE, "shape": [-4]}}, bytes(4)), "expected dims"),
        (build({"a": {**ONE, "shape": [True]}}, bytes(4)), "expected dims"),
        (build({"a": {**ONE, "shape": [1] * 9}}, bytes(4)), "at most 4 dims"),
        (build({"a": {**ONE, "shape": [5]}}, bytes(4)), "expected 5 bytes"),
        (build({"a": {**ONE, "data_offsets": [0, 5]}}, bytes(4)), "offsets within 4"),
        (build({"a": {**ONE, "data_offsets": [4, 0]}}, bytes(4)), "expected 4 bytes"),
        (build({"a": ONE, "b": ONE}, bytes(4)), "overlaps"),
        (build({"a": {**ONE, "data_offsets": [1, 5]}}, bytes(5)), "leaves a hole"),
        (build({"a": ONE}, bytes(9)), "expected tensors up to"),
        (build({"a": ONE, "__metadata__": 7}, bytes(4)), "__metadata__"),
        (build({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "aligned"),
    ],
)
def test_a_hostile_header_gets_one_line_that_names_the_trouble(blob, says):
    if says == "aligned":  # move the data off its alignment, whatever the header's length
        text = blob[8:-4]
        text += b" " * (1 + -(8 + len(text) + 1) % 4 + 1)
        blob = struct.pack("<Q", len(text)) + text + bytes(4)
    with pytest.raises(ModelError, match=says) as err:
        parse_header(blob, "m.safetensors")
    assert "\n" not in str(err.value)
    assert str(err.value).startswith("m.safetensors: ")


def test_a_file_cut_anywhere_is_refused():
    blob = good()
    for size in range(len(blob)):
        with pytest.raises(ModelError):
            parse_header(blob[:size], "m")


@settings(max_examples=300)
@given(st.data())
def test_a_changed_header_is_refused_or_still_describes_the_file(data):
    blob = bytearray(good())
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, 260))] = data.draw(st.integers(0, 255))
    try:
        tensors, _ = parse_header(bytes(blob), "m")
    except ModelError:
        return
    assert sum(info.end - info.begin for info in tensors.values()) <= len(blob)


def test_a_missing_or_empty_file_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="cannot be mapped"):
        SafetensorsFile(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(ModelError, match="cannot be mapped"):
        SafetensorsFile(tmp_path / "empty")
