"""Kernels through the binding; matches the C suite tests/kernel_check.c."""

import subprocess
import sys

import numpy as np
import pytest

from edgeagent import _core
from tests.core.toy import pack_input_major, pack_output_major, random_trits

SIZES = [(1, 1), (3, 127), (5, 128), (7, 129), (256, 256), (257, 341), (300, 2049)]


def activations(rng, n, fill):
    if fill == "largest":
        return np.full(n, 127, np.int8)
    if fill == "opposite":
        return np.where(np.arange(n) % 2, 127, -127).astype(np.int8)
    x = rng.integers(-127, 128, n).astype(np.int8)
    if fill == "sparse":
        x[rng.random(n) < 0.8] = 0
    return x


@pytest.mark.parametrize("fill", ["random", "largest", "opposite", "sparse"])
@pytest.mark.parametrize(("n_out", "n_in"), SIZES)
def test_both_orientations_equal_integer_arithmetic(variant, n_out, n_in, fill):
    rng = np.random.default_rng(n_out)
    trits = random_trits(rng, n_out, n_in)
    if fill == "largest":
        trits[:] = 1
    x = activations(rng, n_in, fill)
    want = trits.astype(np.int64) @ x.astype(np.int64)
    kernels = _core.Kernels(variant)

    rows = np.empty(n_out, np.int32)
    kernels.gemv_rows(pack_output_major(trits), x, rows)
    assert np.array_equal(rows, want)

    lines = pack_input_major(trits)
    columns = np.full(len(lines) * 256, -1, np.int32)
    kernels.gemv_cols(lines, x, columns)
    assert np.array_equal(columns[:n_out], want)
    assert not columns[n_out:].any()  # padding is trit 0

    live = np.flatnonzero(x).astype(np.uint32)
    columns[:] = -1
    kernels.gemv_cols(lines, x, columns, live)
    assert np.array_equal(columns[:n_out], want)


def test_only_the_listed_rows_and_units_are_written(variant):
    rng = np.random.default_rng(0)
    trits = random_trits(rng, 400, 200)
    x = activations(rng, 200, "random")
    want = trits.astype(np.int64) @ x.astype(np.int64)
    kernels = _core.Kernels(variant)

    listed = np.array([0, 3, 4, 399], np.uint32)
    y = np.full(400, 77, np.int32)
    kernels.gemv_rows(pack_output_major(trits), x, y, listed)
    assert np.array_equal(y[listed], want[listed])
    assert (np.delete(y, listed) == 77).all()

    y = np.full(512, 77, np.int32)
    kernels.gemv_cols(pack_input_major(trits), x, y, None, (1, 3))
    assert np.array_equal(y[128:384], want[128:384])
    assert (y[:128] == 77).all() and (y[384:] == 77).all()


def test_an_unlisted_channel_is_not_read(variant):
    rng = np.random.default_rng(1)
    trits = random_trits(rng, 256, 100)
    x = activations(rng, 100, "largest")
    live = np.arange(0, 100, 3, dtype=np.uint32)
    y = np.empty(256, np.int32)
    _core.Kernels(variant).gemv_cols(pack_input_major(trits), x, y, live)
    assert np.array_equal(y, trits[:, live].astype(np.int64) @ x[live].astype(np.int64))


def sixteen_lanes(products):
    """Add float32 products in the order of the contract, one rounding at a time."""
    lanes = np.zeros(16, np.float32)
    for i, product in enumerate(products):
        lanes[i % 16] += product
    for width in (8, 4, 2, 1):
        lanes[:width] += lanes[width : 2 * width]
    return lanes[0]


@pytest.mark.parametrize("n", [1, 15, 16, 17, 100, 256])
@pytest.mark.parametrize("n_rows", [1, 4, 6])
def test_float_ops_add_in_the_contracts_order(variant, n_rows, n):
    rng = np.random.default_rng(n)
    rows = rng.standard_normal((n_rows, n)).astype(np.float32)
    halves = rows.astype(np.float16)
    x = rng.standard_normal(n).astype(np.float32)
    weights = rng.standard_normal(n_rows).astype(np.float32)
    kernels = _core.Kernels(variant)

    y = np.empty(n_rows, np.float32)
    kernels.dot_f32(rows, x, y)
    assert np.array_equal(y, [sixteen_lanes(row * x) for row in rows])
    kernels.dot_f16(halves.view(np.uint16), x, y)
    assert np.array_equal(y, [sixteen_lanes(row.astype(np.float32) * x) for row in halves])

    mixed, want = np.empty(n, np.float32), np.zeros(n, np.float32)
    for weight, row in zip(weights, rows, strict=True):
        want += weight * row
    kernels.mix_f32(rows, weights, mixed)
    assert np.array_equal(mixed, want)


