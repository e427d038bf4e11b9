import json
import subprocess
import sys
from pathlib import Path

import pytest

from ota.device.store import MAX_QUARANTINE, Store
from ota.storage import read_release
from tests.ota.models import Shape, random_shards, write_model

ROOT = Path(__file__).resolve().parents[3]
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


def test_the_quarantine_is_bounded_and_forgets_the_oldest(store):
    roots = [f"{k:064x}" for k in range(MAX_QUARANTINE + 1)]
    for root in roots:
        store.quarantine(root, "reason " * 99)
    assert not store.is_quarantined(roots[0])
    assert store.is_quarantined(roots[1]) and store.is_quarantined(roots[-1])
    assert len(store.state().quarantine[roots[-1]]) <= 200


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
