"""The table of faults, its quick form: all that needs no broker, a sample of links and of disks.

``make faults`` runs all of it, each call of the disk included.
"""

from contextlib import ExitStack
from pathlib import Path

import pytest

from ota.errors import StorageReadOnly
from tests.brokers import mosquitto_path
from tests.ota import faults_of_disks
from tests.ota.fault_table import BEGIN, END, faults, markdown, run_fault
from tests.ota.harness import REPO_ROOT, make_fleet
from tests.ota.lab import GAVE_UP, WAITS, Lab, budget_of
from tests.ota.models import Shape

TABLE = {f"{fault.group}: {fault.name}": fault for fault in faults()}
QUICK_LINKS = (
    "link: reset in a pull, MQTT 5",
    "link: half-open in a pull, MQTT 3.1.1",
    "link: broker killed, no sessions kept",
    "link: broker restarted, sessions kept, MQTT 3.1.1",
    "link: server's connection reset",
    "link: answers reordered",
    "link: slow loris: a byte an answer",
)
STRIDES = {"slot": 9, "in_place": 61}  # of the calls of an update


@pytest.fixture(scope="module")
def big_fleet(tmp_path_factory):
    """A payload of a megabyte, so that something can happen in the middle of it."""
    return make_fleet(tmp_path_factory.mktemp("big"), 0.5, Shape(4, 32 * 2000))


@pytest.mark.parametrize("name", [n for n, fault in TABLE.items() if fault.group != "link"])
def test_a_fault_ends_committed_or_typed_and_heals(tmp_path, fleet, name):
    run_fault(TABLE[name], tmp_path / "lab", fleet)


@pytest.mark.system
@pytest.mark.parametrize("name", QUICK_LINKS)
def test_a_fault_of_the_link(tmp_path, big_fleet, name):
    if mosquitto_path() is None:
        pytest.skip("mosquitto is not installed")
    run_fault(TABLE[name], tmp_path / "lab", big_fleet)


@pytest.mark.parametrize("strategy", sorted(faults_of_disks.STRATEGIES))
def test_a_disk_that_refuses_a_call(tmp_path, strategy):
    """Once, or from then on; full, broken or read-only; every call in turn gets one of them."""
    fleet = faults_of_disks.STRATEGIES[strategy](tmp_path / "fleet" / "of")
    ways = [(name, stays) for name in faults_of_disks.ERRORS for stays in (True, False)]
    n_calls = faults_of_disks.count_calls(tmp_path / "count", fleet, strategy)
    assert n_calls > 100
    finals = set()
    for number, at in enumerate(range(0, n_calls, STRIDES[strategy] // 3)):
        name, stays = ways[number % len(ways)]
        _, final, _ = faults_of_disks.check_call(
            tmp_path / f"at{at}", fleet, strategy, name, at, stays=stays
        )
        finals.add(final)
    assert {GAVE_UP, WAITS} <= finals


def test_a_laboratory_finds_a_loop(tmp_path, fleet, monkeypatch):
    """A failure that is never counted would come back for ever."""
    monkeypatch.setattr("ota.device.updater.retry_after_s", lambda *_: 1.0)
    lab = Lab(tmp_path / "lab", fleet)
    with ExitStack() as stack:
        TABLE["trust: timestamp expired"].make(lab, stack)
        with pytest.raises(AssertionError, match="it loops"):
            lab.until_final()


def test_a_lasting_failure_gives_up_after_its_budget():
    assert budget_of("object_missing") == 13
    assert budget_of("no_payload") == budget_of(StorageReadOnly.code) == 1


def test_the_document_shows_the_table():
    text = (Path(REPO_ROOT) / "docs" / "updates.md").read_text()
    shown = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == markdown(), "python -m tests.ota.fault_table --markdown"
