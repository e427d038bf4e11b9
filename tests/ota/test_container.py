import base64
import json
import math
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ota.container import MAGIC, MAX_HEAD_BYTES, Container, pack_head, parse_head, unpack_frame
from ota.delta import Column
from ota.encoder import pack_frame
from ota.errors import DeltaFormatError, PayloadError, PayloadMismatch, WrongBase
from ota.hollow import UNKNOWN
from ota.plan import MAX_PLAN_BYTES, Plan, Region, RegionKind, pack_plan
from ota.release import short_root
from tests.ota.codec import decode, encode, release_of
from tests.ota.fakes import Bytes, Files
from tests.ota.models import pack, random_trits, safetensors

GOLDEN = Path(__file__).parent / "golden" / "delta.json"
RNG = np.random.default_rng(5)


def shard(planes, floats=b""):
    tensors = {f"p{k}": np.frombuffer(p, np.uint8) for k, p in enumerate(planes)}
    if floats:
        tensors["norm"] = np.frombuffer(floats, np.float32)
    return safetensors(tensors)


def flipped(plane, rate, rng):
    trits = unpack(plane)
    hit = rng.random(trits.size) < rate
    trits[hit] = (trits[hit] + rng.choice([1, 2], hit.sum())) % 3
    codes = trits.reshape(-1, 4)
    return bytes(codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6)


