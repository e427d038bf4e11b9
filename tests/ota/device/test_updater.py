"""Whole updates without a process and without a broker: a repository in a directory."""

import datetime
import errno
import json
import shutil

import pytest
from tuf.api.metadata import Metadata

from ota.conditions import Samples
from ota.device.dir_source import DirSource
from ota.device.high_water import HighWater
from ota.device.store import Store
from ota.device.updater import MAX_TRIALS, Board, Updater, Verdict
from ota.errors import (
    Cancelled,
    Downgrade,
    Gated,
    NoPayload,
    ObjectMissing,
    Quarantined,
    ReleaseRefused,
    StorageError,
    TimestampExpired,
    TransportError,
    UntrustedMetadata,
    WrongHardware,
)
from ota.fleet.keys import create_keys, load_keys
from ota.fleet.repository import Repository
from ota.storage import Disk, read_release, verify_directory
from ota.trust import delta_target, full_target
from tests.ota.fakes import FailingDisk, MemorySource, ScriptedAgent
from tests.ota.harness import make_fleet
from tests.ota.models import Shape, flip, random_shards, write_model, write_release

GOOD = Verdict(True)
BOARD = Board("test-board", "0.1.0")


class Device:
    """A device in a directory; ``run`` is one worker's life."""

    def __init__(self, path, fleet):
        self.path = path
        self.fleet = fleet
        self.store = Store(path, fleet.old)
        self.agent = ScriptedAgent()

    def run(self, *verdicts, source=None, disk=None, board=BOARD, stop_after=None):
        self.agent = ScriptedAgent(*verdicts)
        self.agent.stop_after = stop_after
        source = source or DirSource(self.fleet.repo.path)
        disk = disk or Disk()
        store = Store(self.path, self.fleet.old, disk)
        root = self.fleet.root_file.read_bytes()
        return Updater(self.path, store, source, disk, root, board, self.agent).run()

    @property
    def last(self):
        return self.agent.said[-1]

    def events(self):
        return [said.get("state", said["event"]) for said in self.agent.said]

    def staged(self):
        return next(said for said in self.agent.said if said["event"] == "staged")


@pytest.fixture
def own_fleet(tmp_path):
    """A fleet that the test may change."""
    return make_fleet(tmp_path / "fleet")


@pytest.fixture
def device(tmp_path, fleet):
    return Device(tmp_path / "device", fleet)


@pytest.fixture
def own_device(tmp_path, own_fleet):
    return Device(tmp_path / "device", own_fleet)


def whole(device):
    """The law of every test here: what runs is a whole model, the old one or the new one."""
    release = verify_directory(device.store.active())
    assert release.version in ("1.0.0", "1.1.0")
    return release.version


def delta_path(fleet):
    old, new = read_release(fleet.old), read_release(fleet.new)
    return fleet.repo.path / "targets" / delta_target(old.name, old.root, new.root)


def full_path(fleet):
    return fleet.repo.path / "targets" / full_target("edge-test", "1.1.0")


def test_a_good_update_is_committed(device):
    assert device.run(GOOD) is None
    assert device.events() == [
        "checking",
        "fetching",
        "fetching",
        "fetching",
        "staging",
        "trial",
        "staged",
        "committed",
    ]
    assert whole(device) == "1.1.0"
    assert device.staged()["payload"] == "delta"
    assert device.run() is None
    assert device.last == {"event": "up_to_date", "version": "1.1.0"}
    assert [path.name for path in (device.path / "ota").iterdir() if "payload" in path.name] == []


def test_a_failed_trial_is_rolled_back_and_never_tried_again(device):
    device.run(Verdict(False, "logits differ"))
    assert device.last["event"] == "rolled_back"
    assert (device.last["version"], device.last["reason"]) == ("1.1.0", "logits differ")
    assert device.last["code"] == "health_failed"
    assert whole(device) == "1.0.0"
    assert isinstance(device.run(), Quarantined)
    assert "logits differ" in device.last["message"]
    assert list(device.store.slots_dir.iterdir()) == []


def test_what_failed_is_kept_as_a_pair_and_tried_again_when_it_is_forgiven(device):
    device.run(Verdict(False, "logits differ", "health_logits"))
    old, new = read_release(device.fleet.old), read_release(device.fleet.new)
    [(root, entry)] = device.store.state().quarantine.items()
    assert (root, entry.base) == (new.root, old.root)
    assert (entry.version, entry.counter) == ("1.1.0", new.counter)
    assert (entry.code, entry.reason) == ("health_logits", "logits differ")
    assert isinstance(device.run(GOOD), Quarantined)
    assert f"edgeagent update forgive {new.slot}" in device.last["message"]
    device.store.forgive("1.1.0")
    assert device.run(GOOD) is None
    assert whole(device) == "1.1.0"


