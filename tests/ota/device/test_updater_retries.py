"""What is tried again, when, and by whom: payloads, cancelled releases, the writes of a day."""

import json
import time

import pytest

from ota.device.dir_source import DirSource
from ota.device.flash import DAY_S, CountingCalls, FlashLedger
from ota.device.store import Store
from ota.device.updater import MAX_TRIALS, Board, Updater, Verdict
from ota.errors import Cancelled, FlashBudget, WireError
from ota.storage import Disk, read_release
from ota.trust import delta_target, full_target
from tests.ota.fakes import ScriptedAgent
from tests.ota.harness import make_fleet

GOOD = Verdict(True)
BOARD = Board("test-board", "0.1.0")
POLLING = Board("test-board", "0.1.0", is_requested=False)


class Device:
    """A device in a directory; ``run`` is one worker's life."""

    def __init__(self, path, fleet):
        self.path, self.fleet = path, fleet
        self.store = Store(path, fleet.old)
        self.agent = ScriptedAgent()

    def run(self, *verdicts, source=None, board=BOARD, is_cancelled=False, budget_bytes=None):
        self.agent = ScriptedAgent(*verdicts)
        self.agent.is_cancelled = is_cancelled
        source = source or DirSource(self.fleet.repo.path)
        calls = CountingCalls()
        disk = Disk(calls)
        store = Store(self.path, self.fleet.old, disk)
        ledger = FlashLedger(disk, self.path / "ota" / "flash.json", calls, budget_bytes)
        root = self.fleet.root_file.read_bytes()
        return Updater(self.path, store, source, disk, root, board, self.agent, ledger).run()

    @property
    def last(self):
        return self.agent.said[-1]


class Counting(DirSource):
    """A source that remembers what was asked for."""

    def __init__(self, path):
        super().__init__(path)
        self.asked = []

    def fetch(self, name, offset, length):
        self.asked.append(name)
        return super().fetch(name, offset, length)


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path / "device", make_fleet(tmp_path / "fleet"))


def delta_path(fleet):
    old, new = read_release(fleet.old), read_release(fleet.new)
    return fleet.repo.path / "targets" / delta_target(old.name, old.root, new.root)


def full_path(fleet):
    return fleet.repo.path / "targets" / full_target("edge-test", "1.1.0")


def test_a_payload_that_was_struck_out_is_not_fetched_again_and_again(device):
    for path in (delta_path(device.fleet), full_path(device.fleet)):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert device.run(board=POLLING).code == "no_payload"
    source = Counting(device.fleet.repo.path)
    assert device.run(board=POLLING, source=source).code == "no_payload"
    assert device.last["retry_after_s"] is None
    assert not [name for name in source.asked if name.endswith(".etd")]


def test_targets_that_are_signed_anew_bring_struck_out_payloads_back(device):
    fleet = device.fleet
    good = {path: path.read_bytes() for path in (delta_path(fleet), full_path(fleet))}
    for path, data in good.items():
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert device.run(board=POLLING).code == "no_payload"
    for path, data in good.items():
        path.write_bytes(data)
    assert device.run(board=POLLING).code == "no_payload"
    fleet.repo.add_delta("1.1.0", "1.0.0")  # signs targets
    fleet.repo.publish()
    assert device.run(GOOD, board=POLLING) is None
    assert device.store.installed_version() == "1.1.0"


def test_a_request_brings_struck_out_payloads_back(device):
    path = full_path(device.fleet)
    good, delta = path.read_bytes(), delta_path(device.fleet)
    delta.write_bytes(b"x" + delta.read_bytes()[1:])
    path.write_bytes(b"x" + good[1:])
    assert device.run().code == "no_payload"
    path.write_bytes(good)
    assert device.run(GOOD) is None


def test_a_trial_that_was_cancelled_by_hand_counts_as_none(device):
    for _ in range(MAX_TRIALS + 1):
        assert isinstance(device.run(Cancelled("stop"), is_cancelled=True), Cancelled)
    assert device.run(GOOD) is None


def test_a_message_that_breaks_the_protocol_keeps_what_was_fetched(device):
    class Garbled(DirSource):
        def fetch(self, name, offset, length):
            if name.endswith(".etd"):
                raise WireError("expected a header, got 'x'")
            return super().fetch(name, offset, length)

    assert isinstance(device.run(source=Garbled(device.fleet.repo.path)), WireError)
    journal = json.loads((device.path / "ota" / "update.json").read_text())
    assert journal["state"] == "fetching" and journal["payload"]
    assert device.run(GOOD) is None


def test_an_update_tells_what_it_wrote_over_all_its_workers(device):
    for _ in range(2):
        assert isinstance(device.run(Cancelled("stop")), Cancelled)
    first = device.last["written_bytes"]
    assert device.run(GOOD) is None
    assert device.last["event"] == "committed"
    slot = device.store.active()
    assert device.last["written_bytes"] > first > sum(p.stat().st_size for p in slot.iterdir()) // 2
    day = json.loads((device.path / "ota" / "flash.json").read_text())
    assert day["bytes"] >= device.last["written_bytes"]


def test_the_budget_is_asked_again_before_the_slot_is_made(device):
    """What was fetched today, with the slot, is too much for a day: the slot is made tomorrow."""
    payload = delta_path(device.fleet).stat().st_size

    class Dies(DirSource):
        def fetch(self, name, offset, length):
            if name.endswith(".etd"):
                raise WireError("the link ended")
            return super().fetch(name, offset, length)

    device.run(source=Dies(device.fleet.repo.path))  # something is written, and one is chosen
    assert isinstance(device.run(GOOD, budget_bytes=payload + 10_000), FlashBudget)
    assert device.store.installed_version() == "1.0.0"
    journal = json.loads((device.path / "ota" / "update.json").read_text())
    assert journal["state"] == "staging"
    assert 0 < device.last["retry_after_s"] <= DAY_S
    ledger = device.path / "ota" / "flash.json"
    day = int(time.time() // DAY_S) - 1
    ledger.write_text(json.dumps({"format": 1, "day": day, "bytes": 10**9}))
    assert device.run(GOOD, budget_bytes=payload + 10_000) is None  # the next day
