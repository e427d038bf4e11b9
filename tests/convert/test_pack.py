import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent import _core
from edgeagent.convert.pack import (
    choose_layout,
    pack_channels3,
    pack_input_major,
    pack_output_major,
    pack_plane,
    pack_rows3,
    pack_tiles3,
    ternarise_absmean,
    unpack,
)


def random_trits(out, in_, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, (out, in_)).astype(np.int8)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 9))
def test_both_orientations_give_the_trits_back(out, in_, seed):
    trits = random_trits(out, in_, seed)
    rows, panels = pack_output_major(trits), pack_input_major(trits)
    assert rows.shape == (out, -(-in_ // 128) * 32)
    assert panels.shape == (-(-out // 256), in_, 64)
    assert np.array_equal(unpack(rows, out, in_), trits)
    assert np.array_equal(unpack(panels, out, in_), trits)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 9))
def test_every_orientation_of_base_3_gives_the_trits_back(out, in_, seed):
    trits = random_trits(out, in_, seed)
    rows, channels, tiles = pack_rows3(trits), pack_channels3(trits), pack_tiles3(trits)
    assert rows.shape == (out, -(-in_ // 320) * 64)
    assert channels.shape == (in_, -(-out // 320), 64)
    assert tiles.shape == (-(-out // 80), -(-in_ // 4), 16, 4)
    for plane in (rows, channels, tiles):
        assert np.array_equal(unpack(plane, out, in_, 2), trits)
        _core.check_trits(plane, 2)


def code3(byte, field):
    """One code of a base-3 byte, straight from the definition in docs/formats.md."""
    return byte // 3**field % 3


def test_the_bytes_of_base_3_are_those_of_the_definition():
    trits = random_trits(700, 650)
    rows, channels, tiles = pack_rows3(trits), pack_channels3(trits), pack_tiles3(trits)
    for out, in_ in [(0, 0), (699, 649), (319, 320), (320, 319), (17, 333), (81, 5)]:
        want = trits[out, in_] + 1
        assert code3(rows[out, in_ // 320 * 64 + in_ % 64], in_ % 320 // 64) == want
        assert code3(channels[in_, out // 320, out % 64], out % 320 // 64) == want
        assert code3(tiles[out // 80, in_ // 4, out % 16, in_ % 4], out % 80 // 16) == want


@pytest.mark.parametrize("layout", [1, 2])
def test_a_plane_is_packed_for_what_it_can_skip(layout):
    trits = random_trits(90, 70)
    dims = {
        (projection, relu2): pack_plane(trits, projection, relu2=relu2, layout=layout).ndim
        for projection in ("gate_proj", "up_proj", "down_proj")
        for relu2 in (True, False)
    }
    dense, skips_inputs = (3, 3) if layout == 1 else (4, 3)
    assert dims["up_proj", True] == 2
    assert dims["down_proj", True] == skips_inputs
    assert dims["gate_proj", True] == dims["gate_proj", False] == dense
    assert dims["up_proj", False] == dims["down_proj", False] == dense


def test_large_models_are_base_3():
    assert choose_layout(3_000_000) == 1
    assert choose_layout(2_084_044_800) == 2


def code(packed_block, i):
    """Code i of one 32-byte block, straight from the definition in docs/formats.md."""
    return packed_block[i % 32] >> (2 * (i // 32)) & 3


def test_the_bytes_are_those_of_the_definition():
    trits = random_trits(300, 200)
    rows, panels = pack_output_major(trits), pack_input_major(trits)
    for out, in_ in [(0, 0), (299, 199), (255, 128), (256, 127), (17, 33)]:
        block = rows[out, in_ // 128 * 32 :][:32]
        assert code(block, in_ % 128) == trits[out, in_] + 1
        line = panels[out // 256, in_]
        assert code(line[out % 256 // 128 * 32 :][:32], out % 128) == trits[out, in_] + 1


def test_padding_is_trit_zero_and_code_three_never_occurs():
    packed = pack_output_major(random_trits(3, 100))
    assert all(code(packed[0], i) == 1 for i in range(100, 128))
    for plane in (packed, pack_input_major(random_trits(100, 3))):
        assert all(((plane >> s) & 3).max() <= 2 for s in (0, 2, 4, 6))


def test_absmean_rounds_half_to_even_and_keeps_its_floor():
    weights = np.array([[0.5, -0.5, 1.5, -1.5]], np.float32)  # mean |w| = 1
    trits, scale = ternarise_absmean(weights)
    assert scale == pytest.approx(1.0)
    assert trits.tolist() == [[0, 0, 1, -1]]
    zeros, floor = ternarise_absmean(np.zeros((2, 2), np.float32))
    assert floor == np.float32(1e-5)
    assert not zeros.any()