def test_a_committed_release_that_was_given_up_comes_back_when_it_is_forgiven(device):
    device.run(GOOD)
    device.store.revert("rolled back on request", "rollback_requested")
    assert isinstance(device.run(GOOD), Quarantined)
    device.store.forgive(read_release(device.fleet.new).root)
    assert device.run(GOOD) is None
    assert whole(device) == "1.1.0"


def test_a_counter_that_only_the_record_knows_is_not_passed_by_forgiving(device):
    """The store was lost: whether the release is the one of that counter is not known any more."""
    device.run(GOOD)
    device.store.revert("rolled back on request")
    (device.store.slots_dir.parent / "store.json").unlink()
    assert isinstance(device.run(GOOD), Downgrade)


def test_the_same_bytes_with_a_higher_counter_and_a_corrected_suite_are_tried_again(own_device):
    own_device.run(Verdict(False, "an answer differs", "health_example"))
    fleet = own_device.fleet
    again = shutil.copytree(fleet.new, fleet.path / "again")
    write_release(again, version="1.1.1", counter=3)
    assert read_release(again).root == read_release(fleet.new).root
    fleet.repo.add_release(again)
    fleet.repo.publish()
    own_device.run(Verdict(False, "another answer differs", "health_example"))
    assert own_device.last["event"] == "rolled_back"
    assert isinstance(own_device.run(GOOD), Quarantined)
    [entry] = own_device.store.state().quarantine.values()
    assert (entry.version, entry.counter) == ("1.1.1", 3)


def test_a_repository_without_this_model_is_refused(own_device, tmp_path):
    empty = Repository.create(tmp_path / "empty", "tests", None)
    own_device.fleet.repo = empty
    assert isinstance(own_device.run(), ReleaseRefused)
    assert own_device.last["code"] == "release_refused"


def test_a_device_that_reverted_waits_for_a_newer_release(own_device):
    own_device.run(GOOD)
    own_device.store.revert("crashed after an hour")
    assert whole(own_device) == "1.0.0"
    assert isinstance(own_device.run(), Quarantined)
    fleet = own_device.fleet
    shards = flip(random_shards(1, Shape()), 0.03, 9)
    write_model(fleet.path / "third", shards, version="1.2.0", counter=3)
    fleet.repo.add_release(fleet.path / "third")
    fleet.repo.publish()
    assert own_device.run(GOOD) is None
    assert own_device.store.installed_version() == "1.2.0"
    assert own_device.staged()["payload"] == "full"  # nobody made a delta from 1.0.0


def test_a_trial_that_nobody_answers_is_repeated_then_rolled_back(device):
    for _ in range(MAX_TRIALS):
        assert isinstance(device.run(Cancelled("agent died")), Cancelled)
        assert device.events()[-2:] == ["staged", "failed"]
        assert whole(device) == "1.0.0"
    assert device.run() is None
    assert device.last["event"] == "rolled_back"
    assert device.last["code"] == "health_no_verdict"
    assert "no verdict in 3 trials" in device.last["reason"]


def test_a_repeated_trial_fetches_nothing(device):
    device.run(Cancelled("agent died"))
    device.run(GOOD)
    assert device.staged()["fetched_bytes"] == 0
    assert whole(device) == "1.1.0"


def test_a_cancel_at_any_point_keeps_the_old_model_and_goes_on_later(tmp_path, fleet):
    reference = Device(tmp_path / "reference", fleet)
    reference.run(GOOD)
    for stop_after in range(reference.agent.n_checks):
        device = Device(tmp_path / f"device{stop_after}", fleet)
        assert isinstance(device.run(stop_after=stop_after), Cancelled)
        assert device.last["code"] == "cancelled"
        assert whole(device) == "1.0.0"
        assert device.run(GOOD) is None
        assert whole(device) == "1.1.0"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_at_any_change_leaves_a_whole_model(tmp_path, fleet, error):
    reference = Device(tmp_path / "reference", fleet)
    healthy = FailingDisk(10_000)
    reference.run(GOOD, disk=healthy)
    for fail_at in range(healthy.n_changes):
        device = Device(tmp_path / f"device{fail_at}", fleet)
        try:
            stopped_by = device.run(GOOD, disk=FailingDisk(fail_at, error))
        except StorageError as err:  # the first change, or the journal of the failure itself
            stopped_by = err
        if stopped_by is None:  # it was only the clearing up that failed
            assert device.last["event"] == "committed" and whole(device) == "1.1.0"
        else:
            assert isinstance(stopped_by, StorageError)
            whole(device)
        assert device.run(GOOD) is None
        assert whole(device) == "1.1.0"
        shutil.rmtree(device.path)


