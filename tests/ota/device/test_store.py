import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ota.device.store import Store
from ota.errors import NothingToForgive, StorageError
from ota.quarantine import GivenUp
from ota.storage import Disk, read_release
from tests.ota.crashfs import Recorder, states
from tests.ota.fakes import FailingDisk
from tests.ota.models import Shape, random_shards, write_model

ROOT = Path(__file__).resolve().parents[3]
A, B, C = "aa" * 32, "bb" * 32, "cc" * 32
SMALL = Shape(layers=1, plane_bytes=32, vocab_bytes=64)


@pytest.fixture
def bundled(tmp_path):
    return write_model(tmp_path / "bundled", random_shards(0, SMALL), version="1.0.0", counter=1)


@pytest.fixture
def store(tmp_path, bundled):
    return Store(tmp_path / "state", bundled)


def slot(store, seed, version, counter):
    """Put a model into its slot, as staging would."""
    path = store.slots_dir / f"seed{seed}"
    write_model(path, random_shards(seed, SMALL), version=version, counter=counter)
    release = read_release(path)
    path.rename(store.slot(release.root))
    return release


def test_where_nothing_was_committed_the_bundled_model_runs(store, bundled):
    assert store.active() == bundled
    assert store.installed_version() == "1.0.0"
    assert not store.is_quarantined("aa" * 32)


def test_a_committed_model_runs_and_the_one_before_can_be_reverted_to(store, bundled):
    one, two = slot(store, 1, "1.1.0", 2), slot(store, 2, "1.2.0", 3)
    store.commit(one)
    store.commit(two)
    assert store.active() == store.slot(two.root)
    assert store.revert("it crashed") == store.slot(one.root)
    assert store.is_quarantined(two.root)
    assert store.revert("it crashed too") == bundled
    assert store.revert("nothing left to revert") == bundled
    assert store.state().counter == 3


def test_committing_twice_is_committing_once(store):
    one = slot(store, 1, "1.1.0", 2)
    store.commit(one)
    store.commit(one)
    state = store.state()
    assert (state.active, state.previous) == (one.root, None)


def test_old_slots_are_removed_but_the_last_two(store):
    releases = []
    for seed in range(1, 5):
        releases.append(slot(store, seed, f"1.{seed}.0", seed + 1))
        store.commit(releases[-1])
        store.collect()
    assert {path.name for path in store.slots_dir.iterdir()} == {r.slot for r in releases[-2:]}


def test_a_slot_that_is_gone_from_the_disk_is_not_run(store, bundled):
    one = slot(store, 1, "1.1.0", 2)
    store.commit(one)
    two = slot(store, 2, "1.2.0", 3)
    store.commit(two)
    (store.slot(two.root) / "release.json").unlink()
    assert store.active() == store.slot(one.root)
    (store.slot(one.root) / "release.json").unlink()
    assert store.active() == bundled


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"quarantine": []}', '{"quarantine": {}, "counter": "x"}', "null"]
)
def test_a_damaged_store_runs_the_bundled_model(store, bundled, text):
    store.commit(slot(store, 1, "1.1.0", 2))
    (store.slots_dir.parent / "store.json").write_text(text)
    assert store.active() == bundled


def test_a_root_that_is_no_root_never_becomes_a_path(store, bundled):
    store.commit(slot(store, 1, "1.1.0", 2))
    path = store.slots_dir.parent / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"active": "../../../etc"}))
    assert store.active() == bundled


def test_a_model_that_is_given_up_is_kept_as_a_pair(store, bundled):
    one, two = slot(store, 1, "1.1.0", 2), slot(store, 2, "1.2.0", 3)
    store.commit(one)
    store.commit(two)
    before_s = time.time()
    store.revert("it crashed " * 99, "soak_crashes")
    store.revert("it crashed too")
    kept = store.state().quarantine
    assert list(kept) == [two.root, one.root]
    entry = kept[two.root]
    assert (entry.base, entry.version, entry.counter) == (one.root, "1.2.0", 3)
    assert (entry.code, len(entry.reason)) == ("soak_crashes", 200)
    assert before_s - 1 <= entry.time_s <= time.time() + 1
    assert kept[one.root].base == read_release(bundled).root


def test_a_model_whose_files_are_damaged_is_given_up_with_what_is_known(store):
    one = slot(store, 1, "1.1.0", 2)
    store.commit(one)
    (store.slot(one.root) / "release.json").write_text("{")
    store.revert("it does not load", "model_damaged")
    entry = store.state().quarantine[one.root]
    assert (entry.version, entry.counter, entry.code) == ("", None, "model_damaged")
    assert entry.refuses(99)


