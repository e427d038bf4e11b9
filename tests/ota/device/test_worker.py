"""The real process, over a real broker, killed for real."""

import json
import os
import random
import select
import socket
import subprocess
import sys
import threading

import pytest

from ota.device.worker import parse_start
from ota.errors import ConfigError
from ota.fleet.responder import Responder
from ota.mqtt import Broker
from ota.storage import verify_directory
from tests.brokers import Amqtt
from tests.ota.harness import REPO_ROOT, Device, Worker, make_fleet
from tests.ota.models import Shape, flip, random_shards, write_model

START = (
    b'{"op": "start", "state_dir": "s", "bundled_dir": "b", "repo": "r", "node": "n", '
    b'"root_file": "f", "hardware": "h", "agent_version": "1", "mqtt": {"host": "x", "port": 1}}'
)


def test_a_first_line_is_read():
    start = parse_start(START)
    assert (start.repo, start.node, start.broker) == ("r", "n", Broker("x", 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"start"', b'"stop"'),
        (b'"state_dir": "s", ', b""),
        (b'"node": "n"', b'"node": "a/b"'),
        (b'"repo": "r"', b'"repo": "+"'),
        (b'"port": 1', b'"port": 99999'),
        (b'"port": 1', b'"port": "1"'),
        (b'"mqtt"', b'"http"'),
        (b"{", b"["),
    ],
)
def test_a_first_line_that_makes_no_sense_is_a_config_error(old, new):
    with pytest.raises(ConfigError, match="expected"):
        parse_start(START.replace(old, new, 1))


@pytest.fixture(scope="session")
def big_fleet(tmp_path_factory):
    """A payload of many chunks, so that there is something to interrupt."""
    return make_fleet(tmp_path_factory.mktemp("big"), 0.2, Shape(4, 32 * 2000))


def mqtt(broker):
    return {
        "host": broker.host,
        "port": broker.port,
        "username": None,
        "password": None,
        "protocol": "auto",
    }


@pytest.fixture
def responding(mosquitto, fleet):
    responder = Responder(Broker(mosquitto.host, mosquitto.port), "tests", fleet.repo.path)
    responder.open()
    yield mosquitto
    responder.close()


@pytest.mark.system
def test_an_update_over_mqtt_5_is_committed(tmp_path, fleet, responding):
    device = Device(tmp_path / "state", fleet, mqtt=mqtt(responding))
    assert device.update()[-1]["event"] == "committed"
    assert device.store.installed_version() == "1.1.0"
    assert device.update() == [
        {
            "event": "state",
            "state": "checking",
            "progress": None,
            "detail": "",
            "clock_untrusted": False,
        },
        {"event": "up_to_date", "version": "1.1.0"},
    ]


@pytest.mark.system
def test_an_update_over_mqtt_3_1_1_is_committed(tmp_path, fleet):
    with Amqtt() as broker:
        responder = Responder(Broker(broker.host, broker.port), "tests", fleet.repo.path)
        responder.open()
        device = Device(tmp_path / "state", fleet, mqtt=mqtt(broker))
        assert device.update()[-1]["event"] == "committed"
        responder.close()
    assert device.store.installed_version() == "1.1.0"


def test_an_update_from_a_directory_is_rolled_back_on_request(tmp_path, fleet):
    device = Device(tmp_path / "state", fleet, directory=str(fleet.repo.path))
    said = device.update(is_good=False, reason="logits differ")
    assert said[-1]["event"] == "rolled_back"
    assert (said[-1]["version"], said[-1]["reason"]) == ("1.1.0", "logits differ")
    assert said[-1]["written_bytes"] > 0
    assert said[-1]["code"] == "health_failed"
    assert device.store.installed_version() == "1.0.0"
    assert device.update()[-1]["code"] == "quarantined"


def test_a_worker_leaves_when_the_agent_does(tmp_path, fleet):
    device = Device(tmp_path / "state", fleet, directory=str(fleet.repo.path))
    worker = device.worker()
    worker.read_until("staged")
    worker.__exit__()
    assert worker.process.returncode == 75
    assert device.update()[-1]["event"] == "committed"