def test_an_unknown_base_gets_the_full_image(tmp_path, fleet):
    other = write_model(tmp_path / "other", random_shards(77, Shape()), version="0.9.0", counter=0)
    device = Device(tmp_path / "device", fleet)
    device.store = Store(device.path, other)
    device.fleet = type(fleet)(fleet.path, fleet.repo, other, fleet.new)
    assert device.run(GOOD) is None
    assert device.staged()["payload"] == "full"
    assert whole(device) == "1.1.0"


def test_a_delta_that_is_not_the_signed_one_is_struck_out_for_the_full_image(own_device):
    path = delta_path(own_device.fleet)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert own_device.run(GOOD) is None
    assert own_device.staged()["payload"] == "full"
    assert whole(own_device) == "1.1.0"


def test_without_any_usable_payload_the_update_fails_and_says_why(own_device):
    for path in (delta_path(own_device.fleet), full_path(own_device.fleet)):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert isinstance(own_device.run(GOOD), NoPayload)
    assert "refused: " in own_device.last["message"]
    assert whole(own_device) == "1.0.0"


def test_a_rotten_base_is_noticed_in_the_result_and_repaired_by_the_full_image(
    tmp_path, own_device
):
    base = tmp_path / "rotten"
    shutil.copytree(own_device.fleet.old, base)
    shard = base / "model-00002-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5000] ^= 1 << 3
    shard.write_bytes(data)
    own_device.fleet.old = base
    assert own_device.run(GOOD) is None
    assert own_device.staged()["payload"] == "full"
    assert verify_directory(own_device.store.active())


def test_a_missing_repository_is_tried_again_later(device, tmp_path):
    error = device.run(source=DirSource(tmp_path / "nothing"))
    assert isinstance(error, TransportError)
    assert 15 <= device.last["retry_after_s"] <= 60  # jittered


def test_a_payload_that_is_gone_is_tried_again_later(own_device):
    delta_path(own_device.fleet).unlink()
    assert isinstance(own_device.run(), ObjectMissing)
    assert own_device.last["retry_after_s"] is not None


def test_a_release_for_another_board_is_refused(own_device):
    shards = random_shards(5, Shape())
    write_model(own_device.fleet.path / "third", shards, version="2.0.0", counter=5)
    own_device.fleet.repo.add_release(own_device.fleet.path / "third", ("jetson",))
    own_device.fleet.repo.publish()
    assert isinstance(own_device.run(), WrongHardware)
    assert own_device.run(GOOD, board=Board("jetson", "0.1.0")) is None


def test_what_is_added_is_not_seen_before_it_is_published(own_device):
    shards = random_shards(5, Shape())
    write_model(own_device.fleet.path / "third", shards, version="2.0.0", counter=5)
    own_device.fleet.repo.add_release(own_device.fleet.path / "third")
    assert own_device.run(GOOD) is None
    assert own_device.store.installed_version() == "1.1.0"


def test_metadata_signed_with_another_key_is_refused(own_device, tmp_path):
    repo = own_device.fleet.repo
    create_keys(tmp_path / "mallory")
    path = repo.path / "metadata" / "timestamp.json"
    metadata = Metadata.from_file(str(path))
    metadata.signed.version += 1
    metadata.sign(load_keys(tmp_path / "mallory", "timestamp")[0])
    path.write_bytes(metadata.to_bytes())
    assert isinstance(own_device.run(), UntrustedMetadata)
    assert own_device.last["code"] == "untrusted_metadata"
    assert whole(own_device) == "1.0.0"


def test_expired_metadata_is_refused_by_name(own_device):
    repo = own_device.fleet.repo
    path = repo.path / "metadata" / "timestamp.json"
    metadata = Metadata.from_file(str(path))
    metadata.signed.expires -= datetime.timedelta(days=4000)
    metadata.sign(load_keys(repo.path / "keys", "timestamp")[0])
    path.write_bytes(metadata.to_bytes())
    assert isinstance(own_device.run(), TimestampExpired)
    assert "edgeota publish" in own_device.last["message"]