def test_a_quarantine_is_lifted_by_name_and_nothing_else_changes(store):
    one = slot(store, 1, "1.1.0", 2)
    store.commit(one)
    for root, version in ((A, "1.2.0"), (B, "1.3.0"), (C, "1.4.0")):
        store.quarantine(root, GivenUp(one.root, version, 3, "health_logits", "they differ", 5))
    before = store.state()
    assert [each["root"] for each in store.forgive("1.3.0")] == [B]
    assert store.forgive(C[:16])[0]["base"] == one.root
    after = store.state()
    assert list(after.quarantine) == [A]
    assert dataclasses.replace(after, quarantine={}) == dataclasses.replace(before, quarantine={})
    assert [each["version"] for each in store.forgive("all")] == ["1.2.0"]
    assert store.state().quarantine == {}


def test_to_lift_what_is_not_there_is_refused_and_writes_nothing(store):
    with pytest.raises(NothingToForgive, match="all: nothing is in quarantine here"):
        store.forgive("all")
    store.quarantine(A, GivenUp(version="1.2.0"))
    path = store.slots_dir.parent / "store.json"
    written = path.read_bytes(), path.stat().st_mtime_ns
    with pytest.raises(NothingToForgive, match=r"which are: 1\.2\.0 \(aaaaaaaaaaaaaaaa\)"):
        store.forgive("9.9.9")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == written


def test_a_power_cut_while_a_quarantine_is_lifted_leaves_all_of_it_or_none(tmp_path, bundled):
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    store = Store(state_dir, bundled)
    one = slot(store, 1, "1.1.0", 2)
    store.commit(one)
    for root in (A, B):
        store.quarantine(root, GivenUp(one.root, "1.2.0", 3, "health_logits", "they differ", 5))
    recorder = Recorder(state_dir)
    Store(state_dir, bundled, Disk(recorder)).forgive("1.2.0")
    seen = set()
    for number, (_, image) in enumerate(states(recorder, 200, seed=1)):
        cut = tmp_path / f"cut-{number}"
        image.write_to(cut, recorder.directories, recorder.links)
        found = Store(cut, bundled)
        assert found.state().active == one.root and found.state().counter == 2
        seen.add(tuple(found.state().quarantine))
    assert seen == {(A, B), ()}


@pytest.mark.parametrize("fail_at", range(5))
def test_a_disk_that_refuses_leaves_the_quarantine(tmp_path, store, bundled, fail_at):
    store.quarantine(A, GivenUp(version="1.2.0"))
    try:
        Store(tmp_path / "state", bundled, FailingDisk(fail_at)).forgive("all")
    except StorageError:
        assert store.is_quarantined(A)
    else:
        assert fail_at > 0
        assert not store.is_quarantined(A)


def test_a_model_that_is_committed_after_all_leaves_the_quarantine(store):
    one = slot(store, 1, "1.1.0", 2)
    store.quarantine(one.root, GivenUp(version="1.1.0", counter=1))
    store.commit(one)
    assert store.state().quarantine == {}


def test_the_release_of_the_highest_counter_is_remembered_by_its_root(store):
    one, two = slot(store, 1, "1.1.0", 3), slot(store, 2, "1.2.0", 2)
    store.commit(one)
    store.revert("it crashed")
    assert (store.state().newest, store.state().counter) == (one.root, 3)
    store.commit(two)
    assert (store.state().newest, store.state().counter) == (one.root, 3)


def test_the_age_of_the_active_model_is_not_that_of_the_file(store):
    assert store.age_s() is None
    store.commit(slot(store, 1, "1.1.0", 2))
    path = store.slots_dir.parent / "store.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"since_s": time.time() - 5000}))
    store.quarantine(A, GivenUp())
    store.forgive("all")
    assert 4999 < store.age_s() < 9000
    store.commit(slot(store, 2, "1.2.0", 3))
    assert -5 < store.age_s() < 4000
    for damaged in ("now", -1, True, 1e300):
        path.write_text(json.dumps(fields | {"since_s": damaged}))
        assert -5 < store.age_s() < 4000  # the file's


def test_the_agent_can_import_the_store_without_the_updater():
    script = (
        "import sys, ota.device.store\n"
        "heavy = {'tuf', 'zstandard', 'paho', 'numpy', 'cryptography'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_the_device_decodes_without_numpy():
    script = "import sys, ota.device.updater\nassert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
