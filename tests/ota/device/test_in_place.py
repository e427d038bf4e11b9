"""Updates in place: chosen for want of room, taken back when bad, and without a network."""

import pytest

from ota.device.store import Store
from ota.device.updater import Verdict
from ota.errors import Cancelled
from ota.storage import Calls, verify_directory
from tests.ota.crashes import NO_ROOM, WIDE, in_place_scene, update
from tests.ota.models import flip, random_shards, write_model


@pytest.fixture
def scene(tmp_path):
    return in_place_scene(tmp_path)


def test_a_committed_release_goes_back_from_the_disk_alone(scene, tmp_path):
    store = Store(tmp_path / "device", scene.fleet.old)
    assert verify_directory(store.active()).root == scene.final
    assert store.can_return()
    assert store.returns_in_place()
    back = store.revert("on request")
    assert verify_directory(back).version == "1.1.0"
    assert store.is_quarantined(scene.final)
    assert not store.returns_in_place()
    assert [path.name for path in store.slots_dir.iterdir()] == [back.name]


def test_a_cut_in_the_way_back_is_finished_at_the_next_start(scene, tmp_path, monkeypatch):
    store = Store(tmp_path / "device", scene.fleet.old)
    monkeypatch.setattr(Store, "recover", lambda self: None)
    store.revert("on request")  # the intent is written, and nothing else
    monkeypatch.undo()
    store.recover()
    assert verify_directory(store.active()).version == "1.1.0"
    store.recover()
    assert verify_directory(store.active()).version == "1.1.0"


@pytest.mark.parametrize("answer", [Verdict(False, "logits"), Cancelled("stop")])
def test_without_a_good_verdict_the_old_model_is_back(scene, tmp_path, answer):
    fleet = scene.fleet
    shards = flip(flip(flip(random_shards(1, WIDE), 0.002, 2), 0.002, 3), 0.002, 4)
    bad = write_model(tmp_path / "bad", shards, version="1.3.0", counter=4)
    fleet.repo.add_release(bad)
    fleet.repo.add_delta("1.2.0", "1.3.0")
    fleet.repo.publish()
    agent = update(tmp_path / "device", fleet, Calls(), NO_ROOM, verdicts=[answer], is_good=False)
    assert agent.n_quiesced == 1
    store = Store(tmp_path / "device", fleet.old)
    assert store.state().patching is None
    assert verify_directory(store.active()).version == "1.2.0"
    expected = isinstance(answer, Verdict)
    assert store.is_quarantined(verify_directory(bad).root) is expected


def test_the_model_of_the_package_is_never_changed_in_place(scene, tmp_path):
    error = update(
        tmp_path / "other", scene.fleet, Calls(), NO_ROOM // 4, verdicts=[], is_good=False
    )
    assert error.said[-1]["code"] in {"storage_reserve", "no_payload"}
    assert error.n_quiesced == 0
