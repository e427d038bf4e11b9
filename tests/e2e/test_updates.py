"""A model update as a fleet lives it: power cuts, bad releases, forgeries, all with real parts."""

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from edgeagent.model.files import read_release
from tests.brokers import Mosquitto
from tests.e2e.house import NODE, House, children, edgeota
from tests.tiny import make_model

pytestmark = pytest.mark.system

QUERY = {"prompt": "hello", "max_tokens": 8, "temperature": 1.0}
#: About 1.3 MB, so that an update has chunks enough to be cut in the middle.
BIG = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "head_dim": 64}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three releases of one model: 1.0.0, 2.0.0, and 3.0.0 whose health suite lies."""
    path = tmp_path_factory.mktemp("models")
    made = [
        make_model(path / f"v{n}", seed=n, version=f"{n}.0.0", counter=n, **BIG) for n in (1, 2, 3)
    ]
    manifest = json.loads((made[2] / "release.json").read_text())
    manifest["health"]["logits_sha256"][0] = "00" * 32
    (made[2] / "release.json").write_text(json.dumps(manifest))
    return made


class Fleet:
    def __init__(self, path: Path, port: int):
        self.repo, self.mqtt = path / "repo", ["--mqtt", f"127.0.0.1:{port}"]
        made = edgeota("init", self.repo, "--name", "house")["root_file"]
        # A device has its root from the day it was made, wherever the repository goes later.
        self.root_file = shutil.copy(made, path / "root.json")

    def release(self, model: Path, base: Path | None = None):
        edgeota("release", self.repo, model)
        if base is not None:
            edgeota("delta", self.repo, base, model)

    def publish(self):
        edgeota("publish", self.repo, *self.mqtt)


@pytest.fixture
def broker(mosquitto):
    with Mosquitto() as broker:
        yield broker


@pytest.fixture
def fleet(tmp_path, broker, models):
    fleet = Fleet(tmp_path, broker.port)
    fleet.release(models[0])
    fleet.publish()
    return fleet


@pytest.fixture
def house(tmp_path, broker, fleet, models):
    with House(tmp_path, broker, models[0], root_file=fleet.root_file) as house:
        house.server = house.serve(fleet.repo)
        house.daemon = house.start_daemon()
        yield house


def mount(*words):
    return subprocess.run(["mount", *map(str, words)], capture_output=True, check=False).returncode


@pytest.fixture
def small_disk(tmp_path):
    """A real file system that a model does not fit, where the device keeps its state."""
    path = tmp_path / "state"
    path.mkdir()
    if os.geteuid() != 0 or mount("-t", "tmpfs", "-o", "size=600k", "none", path):
        pytest.skip("a small file system can only be mounted as root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def version_of(house):
    with house.client() as client:
        answer = client.ask(NODE, QUERY)
    assert answer["status"] == "ok", answer
    return answer["model"]["version"]


def installed(house, version):
    return house.wait_for(house.topics.model_state, installed_version=version, in_progress=False)


def test_a_published_release_is_installed_and_no_query_is_dropped(house, fleet, models):
    assert version_of(house) == "1.0.0"
    answers, stop = [], threading.Event()

    def ask():
        with house.client() as client:
            while not stop.is_set():
                answers.append(client.ask(NODE, QUERY))

    asking = threading.Thread(target=ask)
    asking.start()
    fleet.release(models[1], base=models[0])
    fleet.publish()
    state = installed(house, "2.0.0")
    stop.set()
    asking.join()
    assert {a["status"] for a in answers} == {"ok"}
    assert version_of(house) == "2.0.0"
    assert state["in_progress"] is False
    slot = next(p for p in (house.state_dir / "models" / "slots").iterdir() if p.is_dir())
    assert read_release(slot).version == "2.0.0"


def test_a_release_that_fails_its_health_suite_is_taken_back_and_not_tried_again(
    house, fleet, models
):
    fleet.release(models[2], base=models[0])
    fleet.publish()
    house.wait_for(house.topics.model_state, phase="rolled_back")
    assert version_of(house) == "1.0.0"
    house.kill_daemon(house.daemon)
    house.daemon = house.start_daemon()
    assert version_of(house) == "1.0.0"


def updater_of(daemon):
    """Return the pid of the running updater, or None."""
    for pid in children(daemon.pid):
        try:
            if b"ota.device.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except FileNotFoundError:
            continue  # it left while we looked
    return None


def cut_power_in_the_update(house, later_s):
    """Kill the daemon `later_s` after its updater started; say whether the updater still ran."""
    end_s = time.monotonic() + 30
    while updater_of(house.daemon) is None:
        assert time.monotonic() < end_s, house.log.read_text()[-3000:]
        time.sleep(0.005)  # a process of somebody else gives no event
    time.sleep(later_s)
    was_running = updater_of(house.daemon) is not None
    house.kill_daemon(house.daemon)
    return was_running


def test_a_power_cut_in_the_middle_resumes_and_completes(house, fleet, models):
    fleet.release(models[1], base=models[0])
    fleet.publish()
    hits, seen = [], []
    # From the start of the updater, through its metadata and chunks, to the trial.
    for later_s in (0.0, 0.1, 0.2, 0.3, 0.4):
        hits.append(cut_power_in_the_update(house, later_s))
        house.daemon = house.start_daemon()
        seen.append(version_of(house))
        if seen[-1] == "2.0.0":
            break  # it was through: there is no update left to cut
    assert hits[0], "the first cut did not come in the middle of the update"
    print(f"cuts in a running updater: {hits}, versions after each: {seen}")
    assert set(seen) <= {"1.0.0", "2.0.0"}
    installed(house, "2.0.0")
    assert version_of(house) == "2.0.0"
    house.kill_daemon(house.daemon)
    house.daemon = house.start_daemon()
    assert version_of(house) == "2.0.0"


def test_a_repository_signed_by_other_keys_changes_nothing(house, fleet, models, tmp_path):
    (tmp_path / "forged").mkdir()
    forged = Fleet(tmp_path / "forged", house.broker.port)
    forged.release(models[1])
    house.processes.remove(house.server)
    house.server.terminate()
    house.server.wait()
    shutil.rmtree(fleet.repo)
    shutil.copytree(forged.repo, fleet.repo)
    house.server = house.serve(fleet.repo)
    forged.publish()
    edgeota("publish", fleet.repo, *fleet.mqtt)
    house.wait_for(house.topics.model_state, phase="failed")
    assert version_of(house) == "1.0.0"


def test_a_committed_model_that_is_damaged_on_disk_gives_way_to_the_one_before(
    house, fleet, models
):
    fleet.release(models[1], base=models[0])
    fleet.publish()
    installed(house, "2.0.0")
    house.kill_daemon(house.daemon)
    slot = next(p for p in (house.state_dir / "models" / "slots").iterdir() if p.is_dir())
    shard = slot / "model-00002-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.unlink()  # it may be a hard link: the damage is this slot's alone
    shard.write_bytes(data)
    house.daemon = house.start_daemon()
    assert version_of(house) == "1.0.0"


def test_a_full_disk_changes_nothing_and_space_lets_the_update_through(
    small_disk, broker, fleet, models, tmp_path
):
    with House(tmp_path, broker, models[0], root_file=fleet.root_file) as house:
        house.serve(fleet.repo)
        house.start_daemon()
        fleet.release(models[1])
        fleet.publish()
        state = house.wait_for(house.topics.model_state, phase="failed")
        assert "space" in state["release_summary"] or "full" in state["release_summary"], state
        assert version_of(house) == "1.0.0"
        assert not mount("-o", "remount,size=64m", small_disk)
        with house.client() as client:
            client.publish(house.topics.update_request, {"action": "install"})
        installed(house, "2.0.0")
        assert version_of(house) == "2.0.0"
