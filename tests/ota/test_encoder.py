"""What the small models of ``test_container`` are too small for."""

import numpy as np
import pytest

from ota.container import PIECE_BYTES, Container
from ota.encoder import DICTIONARY_SLACK
from ota.plan import BLOCK_BYTES, RegionKind
from tests.ota.codec import decode, encode, release_of
from tests.ota.fakes import Bytes
from tests.ota.models import pack, random_trits, safetensors

RNG = np.random.default_rng(11)
NOISE = RNG.bytes(2 * BLOCK_BYTES + 12345)


def regions_of(old, new):
    data = encode(old, new)
    assert decode(data, old) == new
    container = Container(Bytes(data), release_of(old))
    return data, [r for regions in container.regions.values() for r in regions]


def test_a_large_file_is_cut_into_blocks_and_only_the_changed_one_is_sent():
    changed = bytearray(NOISE)
    changed[BLOCK_BYTES + 5000 : BLOCK_BYTES + 5004] = b"new!"
    data, regions = regions_of({"a.bin": NOISE}, {"a.bin": bytes(changed)})
    assert [r.kind for r in regions] == [RegionKind.COPY, RegionKind.BYTES, RegionKind.COPY]
    assert len(data) < 1000


@pytest.mark.parametrize("shift", [1, 1000, DICTIONARY_SLACK - 100])
def test_what_moved_a_little_is_found_in_the_old_bytes(shift):
    data, _ = regions_of({"a.bin": NOISE}, {"a.bin": RNG.bytes(shift) + NOISE})
    assert len(data) < shift + 1000


@pytest.mark.parametrize("length", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_files_of_odd_lengths_come_and_go(length):
    for old, new in ((NOISE[:length], NOISE[:100]), (NOISE[:100], NOISE[:length])):
        regions_of({"a.bin": old, "b": b"1"}, {"a.bin": new, "b": b"2"})


@pytest.mark.parametrize("n_flips", [1, 2, 500])
def test_a_plane_of_many_pieces_with_few_flips(n_flips):
    trits = random_trits(RNG, 5 * PIECE_BYTES * 4)
    new = trits.copy()
    at = RNG.choice(trits.size, n_flips, replace=False)
    new[at] = np.where(trits[at] == 0, 1, 0)
    data, regions = regions_of(
        {"m.safetensors": safetensors({"w": pack(trits)})},
        {"m.safetensors": safetensors({"w": pack(new)})},
    )
    assert [r.kind for r in regions].count(RegionKind.FLIPS) == 1
    assert len(data) < 500 + 3 * n_flips


def test_a_u8_tensor_that_is_no_plane_is_sent_as_bytes():
    old = safetensors({"w": np.full(64, 0xFF, np.uint8)})
    new = safetensors({"w": np.full(64, 0xFE, np.uint8)})
    _, regions = regions_of({"m.safetensors": old}, {"m.safetensors": new})
    assert RegionKind.FLIPS not in {r.kind for r in regions}


def test_a_plane_that_changes_its_length_is_sent_as_bytes():
    old = safetensors({"w": pack(random_trits(RNG, 1280))})
    new = safetensors({"w": pack(random_trits(RNG, 2560))})
    _, regions = regions_of({"m.safetensors": old}, {"m.safetensors": new})
    assert RegionKind.FLIPS not in {r.kind for r in regions}


def test_new_tensors_are_coded_from_nothing():
    old = {"w": pack(random_trits(RNG, 1280))}
    new = {**old, "x": pack(random_trits(RNG, 12800)), "y": RNG.normal(size=300).astype(np.float16)}
    data, regions = regions_of(
        {"m.safetensors": safetensors(old)}, {"m.safetensors": safetensors(new)}
    )
    kinds = [r.kind for r in regions]
    assert RegionKind.TRITS in kinds and RegionKind.NEW in kinds
    assert len(data) < 12800 * 1.6 / 8 + 600 + 300


def test_a_plane_that_only_its_dimensions_tell_from_another_is_still_made():
    trits = random_trits(RNG, 128 * 60)
    planes = [pack(trits).reshape(dims) for dims in ((60, 32), (1, 30, 64))]
    data, regions = regions_of(
        *({"m.safetensors": safetensors({"w": p, "x": np.array([k], np.float32)})}
          for k, p in enumerate(planes))
    )  # fmt: skip
    assert [r.kind for r in regions].count(RegionKind.COPY) == 1 and len(data) < 800


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_floats_that_move_a_little_cost_a_part_of_their_bytes(dtype):
    old = RNG.normal(0, 0.1, 50_000).astype(dtype)
    new = (old * (1 + RNG.normal(0, 1e-3, old.size))).astype(dtype)
    data, regions = regions_of(
        {"m.safetensors": safetensors({"w": old})}, {"m.safetensors": safetensors({"w": new})}
    )
    assert {r.kind for r in regions} <= {RegionKind.COPY, RegionKind.WORDS}
    assert len(data) < {2: 0.2, 4: 0.5}[old.itemsize] * old.nbytes


def test_rows_of_an_embedding_that_did_not_change_cost_nothing():
    old = RNG.normal(0, 0.1, (4000, 256)).astype(np.float16)
    new = old.copy()
    new[2500:2503] += np.float16(0.01)
    data, regions = regions_of(
        {"m.safetensors": safetensors({"w": old})}, {"m.safetensors": safetensors({"w": new})}
    )
    assert [r.kind for r in regions] == [RegionKind.COPY, RegionKind.WORDS, RegionKind.COPY]
    assert len(data) < 1800


def test_a_file_that_only_looks_like_a_shard_is_sent_as_bytes():
    regions_of({"m.safetensors": b"\xff" * 99}, {"m.safetensors": b"\x05" + bytes(99)})


def test_encoding_is_reproducible():
    old, new = {"a.bin": NOISE}, {"a.bin": NOISE[::-1]}
    assert encode(old, new) == encode(old, new)
