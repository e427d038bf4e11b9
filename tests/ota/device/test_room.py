"""A disk with room for two slots and no third: what gives way, and in which order."""

import pytest

from ota.device.dir_source import DirSource
from ota.device.store import Store
from ota.device.updater import Board, Updater, Verdict
from ota.errors import StorageFull
from ota.storage import RESERVE_BYTES, Disk, read_release, verify_directory
from tests.ota.fakes import ScriptedAgent
from tests.ota.harness import make_fleet
from tests.ota.models import Shape, flip, random_shards, write_model

RATE = 0.002
SHAPE = Shape(layers=3, plane_bytes=32 * 64)


class TinyDisk(Disk):
    """A disk of so many bytes above the reserve."""

    def __init__(self, device, n_bytes):
        super().__init__()
        self.device, self.n_bytes = device, n_bytes

    def free_bytes(self, path):
        files = {
            (found.stat().st_ino, found.stat().st_size)
            for found in self.device.rglob("*")
            if found.is_file()
        }
        return RESERVE_BYTES + self.n_bytes - sum(size for _, size in files)


class Site:
    """A device that takes one release after the other."""

    def __init__(self, path):
        self.path, self.device = path, path / "device"
        self.fleet = make_fleet(path / "fleet", RATE, SHAPE)
        self.shards = flip(random_shards(1, SHAPE), RATE, 2)
        self.slot_bytes = sum(file.stat().st_size for file in self.fleet.new.iterdir())
        self.agent = ScriptedAgent()

    def release(self, counter, rate=RATE):
        self.shards = flip(self.shards, rate, counter)
        version, before = f"1.{counter - 1}.0", f"1.{counter - 2}.0"
        path = self.path / version
        write_model(path, self.shards, version=version, counter=counter)
        self.fleet.repo.add_release(path)
        self.fleet.repo.add_delta(before, version)
        self.fleet.repo.publish()

    def update(self, n_bytes):
        self.agent = ScriptedAgent(Verdict(True))
        disk = TinyDisk(self.device, n_bytes)
        store = Store(self.device, self.fleet.old, disk)
        source, root = DirSource(self.fleet.repo.path), self.fleet.root_file.read_bytes()
        board = Board("test-board", "0.1.0")
        return Updater(self.device, store, source, disk, root, board, self.agent).run()

    @property
    def store(self):
        return Store(self.device, self.fleet.old)


@pytest.fixture
def site(tmp_path):
    """A device on 1.2.0, with 1.1.0 in a slot beside it, and 1.3.0 to come."""
    site = Site(tmp_path)
    assert site.update(10**9) is None
    site.release(3)
    assert site.update(10**9) is None
    site.release(4)
    return site


def test_with_room_for_three_the_model_before_keeps_its_slot_until_the_commit(site):
    assert site.update(4 * site.slot_bytes) is None
    assert not site.store.returns_by_delta()
    assert not site.store.ways_dir.exists() or not list(site.store.ways_dir.iterdir())


def test_the_slot_before_gives_way_to_the_new_one_and_not_the_active_one(site):
    assert site.update(int(2.9 * site.slot_bytes)) is None
    assert site.agent.n_quiesced == 0  # not in place
    assert site.store.installed_version() == "1.3.0"
    assert verify_directory(site.store.revert("on request")).version == "1.2.0"


def test_what_is_not_enough_leaves_the_active_slot_to_be_written_over(site):
    assert site.update(int(1.9 * site.slot_bytes)) is None
    assert site.agent.n_quiesced == 1
    assert site.store.installed_version() == "1.3.0"
    assert verify_directory(site.store.revert("on request")).version == "1.2.0"


def test_a_way_back_that_is_not_worth_it_costs_nothing(tmp_path):
    site = Site(tmp_path)
    assert site.update(10**9) is None
    site.release(3, rate=0.9)  # hardly anything in common
    assert site.update(10**9) is None
    site.release(4, rate=0.9)
    assert isinstance(site.update(int(2.6 * site.slot_bytes)), StorageFull)
    assert site.store.installed_version() == "1.2.0"
    assert read_release(site.store.slot(site.store.state().previous)).version == "1.1.0"
    assert not list(site.store.ways_dir.iterdir())