def unpack(plane):
    data = np.frombuffer(plane, np.uint8)
    return (data[:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3).reshape(-1)


PLANES = [pack(random_trits(RNG, 128 * n)).tobytes() for n in (1, 4, 32)]
OLD = {
    "config.json": b'{"a": 1}' * 9,
    "tokenizer.json": b"unchanged",
    "one.safetensors": shard(PLANES, bytes(64)),
    "two.safetensors": shard(PLANES[:1]),
}
NEW = {
    **OLD,
    "config.json": b'{"a": 2}' * 9,
    "one.safetensors": shard(
        [PLANES[0], *(flipped(p, 0.05, RNG) for p in PLANES[1:])], bytes(60) + b"\1\2\3\4"
    ),
}
DELTA = encode(OLD, NEW)


def test_a_delta_makes_the_new_model():
    assert decode(DELTA, OLD) == NEW


def test_a_full_image_is_the_same_container_without_a_base():
    data = encode(None, NEW)
    assert decode(data, None) == NEW
    assert decode(data, OLD) == NEW  # a device with another model may use it too


def test_a_delta_can_be_made_the_other_way_round():
    assert decode(encode(NEW, OLD), NEW) == OLD


def test_unchanged_and_renamed_files_are_kept_and_cost_nothing():
    renamed = {f"new-{name}": data for name, data in OLD.items()}
    data = encode(OLD, renamed)
    container = Container(Bytes(data), release_of(OLD))
    assert container.kept == {f"new-{name}": name for name in OLD}
    assert container.regions == {} and container.written_bytes == 0
    assert len(data) < 400


def test_a_delta_names_no_hash_of_what_it_makes_and_knows_them_all_at_its_end():
    container = Container(Bytes(DELTA), release_of(OLD))
    whole = release_of(NEW, "1.1.0", 2)
    changed = sorted(container.regions)
    assert [container.draft.files[name].sha256 for name in changed] == [UNKNOWN] * len(changed)
    assert container.draft.root == whole.root
    with pytest.raises(DeltaFormatError, match="made before"):
        _ = container.release
    for _, pieces in container.make(Files(OLD)):
        b"".join(pieces)
    assert container.release == whole


def test_what_is_added_up_or_stands_alone_says_its_release_at_once():
    for data, base in (
        (encode(OLD, NEW, reversible=True), release_of(OLD)),
        (encode(None, NEW), None),
    ):
        assert Container(Bytes(data), base).release == release_of(NEW, "1.1.0", 2)


def test_an_unchanged_plane_of_a_changed_shard_costs_a_copy():
    container = Container(Bytes(DELTA), release_of(OLD))
    kinds = [region.kind for region in container.regions["one.safetensors"]]
    assert kinds.count(RegionKind.COPY) == 1  # header and first plane, one stretch
    assert kinds.count(RegionKind.FLIPS) == 2
    assert kinds.count(RegionKind.WORDS) == 1


@st.composite
def models(draw):
    """Two models: files appear, go, change their length, planes flip at any rate."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    names = st.sampled_from(["a.json", "b.json", "c.safetensors", "d.safetensors"])

    def file(name):
        if name.endswith("json"):
            return rng.bytes(draw(st.integers(0, 300))) * draw(st.integers(1, 3))
        planes = [
            pack(random_trits(rng, 128 * draw(st.integers(1, 20)))).tobytes()
            for _ in range(draw(st.integers(0, 3)))
        ]
        return shard(planes, rng.bytes(4 * draw(st.integers(0, 20))))

    old = {name: file(name) for name in draw(st.sets(names, min_size=1))}
    new = {name: file(name) for name in draw(st.sets(names, min_size=1))}
    rate = draw(st.sampled_from([0, 1e-3, 1e-2, 0.3, 1]))
    for name in set(old) & set(new):
        if name.endswith("safetensors") and draw(st.booleans()):
            planes = [flipped(p, rate, rng) for p in planes_of(old[name])]
            new[name] = shard(planes, rng.bytes(8))
    return old, new


def planes_of(data):
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    spans = [e["data_offsets"] for e in table.values() if e["dtype"] == "U8"]
    return [data[8 + length + a : 8 + length + b] for a, b in spans]


@settings(max_examples=60, deadline=None)
@given(models())
def test_any_pair_of_models_survives(pair):
    old, new = pair
    assert decode(encode(old, new), old) == new
    assert decode(encode(None, new), None) == new


def test_a_delta_for_another_base_says_which_one_it_wants():
    other = {**OLD, "tokenizer.json": b"another"}
    with pytest.raises(WrongBase) as caught:
        decode(DELTA, other)
    assert short_root(release_of(OLD).root) in str(caught.value)
    assert short_root(release_of(other).root) in str(caught.value)
    with pytest.raises(WrongBase, match="no model"):
        decode(DELTA, None)


def test_a_base_that_is_not_what_it_says_gives_an_error_and_no_model():
    rotten = {**OLD, "one.safetensors": OLD["one.safetensors"][:-300] + bytes(300)}
    container = Container(Bytes(DELTA), release_of(OLD))
    with pytest.raises(PayloadError):
        for _, pieces in container.make(Files(rotten)):
            b"".join(pieces)
    with pytest.raises(DeltaFormatError, match="made before"):
        _ = container.release


def test_no_flipped_bit_makes_another_model():
    """All but a handful are refused: zstd has bits in its frame headers that mean nothing."""
    data = bytearray(DELTA)
    n_harmless = 0
    for index in range(len(data)):
        data[index] ^= 1 << index % 8
        try:
            assert decode(bytes(data), OLD) == NEW
            n_harmless += 1
        except PayloadError:
            pass
        data[index] ^= 1 << index % 8
    assert n_harmless < 8


def test_no_truncation_or_addition_goes_unnoticed():
    data = DELTA
    for length in [*range(0, len(data), 7), len(data) - 1]:
        with pytest.raises(PayloadError):
            decode(data[:length], OLD)
    with pytest.raises(DeltaFormatError, match="another length"):
        decode(data + b"\0", OLD)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    with pytest.raises(PayloadError):
        decode(MAGIC + data, OLD)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 4))
def test_any_change_of_the_plan_is_refused_or_makes_the_same_model(seed, n_changes):
    """The plan is repacked with a good checksum: its own checks must hold."""
    data = DELTA
    base = release_of(OLD)
    _, root, start, n_packed = parse_head(data[:MAX_HEAD_BYTES])
    plan = bytearray(unpack_frame(data[start : start + n_packed], MAX_PLAN_BYTES, base.text))
    rng = random.Random(seed)
    for _ in range(n_changes):
        at = rng.randrange(len(release_of(NEW).text), len(plan)) if rng.random() < 0.9 else 0
        plan[at] = rng.randrange(256)
    packed = pack_frame(bytes(plan), base.text)
    head = pack_head(base, root.hex(), len(packed))
    try:
        made = decode(head + packed + data[start + n_packed :], OLD)
    except PayloadError:
        return
    assert made == NEW


def container_of(regions, columns=None, name="a", n_bytes=100, shapes=()):
    """Write a container by hand, for rules that the encoder never breaks."""
    columns = dict.fromkeys(Column, b"") | (columns or {})
    release = release_of({name: bytes(n_bytes)})
    n_coded = len(columns[Column.CODED])
    plan = pack_plan(Plan(release, n_coded, tuple(shapes), 1, False, {name: tuple(regions)}))
    packed = pack_frame(plan, b"")
    head = pack_head(None, release.root, len(packed))
    return head + packed + b"".join(columns[column] for column in Column)


def test_a_hand_made_container_is_read():
    frame = pack_frame(bytes(100), b"")
    region = Region(RegionKind.BYTES, 100, packed=len(frame))
    data = container_of([region], {Column.BYTES: frame})
    assert decode(data, None) == {"a": bytes(100)}


@pytest.mark.parametrize(
    ("region", "says"),
    [
        (Region(RegionKind.COPY, 100), "expected 0 old bytes"),
        (Region(RegionKind.FLIPS, 100), "expected 0 old bytes"),
        (Region(RegionKind.BYTES, 99), "regions make 99"),
        (Region(RegionKind.BYTES, 1 << 21), "breaks a limit"),
        (Region(RegionKind.BYTES, 100, packed=1 << 21), "breaks a limit"),
        (Region(RegionKind.BYTES, 100, packed=1), "another length"),
        (Region(RegionKind.TRITS, 100), "breaks a limit"),  # there is no shape
        (Region(RegionKind.NEW, 100, width=3), "breaks a limit"),
        (Region(RegionKind.NEW, 99, width=2), "breaks a limit"),
        (Region(RegionKind.WORDS, 100, width=2), "expected 0 old bytes"),
    ],
)
def test_regions_that_break_a_rule_are_refused(region, says):
    with pytest.raises(DeltaFormatError, match=says):
        decode(container_of([region]), None)


def test_a_frame_without_a_checksum_is_refused():
    frame = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(100))[4:]
    region = Region(RegionKind.BYTES, 100, packed=len(frame))
    data = container_of([region], {Column.BYTES: frame})
    with pytest.raises(DeltaFormatError, match="checked frame"):
        decode(data, None)


def test_a_column_that_nobody_reads_is_refused():
    frame = pack_frame(bytes(100), b"")
    region = Region(RegionKind.BYTES, 100, packed=len(frame))
    data = container_of([region], {Column.BYTES: frame, Column.CODED: b"left over"})
    with pytest.raises(DeltaFormatError, match="longer than the planes"):
        decode(data, None)


def test_a_bomb_is_refused_in_bounded_memory():
    """A frame that unpacks to 128 MiB where 100 bytes are declared, and plans that say as much."""
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj(size=1 << 27)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1 << 7)) + packer.flush()
    bomb = bomb[4:]
    region = Region(RegionKind.BYTES, 100, packed=len(bomb))
    data = container_of([region], {Column.BYTES: bomb})
    head = pack_head(None, release_of({"a": b""}).root, (1 << 28) - 1)
    huge = pack_head(None, release_of({"a": b""}).root, len(bomb)) + bomb
    tracemalloc.start()
    try:
        for bad in (data, head + bytes(100), huge):
            with pytest.raises(DeltaFormatError):
                decode(bad, None)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_wrong_result_is_noticed_although_every_checksum_is_right():
    frame = pack_frame(b"\1" * 100, b"")
    region = Region(RegionKind.BYTES, 100, packed=len(frame))
    data = container_of([region], {Column.BYTES: frame})
    with pytest.raises(PayloadMismatch, match="expected sha256"):
        decode(data, None)


@pytest.mark.parametrize("vector", json.loads(GOLDEN.read_text()), ids=lambda v: v["name"])
def test_a_delta_written_by_an_older_release_is_still_read(vector):
    old, new = (
        vector[key] and {name: base64.b64decode(text) for name, text in vector[key].items()}
        for key in ("old", "new")
    )
    assert decode(base64.b64decode(vector["delta"]), old) == new


@pytest.mark.parametrize("rate", [2e-3, 1e-2, 5e-2, 0.2])
def test_independent_flips_cost_little_more_than_the_bound(rate):
    rng = np.random.default_rng(9)
    n = 1 << 20
    plane = pack(random_trits(rng, n)).tobytes()
    trits = unpack(plane)
    hit = rng.random(n) < rate
    signs = rng.choice([0, 2], n)
    new = np.where(hit, np.where(trits == 1, signs, 1), trits).astype(np.uint8).reshape(-1, 4)
    packed = bytes(new[:, 0] | new[:, 1] << 2 | new[:, 2] << 4 | new[:, 3] << 6)
    old_model, new_model = {"m.safetensors": shard([plane])}, {"m.safetensors": shard([packed])}
    flips, from_zero = int(hit.sum()), int((hit & (trits == 1)).sum())
    p = flips / n
    entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    bound = (n * entropy + from_zero) / 8
    overhead = 45 + 60  # header and plan
    assert len(encode(old_model, new_model)) < 1.02 * bound + overhead