def test_every_float16_is_converted_exactly(variant):
    bits = np.arange(65536, dtype=np.uint16).reshape(-1, 1)
    y = np.empty(65536, np.float32)
    _core.Kernels(variant).dot_f16(bits, np.ones(1, np.float32), y)
    want = bits.view(np.float16).astype(np.float32).ravel()
    assert np.array_equal(y, want, equal_nan=True)


def test_scalar_is_always_there_and_last():
    assert _core.variants()[-1] == "scalar"
    assert _core.supported_variants()[-1] == "scalar"
    assert set(_core.supported_variants()) <= set(_core.variants())


def test_the_best_supported_variant_is_the_default(monkeypatch):
    monkeypatch.delenv("EDGEAGENT_KERNEL", raising=False)
    assert _core.Kernels().name == _core.supported_variants()[0]


def test_the_environment_forces_a_variant(monkeypatch):
    monkeypatch.setenv("EDGEAGENT_KERNEL", "scalar")
    assert _core.Kernels().name == "scalar"


def test_unknown_variant_is_an_error_not_a_fallback(monkeypatch):
    with pytest.raises(ValueError, match=r"^kernel 'sse9' is unknown .*; have .*scalar$"):
        _core.Kernels("sse9")
    monkeypatch.setenv("EDGEAGENT_KERNEL", "mmx")
    with pytest.raises(ValueError, match=r"^kernel 'mmx' is unknown or not supported"):
        _core.Kernels()


def u8(*shape):
    return np.zeros(shape, np.uint8)


def i8(n):
    return np.zeros(n, np.int8)


def i32(n):
    return np.zeros(n, np.int32)


REFUSALS = [
    ("gemv_rows", (u8(2, 64), i8(100), i32(2)), r"expected plane \(2, 32\), got \(2, 64\)"),
    ("gemv_rows", (u8(2, 32), i8(100), i32(3)), r"expected plane \(3, 32\), got \(2, 32\)"),
    ("gemv_rows", (u8(2, 32), i8(0), i32(2)), "expected 1 to .* inputs, got 0"),
    ("gemv_rows", (u8(2, 32), np.full(9, -128, np.int8), i32(2)), "expected -127 to 127, got -128"),
    (
        "gemv_rows",
        (u8(2, 32), i8(9), i32(2), np.array([2], np.uint32)),
        r"rows\[0\]: expected below 2",
    ),
    ("gemv_cols", (u8(1, 8, 64), i8(9), i32(256)), r"expected plane \(panels, 9, 64\)"),
    ("gemv_cols", (u8(1, 9, 64), i8(9), i32(9)), "y: expected 256 outputs, got 9"),
    ("gemv_cols", (u8(1, 9, 64), i8(9), i32(256), None, (1, 3)), "units: expected a range"),
    (
        "gemv_cols",
        (u8(1, 9, 64), i8(9), i32(256), np.array([4, 4], np.uint32)),
        r"live\[1\]: expected an ascending list of indices below 9",
    ),
    (
        "dot_f32",
        (np.zeros((2, 3), "f4"), np.zeros(4, "f4"), np.zeros(2, "f4")),
        r"expected x \(3,\) and y \(2,\)",
    ),
]


@pytest.mark.parametrize(("op", "arguments", "message"), REFUSALS)
def test_shapes_that_disagree_are_refused(op, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(_core.Kernels(), op)(*arguments)


@pytest.mark.parametrize("at", [0, 7, 8, 15, 16])
@pytest.mark.parametrize("shift", [0, 2, 4, 6])
def test_check_trits_names_the_byte_that_holds_code_3(at, shift):
    good = bytes([0b10_01_00_10] * 17)
    _core.check_trits(good)
    bad = bytearray(good)
    bad[at] |= 3 << shift
    with pytest.raises(ValueError, match=f"got code 3 in byte {at}$"):
        _core.check_trits(bad)


def test_the_core_does_not_import_numpy():
    code = "import sys, edgeagent._core; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
