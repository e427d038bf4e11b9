"""Progress, sensing, events, the model store: one class each, a few lines each."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeagent import events
from edgeagent.adapters.journal import JournalHandler
from edgeagent.model_store import ModelStore
from edgeagent.progress import BEATS, WAKE_S, Progress
from edgeagent.sensing import Sensing
from tests.fakes import FakeSensors

ROOT = Path(__file__).parents[2]

HEAVY = ("numpy", "tuf", "zstandard", "jinja2", "tokenizers", "cryptography", "securesystemslib")
IDLE_RSS_MIB = 45


# -- progress -------------------------------------------------------------------------------------


def test_a_loop_that_says_nothing_is_named_until_it_is_heard_again():
    progress = Progress()
    beats = {name: progress.loop(name) for name in ("a", "b")}
    assert progress.silent() == ["a", "b"]
    beats["a"]()
    assert progress.silent() == ["b"]
    beats["a"]()
    beats["b"]()
    assert progress.silent() == []
    assert progress.silent() == ["a", "b"]


@pytest.mark.parametrize(("watchdog_s", "wake_s"), [(None, WAKE_S), (600, WAKE_S), (6, 1.0)])
def test_loops_wake_often_enough_for_the_watchdog(watchdog_s, wake_s):
    progress = Progress(watchdog_s)
    assert progress.wake_s == wake_s
    assert watchdog_s is None or progress.wake_s * BEATS <= watchdog_s / 2


def test_a_long_sleep_beats_on_its_way():
    beats = []

    async def main():
        await Progress(0.12).sleep(0.1, lambda: beats.append(time.monotonic()))

    asyncio.run(main())
    assert len(beats) >= 4
    assert beats[-1] - beats[0] >= 0.1


# -- sensing --------------------------------------------------------------------------------------


def test_the_energy_of_a_constant_power_is_power_times_time():
    async def main():
        sensing = Sensing(FakeSensors(power_w=3.0, temperature_c=41.26), Progress(), 10.0)
        started_s = time.monotonic()
        first = sensing.begin()
        await asyncio.sleep(0.2)
        measured = await sensing.finish(first, 4)
        seconds = time.monotonic() - started_s
        assert measured["energy"]["joules"] == pytest.approx(3.0 * seconds, rel=0.2)
        assert measured["energy"]["source"] == "measured: fake"
        assert measured["energy"]["reason"] is None
        assert measured["thermal"] == {"temperature_c": 41.3}

    asyncio.run(main())


def test_what_is_not_measured_is_null_with_a_reason():
    async def main():
        sensing = Sensing(FakeSensors(), Progress(), 10.0)
        measured = await sensing.finish(sensing.begin(), 4)
        assert measured["energy"]["joules"] is None
        assert measured["energy"]["reason"]
        assert measured["thermal"] == {"temperature_c": None, "reason": "none here"}

    asyncio.run(main())


def test_samples_come_faster_while_a_query_runs():
    async def main():
        sensing = Sensing(FakeSensors(), Progress(0.06), 0.05)
        times = []
        task = asyncio.create_task(sensing.run())
        for _ in range(100):
            await asyncio.sleep(0.01)
            times.append(sensing.last.time_s)
            if len(set(times)) > 3:
                break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(set(times)) > 3

    asyncio.run(main())


# -- events ---------------------------------------------------------------------------------------


@pytest.fixture
def agent_log():
    root = logging.getLogger("edgeagent")
    before = root.handlers, root.level, root.propagate
    yield root
    root.handlers, root.propagate = before[0], before[2]
    root.setLevel(before[1])


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (logging.CRITICAL, "<3>x.y a=1\n"),
        (logging.ERROR, "<3>x.y a=1\n"),
        (logging.WARNING, "<4>x.y a=1\n"),
        (logging.INFO, "<6>x.y a=1\n"),
    ],
)
def test_under_systemd_a_line_begins_with_its_priority(agent_log, capsys, level, line):
    events.install({"JOURNAL_STREAM": "8:1"})
    agent_log.log(level, "x.y a=%d", 1)
    assert capsys.readouterr().err == line


def test_connected_to_the_journal_an_event_goes_there_with_its_catalog_id(agent_log, capfd):
    status = os.fstat(2)
    events.install({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    (handler,) = agent_log.handlers
    assert isinstance(handler, JournalHandler)
    agent_log.warning("mqtt.lost reason=x")  # no journal here: nothing is lost, the line stays
    assert capfd.readouterr().err in ("<4>mqtt.lost reason=x\n", "")
    handler.close()


def test_elsewhere_it_begins_with_the_time(agent_log, capsys):
    events.install({})
    agent_log.getChild("part").info("x.y")
    assert capsys.readouterr().err.endswith(" x.y\n")


# -- which model ----------------------------------------------------------------------------------


def store_with(tmp_path, active):
    """Write a store whose active model is ``active``; return it."""
    root = "ab" * 32
    models = tmp_path / "models"
    slot = models / "slots" / root[:16]
    slot.mkdir(parents=True)
    (slot / "release.json").write_text("{}")
    state = {"format": 1, "active": root, "previous": None, "counter": 1, "quarantine": {}}
    (models / "store.json").write_text(json.dumps(state if active else state | {"active": None}))
    return ModelStore(tmp_path, tmp_path / "bundled", soak_s=600), slot


def test_without_updates_the_configured_model_runs(tmp_path):
    store = ModelStore(tmp_path / "state", tmp_path / "bundled", soak_s=600)
    assert store.active() == tmp_path / "bundled"
    assert not store.is_fresh()
    assert not store.is_installed()


def test_a_committed_model_runs_and_is_fresh_for_a_while(tmp_path):
    store, slot = store_with(tmp_path, active=True)
    assert store.active() == slot
    assert store.is_fresh()
    old_s = time.time() - 601
    os.utime(tmp_path / "models" / "store.json", (old_s, old_s))
    assert not store.is_fresh()
    store.revert("it crashed", "soak_crashes")
    assert store.active() == tmp_path / "bundled"
    [entry] = store.quarantine()
    assert (entry["root"], entry["code"]) == ("ab" * 32, "soak_crashes")
    assert store.forgive("all") == [entry]
    assert store.quarantine() == []


def test_a_store_that_cannot_be_read_means_the_configured_model(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "store.json").mkdir()
    store = ModelStore(tmp_path, tmp_path / "bundled", soak_s=600)
    assert store.active() == tmp_path / "bundled"
    store.revert("no matter", "")
    assert store.quarantine() == []


# -- the process ----------------------------------------------------------------------------------


def test_the_agent_loads_nothing_heavy_and_stays_small():
    code = (
        "import json, sys, os\n"
        "import edgeagent.agent\n"
        "pages = int(open('/proc/self/statm').read().split()[1])\n"
        "rss_mib = pages * os.sysconf('SC_PAGE_SIZE') / 2**20\n"
        "print(json.dumps([sorted(sys.modules), rss_mib]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    modules, rss_mib = json.loads(done.stdout)
    assert {name.split(".")[0] for name in modules}.isdisjoint(HEAVY)
    assert rss_mib < IDLE_RSS_MIB
