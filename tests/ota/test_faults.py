"""Named faults: each update ends committed or in a typed state, what runs is whole, and none loops.

Each row is (name, how the fault is made, how the first run ends, whether the next one without the
fault must commit).  Faults of brokers and sockets are in ``device/test_mqtt_source.py``.
"""

import errno
import shutil
from datetime import UTC, datetime, timedelta

import pytest

import ota.device.tuf_client as tuf_client
from ota.clock import BUILD_TIME
from ota.device.dir_source import DirSource
from ota.device.store import Store
from ota.device.updater import Board, Updater, Verdict
from ota.errors import UpdateError
from ota.storage import Disk, verify_directory
from tests.ota import faults
from tests.ota.fakes import FailingDisk, ScriptedAgent
from tests.ota.faults import Faulty, Shuffled, in_metadata, payload_only

OK = "committed"
PAYLOADS = {
    "chunks lost for good": (faults.vanished, "object_missing"),
    "chunks truncated": (faults.truncated, "no_payload"),
    "chunks empty": (faults.empty, "no_payload"),
    "chunks too long": (faults.longer, "no_payload"),
    "chunks of other bytes": (faults.flipped, "no_payload"),
    "chunks for another place": (faults.elsewhere, "no_payload"),
    "first answer of each chunk is wrong": (faults.first_is_wrong, OK),
}
METADATA = {
    "endless": (faults.endless, {"transport_failed"}),
    "no JSON": (faults.no_json, {"untrusted_metadata"}),
    "cut off": (faults.cut, {"untrusted_metadata"}),
    "missing": (faults.missing, {"transport_failed", "object_missing"}),
}
DISKS = {
    "full": (errno.ENOSPC, "storage_full"),
    "broken": (errno.EIO, "storage_failed"),
    "read-only": (errno.EROFS, "storage_read_only"),
}
CLOCKS = {
    "1970": datetime(1970, 1, 1, tzinfo=UTC),
    "2099": datetime(2099, 1, 1, tzinfo=UTC),
    "a day before the build": BUILD_TIME - timedelta(days=1),
}


class Device:
    def __init__(self, path, fleet):
        self.path, self.fleet = path, fleet

    def run(self, source=None, disk=None):
        """Run one worker's life and return how it ended."""
        agent = ScriptedAgent(Verdict(True))
        disk = disk or Disk()
        try:
            Updater(
                self.path,
                Store(self.path, self.fleet.old, disk),
                source or DirSource(self.fleet.repo.path),
                disk,
                self.fleet.root_file.read_bytes(),
                Board("test-board", "0.1.0"),
                agent,
            ).run()
        except UpdateError as err:  # at its very start: the worker reports it
            return err.code
        self.whole()
        end = agent.said[-1]
        return end["code"] if end["event"] == "failed" else end["event"]

    def whole(self):
        return verify_directory(Store(self.path, self.fleet.old).active()).version


@pytest.fixture
def device(tmp_path, fleet):
    return Device(tmp_path / "device", fleet)


def recovers(device):
    assert device.run() in (OK, "up_to_date")
    assert device.whole() == "1.1.0"


@pytest.mark.parametrize("fault", sorted(PAYLOADS))
def test_payload(device, fleet, fault):
    change, end = PAYLOADS[fault]
    source = Faulty(fleet.repo.path, payload_only(change))
    assert device.run(source) == end
    assert source.n_answers < 200
    recovers(device)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("fault", sorted(METADATA))
def test_metadata(device, fleet, fault, role):
    change, ends = METADATA[fault]
    source = Faulty(fleet.repo.path, in_metadata(role, change))
    assert device.run(source) in ends
    assert source.n_answers < 100  # 5 MB of targets is the longest that is read
    recovers(device)


def test_chunks_reordered_and_repeated(device, fleet):
    assert device.run(Shuffled(fleet.repo.path)) == OK


@pytest.mark.parametrize("every", [2, 3, 7])
def test_a_connection_that_is_reset_every_few_answers(device, fleet, every):
    source = Faulty(fleet.repo.path, faults.broken_now_and_then(every))
    ends = [device.run(source) for _ in range(4)]
    assert set(ends) <= {"transport_failed", OK, "up_to_date"}
    recovers(device)


def test_nobody_answers(device, fleet):
    assert device.run(Faulty(fleet.repo.path, faults.gone)) == "transport_failed"
    recovers(device)


@pytest.mark.parametrize("at", [0, 2, 5, 9, 14, 20, 26])
@pytest.mark.parametrize("fault", sorted(DISKS))
def test_disk(device, fault, at):
    error, code = DISKS[fault]
    assert device.run(disk=FailingDisk(at, error)) in {code, OK}
    recovers(device)


@pytest.mark.parametrize("fault", sorted(CLOCKS))
def test_clock(device, monkeypatch, fault):
    set_clock(monkeypatch, CLOCKS[fault])
    assert device.run() == OK


def test_clock_jumps_backwards_between_two_runs(device, fleet, monkeypatch):
    assert device.run(Faulty(fleet.repo.path, payload_only(faults.vanished))) == "object_missing"
    set_clock(monkeypatch, datetime(1999, 1, 1, tzinfo=UTC))
    assert device.run() == OK


def test_metadata_that_has_expired_by_a_believable_clock(device, monkeypatch):
    set_clock(monkeypatch, datetime.now(UTC) + timedelta(days=400))
    assert device.run() == "metadata_expired"
    monkeypatch.undo()
    recovers(device)


def test_metadata_of_another_repository(device, fleet, tmp_path):
    from ota.fleet.repository import Repository

    Repository.create(tmp_path / "other", "other", None)
    assert device.run(DirSource(tmp_path / "other")) == "untrusted_metadata"
    recovers(device)


def test_metadata_mixed_from_two_moments(device, fleet, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(fleet.repo.path, mixed)
    shutil.copy(mixed / "metadata/1.snapshot.json", mixed / "metadata/2.snapshot.json")
    assert device.run(DirSource(mixed)) == "untrusted_metadata"
    recovers(device)


def test_stale_metadata_after_newer(device, fleet, tmp_path):
    from ota.fleet.repository import Repository

    newer = tmp_path / "newer"
    shutil.copytree(fleet.repo.path, newer)
    Repository.open(newer).publish()
    gone = Faulty(newer, payload_only(faults.vanished))
    assert device.run(gone) == "object_missing"
    shutil.rmtree(device.path / "ota" / "tuf")
    assert device.run() == "untrusted_metadata"  # the record outlives the files
    assert device.run(DirSource(newer)) == OK


def set_clock(monkeypatch, moment):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return moment.astimezone(tz)

    monkeypatch.setattr(tuf_client, "datetime", Clock)
