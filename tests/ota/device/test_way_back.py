import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ota.device import way_back
from ota.device.store import Store
from ota.device.way_back import check_way, follow_way, make_way, open_way, own_bytes
from ota.errors import Cancelled, PatchDamaged, StorageFull
from ota.storage import Disk, read_release, verify_directory
from tests.ota.models import Shape, flip, random_shards, write_model, write_release

ROOT = Path(__file__).resolve().parents[3]
SHAPE = Shape(layers=2, plane_bytes=32 * 256, vocab_bytes=4096)


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A model and the one before it, and the way back between them."""
    path = tmp_path_factory.mktemp("pair")
    shards = random_shards(1, SHAPE)
    old = write_model(path / "old", shards, version="1.0.0", counter=1)
    new = write_model(path / "new", flip(shards, 0.01, 2), version="1.1.0", counter=2)
    make_way(Disk(), path / "there.way", new, old)
    return new, old, path / "there.way"


def follow(tmp_path, way, new):
    target = tmp_path / "made"
    target.mkdir()
    follow_way(Disk(), way, new, target)
    return target


def test_the_way_leads_back_to_the_same_bytes(pair, tmp_path):
    new, old, way = pair
    made = follow(tmp_path, way, new)
    assert verify_directory(made).text == read_release(old).text
    for path in old.iterdir():
        assert (made / path.name).read_bytes() == path.read_bytes()


def test_it_is_a_small_part_of_the_model_and_shares_files(pair, tmp_path):
    new, old, way = pair
    whole = sum(path.stat().st_size for path in old.iterdir())
    assert way.stat().st_size < 0.25 * whole
    made = follow(tmp_path, way, new)
    assert (made / "tokenizer.json").samefile(new / "tokenizer.json")


def test_files_that_came_went_grew_or_are_long_are_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(way_back, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(way_back, "SLACK_BYTES", 100)
    shards = random_shards(1, SHAPE)
    old = write_model(tmp_path / "old", shards, version="1.0.0", counter=1)
    new = write_model(tmp_path / "new", flip(shards, 0.01, 2), version="1.1.0", counter=2)
    (old / "only-old.json").write_bytes(b"once upon a time " * 300)
    (old / "empty").write_bytes(b"")
    (new / "only-new.json").write_bytes(b"now")
    text = json.dumps({"vocab": list(range(2000))})
    (new / "tokenizer.json").write_text("x" + text)  # everything moves by a byte
    (old / "tokenizer.json").write_text(text[:5000])
    for path, counter in ((old, 1), (new, 2)):
        write_release(path, version=f"1.{counter - 1}.0", counter=counter)
    make_way(Disk(), tmp_path / "w", new, old)
    made = follow(tmp_path, tmp_path / "w", new)
    assert verify_directory(made).root == read_release(old).root


def test_a_way_that_is_not_worth_it_is_not_kept(tmp_path):
    old = write_model(tmp_path / "old", random_shards(1, SHAPE), version="1.0.0", counter=1)
    new = write_model(tmp_path / "new", random_shards(9, SHAPE), version="1.1.0", counter=2)
    assert own_bytes(read_release(new), read_release(old)) > 0
    with pytest.raises(StorageFull, match="more than 50%"):
        make_way(Disk(), tmp_path / "w", new, old)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_way_is_found_out(pair, tmp_path, data):
    new, _, way = pair
    good = way.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = tmp_path / "bad.way"
    cut = data.draw(st.booleans())
    bad.write_bytes(good[:at] if cut else good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
    with pytest.raises(PatchDamaged):
        check_way(bad, new)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_way_or_none(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.way"
    path.write_bytes(data)
    with pytest.raises(PatchDamaged):
        open_way(path)


def test_a_way_from_another_model_is_not_followed(pair, tmp_path):
    _, old, way = pair
    (tmp_path / "made").mkdir()
    with pytest.raises(PatchDamaged, match="a way from"):
        follow_way(Disk(), way, old, tmp_path / "made")


def test_memory_is_bounded_whatever_a_block_says(pair, tmp_path):
    new, _, way = pair
    head = open_way(way)
    data = bytearray(way.read_bytes())
    data[head.offset : head.offset + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(PatchDamaged):
        check_way(tmp_path / "w", new)


# -- in the store --------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """A device on 1.2.0, with 1.1.0 before it in a slot."""
    shards = random_shards(1, SHAPE)
    bundled = write_model(tmp_path / "bundled", shards, version="1.0.0", counter=1)
    store = Store(tmp_path / "state", bundled)
    for counter in (2, 3):
        shards = flip(shards, 0.01, counter)
        path = store.slots_dir / f"v{counter}"
        write_model(path, shards, version=f"1.{counter - 1}.0", counter=counter)
        release = read_release(path)
        path.rename(store.slot(release.root))
        store.commit(release)
    return store


def versions(store):
    return sorted(read_release(path).version for path in store.slots_dir.iterdir())


def test_the_model_before_gives_its_slot_up_and_comes_back(store):
    assert not store.returns_by_delta()
    assert store.shrink_previous()
    assert versions(store) == ["1.2.0"]
    assert store.can_return() and store.returns_by_delta()
    assert not store.shrink_previous()  # nothing is left to give up
    store.collect()
    store.rebuild_previous()
    assert versions(store) == ["1.1.0", "1.2.0"]
    assert read_release(store.revert("on request")).version == "1.1.0"
    assert verify_directory(store.active())
    store.collect()
    assert not list(store.ways_dir.iterdir())


def test_a_revert_makes_the_model_by_itself(store):
    store.shrink_previous()
    assert read_release(store.revert("it crashed")).version == "1.1.0"


def test_a_fresh_commit_keeps_its_slot(store):
    assert not store.shrink_previous(after_s=3600)
    assert versions(store) == ["1.1.0", "1.2.0"]


def test_the_bundled_model_is_never_given_up(tmp_path):
    store = Store(tmp_path / "state", tmp_path / "bundled")
    assert not store.shrink_previous()


def test_a_lost_way_is_told_and_changes_nothing(store):
    store.shrink_previous()
    (way,) = store.ways_dir.iterdir()
    way.write_bytes(way.read_bytes()[:-1])
    with pytest.raises(PatchDamaged, match="the way back is lost"):
        store.rebuild_previous()
    assert store.installed_version() == "1.2.0"


def test_where_neither_the_active_model_nor_a_way_is_whole_the_bundled_one_runs(store):
    store.shrink_previous()
    shard = next(store.active().glob("*00002*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.unlink()
    shard.write_bytes(data)
    assert read_release(store.revert("damaged")).version == "1.0.0"


def test_a_stop_in_the_middle_leaves_the_slot(store):
    def stop():
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        store.shrink_previous(watch=stop)
    assert versions(store) == ["1.1.0", "1.2.0"]
    assert store.shrink_previous()
    with pytest.raises(Cancelled):
        store.rebuild_previous(stop)
    store.rebuild_previous()
    assert read_release(store.revert("x")).version == "1.1.0"


def test_a_way_that_was_there_is_made_again_if_it_is_damaged(store):
    store.shrink_previous()
    store.rebuild_previous()
    (way,) = store.ways_dir.iterdir()
    way.write_bytes(b"x" * 100)
    assert store.shrink_previous()
    store.rebuild_previous()
    assert read_release(store.revert("x")).version == "1.1.0"


def test_the_agent_loads_no_decoder_for_it():
    code = (
        "import sys, ota.device.store\n"
        "assert not {'zstandard', 'tuf', 'numpy', 'paho'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