def test_a_cancelled_trial_is_told_as_such(tmp_path, fleet):
    device = Device(tmp_path / "state", fleet, directory=str(fleet.repo.path))
    with device.worker() as worker:
        worker.read_until("staged")
        worker.send({"op": "cancel"})
        assert worker.read()["code"] == "cancelled"
        assert worker.read() is None


def test_a_worker_without_a_root_of_trust_says_where_it_looked(tmp_path, fleet):
    device = Device(tmp_path / "state", fleet, directory=str(fleet.repo.path))
    said = device.update(root_file=str(tmp_path / "nowhere.json"))
    assert said[-1]["code"] == "root_missing"
    assert "nowhere.json" in said[-1]["message"]


def test_a_second_worker_is_told_that_there_is_one(tmp_path, fleet):
    device = Device(tmp_path / "state", fleet, directory=str(fleet.repo.path))
    with device.worker() as first:
        first.read_until("staged")
        assert device.update()[-1]["code"] == "busy"
        first.send({"op": "trial", "ok": True})
        assert first.read_until("committed")


def test_a_worker_that_is_told_nonsense_says_what_it_expected():
    with Worker() as worker:
        worker.send({"op": "dance"})
        said = worker.read()
        assert (said["event"], said["code"]) == ("failed", "bad_config")
        assert worker.read() is None
    assert worker.process.returncode == 78


