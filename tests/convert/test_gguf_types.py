"""The published layouts against vectors, against the `gguf` package, and against themselves."""

import hashlib

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import gguf_peer
from edgeagent.convert.gguf_types import (
    I2S_VARIANTS,
    TERNARY_BLOCKS,
    decode_blocks,
    decode_hf,
    decode_i2s,
    decode_q4_trits,
    encode_blocks,
    encode_hf,
    encode_i2s,
)
from edgeagent.errors import ModelError

N = np.arange(512)
TRITS = ((N * N + N // 7 + N // 64) % 3 - 1).astype(np.int8)
SCALE = np.float32(0.5)

# layout -> (bytes, first 16, first 16 hex digits of the SHA-256 of all)
VECTORS = {
    "hf": (128, "20a9914089a54482268512069916081a", "af41cdaa7e2a9676"),
    "canonical": (160, "2a586508694500a18941829a51861295", "ec40dde83c78c050"),
    "neon64": (160, "08466a014a42119a8052908466a014a4", "6f3dd5a0232819e8"),
    "rows4": (160, "206951206a560582a64582a44a94089a", "a10a3c87f71e9c80"),
    "TQ1_0": (108, "53879b13a76402e7c25ab1e278bc25d6", "9cce0110f68382e4"),
    "TQ2_0": (132, "a82559206951004a624182a645928456", "4dbc0870f76f9b02"),
    "PTQ1_0": (112, "1668a906715d20e1ad79c8b79fe526ef", "6e74a22eb657e10f"),
    "Q2_0_G64": (144, "00381485a6892050149a26824051689a", "359c9e7c44c0b93d"),
    "Q2_0_G128": (136, "00381485a6892050149a26824051689a", "fb4b688c4c841b9a"),
    "IQ2_BN": (136, "0000003f2091a940a18144a602850612", "cc16bb63fc04e783"),
}


def encode(layout, matrix):
    if layout == "hf":
        return encode_hf(matrix)
    if layout in I2S_VARIANTS:
        return encode_i2s(matrix, SCALE, layout)
    return encode_blocks(layout, matrix, SCALE)


def decode(layout, data, shape):
    if layout == "hf":
        return decode_hf(data.reshape(-1, shape[1])), SCALE
    if layout in I2S_VARIANTS:
        return decode_i2s(data, *shape, layout)
    return decode_blocks(layout, data, *shape)


@pytest.mark.parametrize("layout", VECTORS)
def test_the_vectors_are_encoded_byte_for_byte_and_decoded(layout):
    n_bytes, first, digest = VECTORS[layout]
    shape = (8, 64) if layout in ("hf", "rows4", "Q2_0_G64") else (2, 256)
    matrix = TRITS.reshape(shape)
    data = encode(layout, matrix).tobytes()
    assert len(data) == n_bytes
    assert data[:16].hex() == first
    assert hashlib.sha256(data).hexdigest()[:16] == digest
    trits, scales = decode(layout, np.frombuffer(data, np.uint8), shape)
    assert np.array_equal(trits, matrix)
    assert np.all(scales == SCALE)


@given(st.integers(0, 99), st.sampled_from(sorted(VECTORS)), st.integers(1, 5), st.integers(1, 3))
def test_what_is_encoded_comes_back(seed, layout, rows, blocks):
    shape = (4 * rows, 256 * blocks)
    matrix = np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)
    trits, _ = decode(layout, encode(layout, matrix).ravel(), shape)
    assert np.array_equal(trits, matrix)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_the_gguf_package_writes_and_reads_the_same_bytes(name):
    kind = gguf.GGMLQuantizationType[name]
    rng = np.random.default_rng(3)
    trits = rng.integers(-1, 2, (6, 512)).astype(np.int8)
    trits[2, :256] = 0  # a block of zeros has no scale
    scales = rng.choice(np.array([0.25, 1.75], np.float32), (6, 2))
    ours = encode_blocks(name, trits, scales)
    floats = trits * np.repeat(scales, 256, axis=1)
    assert np.array_equal(gguf.quants.quantize(floats, kind), ours)
    assert np.array_equal(gguf.quants.dequantize(ours, kind), floats)


@given(st.binary(min_size=48, max_size=48), st.binary(min_size=4, max_size=4))
def test_any_base_3_byte_decodes_as_the_gguf_package_does(qs, qh):
    data = np.frombuffer(qs + qh + b"\x00\x3c", np.uint8)
    trits, _ = decode_blocks("TQ1_0", data, 1, 256)
    want = gguf.quants.dequantize(data.reshape(1, -1), gguf.GGMLQuantizationType.TQ1_0)
    assert np.array_equal(trits, want)


@pytest.mark.parametrize("layout", [name for name in VECTORS if "TQ1" not in name])
def test_code_three_is_refused(layout):
    shape = (4, 256)
    data = encode(layout, np.zeros(shape, np.int8)).ravel().copy()
    data[5] = 0xFF
    with pytest.raises(ModelError, match="code 3"):
        decode(layout, data, shape)


@pytest.mark.parametrize("kind", TERNARY_BLOCKS)
def test_a_scale_that_is_no_number_is_refused_and_not_written(kind):
    block = TERNARY_BLOCKS[kind]
    ones = np.ones((1, block.weights), np.int8)
    data = encode_blocks(kind, ones, SCALE).copy()
    at = slice(0, 2) if block.scale_first else slice(2, 4) if block.row_scale else slice(-2, None)
    data[0, at] = (0x80, 0x7F) if block.row_scale else (0, 0x7C)  # infinity
    with pytest.raises(ModelError, match="not finite"):
        decode_blocks(kind, data, *ones.shape)
    if block.row_scale:  # a float32, which holds every scale that we have
        _, scales = decode_blocks(kind, encode_blocks(kind, ones, np.float32(1e6)), *ones.shape)
        assert scales.tolist() == [[1e6]]
        return
    with pytest.raises(ModelError, match="float16"):
        encode_blocks(kind, ones, np.float32(1e6))


def test_iq2_bn_as_the_writer_whose_files_ik_llama_cpp_is_measured_with():
    rng = np.random.default_rng(4)
    trits = rng.integers(-1, 2, (6, 192)).astype(np.int8)
    assert np.array_equal(
        encode_blocks("IQ2_BN", trits, SCALE), gguf_peer.iq2_bn(trits, np.float16(SCALE))
    )
    scales = rng.random((6, 1)).astype(np.float32)  # one a row, and none of them a float16
    again, found = decode_blocks("IQ2_BN", encode_blocks("IQ2_BN", trits, scales), 6, 192)
    assert np.array_equal(again, trits)
    assert np.array_equal(found, scales)


def test_rows_that_are_no_whole_blocks_are_refused():
    with pytest.raises(ModelError, match="multiple of 256"):
        encode_blocks("TQ2_0", np.zeros((2, 128), np.int8), SCALE)
    with pytest.raises(ModelError, match="whole blocks of 128"):
        encode_i2s(np.zeros((1, 64), np.int8), 1.0)
    with pytest.raises(ModelError, match="whole blocks of 4"):
        decode_i2s(np.zeros(100, np.uint8), 3, 64, "rows4")
    with pytest.raises(ModelError, match="variant"):
        encode_i2s(np.zeros((2, 64), np.int8), 1.0, "arm")
    with pytest.raises(ModelError, match="multiple of 4"):
        encode_hf(np.zeros((6, 4), np.int8))


def test_trits_come_back_out_of_the_four_bits_llama_cpp_falls_back_to():
    rng = np.random.default_rng(5)
    trits = rng.integers(-1, 2, (40, 96)).astype(np.int8)
    trits[3, 32:64] = 0
    data = gguf.quants.quantize(trits * np.float32(0.75), gguf.GGMLQuantizationType.Q4_0)
    got, scales = decode_q4_trits(data, *trits.shape)
    assert np.array_equal(got, trits)
    assert np.all(scales[scales > 0] == np.float32(0.75))
    exact = np.empty((120, 18), np.uint8)  # as our own exports have them
    exact[:, :2] = np.array([0.75], "<f2").view(np.uint8)
    codes = (trits.reshape(-1, 32) + 8).astype(np.uint8)
    exact[:, 2:] = codes[:, :16] | codes[:, 16:] << 4
    got, scales = decode_q4_trits(exact, *trits.shape)
    assert np.array_equal(got, trits)
    assert np.all(scales == np.float32(0.75))
    floats = rng.standard_normal((4, 96)).astype(np.float32)
    with pytest.raises(ModelError, match="not a ternary"):
        decode_q4_trits(gguf.quants.quantize(floats, gguf.GGMLQuantizationType.Q4_0), 4, 96)