def test_an_older_repository_is_refused(own_device, tmp_path):
    """Replayed metadata, all of it genuine: TUF's versions refuse it."""
    old = tmp_path / "replayed"
    shutil.copytree(own_device.fleet.repo.path, old)
    own_device.fleet.repo.publish()
    own_device.run(GOOD)
    assert isinstance(own_device.run(source=DirSource(old)), UntrustedMetadata)


def test_an_older_release_is_refused_even_if_the_metadata_was_forgotten(own_device, tmp_path):
    """Replayed metadata, and the device's TUF state is gone: the release counter refuses it."""
    fleet = own_device.fleet
    young = Repository.create(tmp_path / "young", "tests", fleet.repo.path / "keys2")
    own_device.run(GOOD)
    shutil.rmtree(own_device.path / "ota")
    shards = flip(random_shards(1, Shape()), 0.5, 11)
    write_model(tmp_path / "older", shards, version="1.0.5", counter=2)
    young.add_release(tmp_path / "older")
    young.publish()
    fleet.repo = young
    assert isinstance(own_device.run(), Downgrade)
    assert whole(own_device) == "1.1.0"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"state": "dancing"}'])
def test_a_damaged_journal_only_costs_a_new_start(device, damage):
    device.run(Cancelled("agent died"))
    (device.path / "ota" / "update.json").write_text(damage)
    assert device.run(GOOD) is None
    assert whole(device) == "1.1.0"


@pytest.mark.parametrize("name", ["root.json", "timestamp.json", "targets.json"])
def test_torn_metadata_on_the_device_heals(device, name):
    device.run(Cancelled("agent died"))
    path = device.path / "ota" / "tuf" / name
    path.unlink()
    path.write_bytes(b'{"signed": ')
    assert device.run(GOOD) is None
    assert whole(device) == "1.1.0"


def test_a_newer_release_supersedes_an_unfinished_update(own_device):
    own_device.run(Cancelled("agent died"))
    shards = flip(random_shards(1, Shape()), 0.03, 9)
    path = write_model(own_device.fleet.path / "third", shards, version="1.2.0", counter=3)
    own_device.fleet.repo.add_release(path)
    own_device.fleet.repo.publish()
    assert own_device.run(GOOD) is None
    assert own_device.store.installed_version() == "1.2.0"
    assert len(list(own_device.store.slots_dir.iterdir())) == 1


def test_unchanged_files_are_links_to_the_old_model(device):
    device.run(GOOD)
    name = "model-00001-of-00003.safetensors"
    assert (device.store.active() / name).samefile(device.fleet.old / name)


def test_the_journal_says_what_is_going_on(device):
    device.run(Cancelled("agent died"))
    journal = json.loads((device.path / "ota" / "update.json").read_text())
    assert journal["state"] == "trial" and journal["trials"] == 1


def test_what_is_committed_is_told_so_even_if_clearing_up_fails(tmp_path, fleet):
    class Cluttered(FailingDisk):
        def remove(self, path):
            if path.name == "payload.part" and path.exists():
                self.fail_at = 0
                self.change(path)
            super().remove(path)

    device = Device(tmp_path / "device", fleet)
    assert device.run(GOOD, disk=Cluttered(10_000)) is None
    assert device.last["event"] == "committed"
    assert whole(device) == "1.1.0"
    assert (device.path / "ota" / "payload.part").exists()
    assert device.run() is None
    assert not (device.path / "ota" / "payload.part").exists()


def test_a_condition_holds_a_stage_back_and_the_next_run_goes_on(device, monkeypatch):
    monkeypatch.setattr(ScriptedAgent, "samples", lambda _self: Samples(0.1, False))
    assert isinstance(device.run(GOOD), Gated)
    assert device.last["code"] == "gated" and device.last["retry_after_s"] > 0
    assert whole(device) == "1.0.0"
    monkeypatch.undo()
    assert device.run(GOOD) is None
    assert whole(device) == "1.1.0"


def test_failing_again_and_again_waits_longer(device):
    waits = []
    for _ in range(6):
        device.run(source=MemorySource({}))
        waits.append(device.last["retry_after_s"])
    assert waits[0] < waits[-1]
    assert device.run(GOOD) is None


def test_a_lost_store_does_not_allow_an_older_counter(own_device):
    assert own_device.run(GOOD) is None
    assert own_device.run(GOOD) is None  # nothing new; what was committed is in the record
    record = HighWater(Disk(), own_device.path / "ota" / "tuf.highwater")
    assert record.counter("edge-test") == 2
    (own_device.path / "models" / "store.json").unlink()
    assert isinstance(own_device.run(GOOD), Downgrade)