def test_a_worker_dies_with_its_parent_even_if_the_socket_stays_open(tmp_path, fleet):
    """The parent is killed; a copy of its end of the socket lives on in this process."""
    device = Device(tmp_path / "state", fleet, directory=str(fleet.repo.path))
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    script = (
        "import subprocess, sys\n"
        f"command = [sys.executable, '-m', 'ota.device.worker', '--fd', '{fd}']\n"
        f"print(subprocess.Popen(command, pass_fds=[{fd}]).pid, flush=True)\n"
        "sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=REPO_ROOT,
        pass_fds=[fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent, ours, ours.makefile("rb") as said:
        worker_fd = os.pidfd_open(int(parent.stdout.readline()))
        theirs.close()
        ours.settimeout(60)
        ours.sendall(json.dumps(device.start).encode() + b"\n")
        assert any(b'"staged"' in line for line in iter(said.readline, b""))
        parent.kill()
        assert select.select([worker_fd], [], [], 10)[0], "the worker outlived its parent"
        os.close(worker_fd)


@pytest.mark.system
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_new_model(
    tmp_path, big_fleet, mosquitto, seed
):
    rng = random.Random(seed)
    responder = Responder(Broker(mosquitto.host, mosquitto.port), "tests", big_fleet.repo.path)
    responder.open()
    device = Device(tmp_path / "state", big_fleet, mqtt=mqtt(mosquitto))
    n_killed = 0
    for attempt in range(24):
        if device.store.installed_version() == "1.1.0":
            if n_killed >= 3:
                break
            # A worker was faster than we were: once more, on another device.
            device = Device(tmp_path / f"state-{attempt}", big_fleet, mqtt=mqtt(mosquitto))
        with device.worker() as worker:
            agent = threading.Thread(target=worker.play)
            agent.start()
            # Starting takes 0.3 s, the update another 0.4 s: later and later, never twice alike.
            agent.join(timeout=rng.uniform(0.1, 0.3) + 0.04 * n_killed)
            n_killed += agent.is_alive()
            worker.kill()
            agent.join()
        assert verify_directory(device.store.active()).version in ("1.0.0", "1.1.0")
    assert n_killed >= 3
    assert device.update()[-1]["event"] in ("committed", "up_to_date")
    responder.close()
    assert verify_directory(device.store.active()).version == "1.1.0"


HOT = {"temperature_c": 99.0}
COOL = {"temperature_c": 30.0}


def test_an_agent_that_brings_samples_is_asked_before_each_stage(tmp_path, fleet):
    device = Device(tmp_path / "state", fleet, directory=str(fleet.repo.path), conditions=COOL)
    asked = []
    with device.worker() as worker:
        state = ""
        while (said := worker.read()) is not None:
            state = said.get("state", state)
            if said["event"] == "conditions":
                asked.append(state)
                worker.send({"op": "conditions", **COOL})
            elif said["event"] == "staged":
                worker.send({"op": "trial", "ok": True})
    assert asked == ["fetching", "staging", "trial"]
    assert device.store.installed_version() == "1.1.0"


def test_what_the_agent_answers_holds_a_stage_back(tmp_path, fleet):
    device = Device(tmp_path / "state", fleet, directory=str(fleet.repo.path), conditions=COOL)
    with device.worker() as worker:
        worker.read_until("state", "staging")
        assert worker.read()["event"] == "conditions"
        worker.send({"op": "conditions", **HOT})
        said = worker.read()
    assert said["code"] == "gated"
    assert said["gate"]["stage"] == "stage" and said["gate"]["reason"] == "temperature"
    assert device.store.installed_version() == "1.0.0"


def test_an_agent_that_does_not_answer_is_waited_for_only_so_long(tmp_path, fleet, monkeypatch):
    from ota.device.worker import AgentLink

    monkeypatch.setattr("ota.device.worker.ANSWER_S", 0.05)
    ours, theirs = socket.socketpair()
    start = json.loads(START) | {"conditions": HOT}
    ours.sendall(json.dumps(start).encode() + b"\n")
    with ours, theirs:
        link = AgentLink(theirs)
        link.read_start()
        assert link.samples().temperature_c == 99.0


def test_a_cancelled_release_begins_again_on_request_only(tmp_path, fleet):
    device = Device(tmp_path / "state", fleet, directory=str(fleet.repo.path))
    with device.worker(action="poll") as worker:
        worker.read_until("staged")
        worker.send({"op": "cancel", "for_good": True})
        assert worker.read()["code"] == "cancelled"
    said = device.update(action="poll")[-1]
    assert (said["code"], said["retry_after_s"]) == ("cancelled", None)
    assert "install it on request" in said["message"]
    assert device.update(action="install")[-1]["event"] == "committed"


def test_a_stop_that_nobody_asked_for_holds_nothing(tmp_path, fleet):
    device = Device(tmp_path / "state", fleet, directory=str(fleet.repo.path))
    with device.worker(action="poll") as worker:
        worker.read_until("staged")
        worker.send({"op": "cancel"})
        assert worker.read()["code"] == "cancelled"
    assert device.update(action="poll")[-1]["event"] == "committed"


def test_what_an_earlier_worker_left_is_cancelled_without_a_network(tmp_path, fleet):
    device = Device(tmp_path / "state", fleet, directory=str(fleet.repo.path), conditions=COOL)
    with device.worker(action="poll") as worker:
        worker.read_until("state", "staging")
        worker.send({"op": "conditions", **HOT})
        while worker.read() is not None:
            pass
    away = device.update(action="cancel", directory=str(tmp_path / "away"))
    assert [said["code"] for said in away] == ["cancelled"]
    assert device.update(action="poll", conditions=None)[-1]["code"] == "cancelled"
    assert device.update(conditions=None)[-1]["event"] == "committed"


def test_the_model_before_is_made_again_without_a_network(tmp_path):
    fleet = make_fleet(tmp_path / "fleet")
    device = Device(tmp_path / "state", fleet, directory=str(fleet.repo.path))
    assert device.update()[-1]["event"] == "committed"
    fleet.repo.add_release(
        write_model(
            tmp_path / "newest",
            flip(flip(random_shards(1, Shape()), 0.02, 2), 0.02, 3),
            version="1.2.0",
            counter=3,
        )
    )
    fleet.repo.add_delta("1.1.0", "1.2.0")
    fleet.repo.publish()
    assert device.update()[-1]["event"] == "committed"
    assert device.update(shrink_after_s=3600)[-1]["event"] == "up_to_date"
    assert not device.store.returns_by_delta()
    assert device.update(shrink_after_s=0)[-1]["event"] == "up_to_date"
    assert device.store.returns_by_delta()
    (said,) = device.update(action="rebuild", directory=str(tmp_path / "away"))
    assert said["event"] == "rebuilt" and said["written_bytes"] > 0
    assert verify_directory(device.store.revert("on request")).version == "1.1.0"
    assert device.update()[-1]["code"] == "quarantined"


def test_where_there_is_nothing_to_make_nothing_is_made(tmp_path):
    device = Device(tmp_path / "state", make_fleet(tmp_path / "fleet"))
    said = device.update(action="rebuild", directory="x")
    assert said == [{"event": "rebuilt", "written_bytes": 0, "seconds": said[0]["seconds"]}]
