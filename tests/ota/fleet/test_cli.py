import json
import os
import signal
import subprocess
import sys

import paho.mqtt.subscribe as subscribe
import pytest

from ota.device.dir_source import DirSource
from ota.device.tuf_client import TufClient
from ota.fleet.cli import main
from ota.storage import Disk
from tests.ota.harness import REPO_ROOT, Device, Fleet
from tests.ota.models import Shape, flip, random_shards, write_model


@pytest.fixture
def models(tmp_path):
    shards = random_shards(1, Shape())
    old = write_model(tmp_path / "old", shards, version="1.0.0", counter=1)
    new = write_model(tmp_path / "new", flip(shards, 0.01, 2), version="1.1.0", counter=2)
    return old, new


def edgeota(capsys, *args, code=0):
    """Run a command with --json and return what it answered."""
    assert main([str(arg) for arg in (*args, "--json")]) == code
    return json.loads(capsys.readouterr().out)


def test_the_walk_through_of_the_document(capsys, tmp_path, models):
    repo = tmp_path / "repo"
    assert edgeota(capsys, "init", repo, "--name", "home")["repo"] == "home"
    edgeota(capsys, "release", repo, models[0])
    edgeota(capsys, "release", repo, models[1])
    delta = edgeota(capsys, "delta", repo, "1.0.0", "1.1.0")
    assert delta["bytes"] < delta["full_bytes"] / 5
    assert edgeota(capsys, "publish", repo) == {"repo": "home", "timestamp": 2, "notice": None}
    status = edgeota(capsys, "status", repo)
    assert [r["version"] for r in status["models"]["edge-test"]["releases"]] == ["1.0.0", "1.1.0"]


def test_a_person_gets_lines(capsys, tmp_path, models):
    repo = str(tmp_path / "repo")
    for command in (
        ["init", repo],
        ["release", repo, str(models[0])],
        ["publish", repo],
        ["status", repo],
    ):
        assert main(command) == 0
    said = capsys.readouterr().out
    assert "devices need" in said and "current 1.0.0" in said


def test_an_error_is_one_line_and_has_an_exit_code(capsys, tmp_path):
    assert main(["status", str(tmp_path)]) == os.EX_CONFIG
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("edgeota: ") and "edgeota init" in said.err


def test_an_error_in_json_has_its_code(capsys, tmp_path):
    said = edgeota(capsys, "status", tmp_path, code=os.EX_CONFIG)
    assert said["error"]["code"] == "bad_config"


@pytest.mark.parametrize("where", ["nonsense", "host:", ":1883", "host:port"])
def test_a_broker_must_be_host_and_port(capsys, tmp_path, where):
    edgeota(capsys, "init", tmp_path / "repo")
    said = edgeota(capsys, "publish", tmp_path / "repo", "--mqtt", where, code=os.EX_CONFIG)
    assert "host:port" in said["error"]["message"]


@pytest.mark.system
def test_publish_and_serve_bring_a_device_up_to_date(capsys, tmp_path, models, mosquitto):
    where = f"{mosquitto.host}:{mosquitto.port}"
    repo = tmp_path / "repo"
    edgeota(capsys, "init", repo, "--name", "tests")
    edgeota(capsys, "release", repo, models[0])
    edgeota(capsys, "release", repo, models[1])
    edgeota(capsys, "delta", repo, models[0], models[1])
    notice = edgeota(capsys, "publish", repo, "--mqtt", where)["notice"]
    retained = subscribe.simple("ota/v1/tests/notice", hostname=mosquitto.host, port=mosquitto.port)
    assert retained.retain and json.loads(retained.payload) == notice
    serving = subprocess.Popen(
        [sys.executable, "-m", "ota.fleet.cli", "serve", str(repo), "--mqtt", where, "--json"],
        cwd=REPO_ROOT,
        stdout=subprocess.PIPE,
    )
    with serving:
        assert json.loads(serving.stdout.readline())["repo"] == "tests"
        fleet = Fleet(tmp_path, type("Repo", (), {"name": "tests", "path": repo})(), *models)
        device = Device(
            tmp_path / "state", fleet, mqtt={"host": mosquitto.host, "port": mosquitto.port}
        )
        assert device.update()[-1]["event"] == "committed"
        serving.send_signal(signal.SIGTERM)
        assert json.loads(serving.stdout.readline())["answers"] >= 4
    assert serving.returncode == 0


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_new_keys_are_followed_by_devices_and_old_ones_are_not(
    capsys, tmp_path, models, role, monkeypatch
):
    monkeypatch.setenv("EDGEOTA_KEY_PASSPHRASE", "of three people")
    repo = tmp_path / "repo"
    edgeota(capsys, "init", repo, "--root-keys", 3, "--threshold", 2)
    assert b"ENCRYPTED" in (repo / "keys" / "root-3.pem").read_bytes()
    (repo / "keys" / "root-2.pem").rename(tmp_path / "away.pem")  # two of three are enough
    edgeota(capsys, "release", repo, models[0])
    edgeota(capsys, "publish", repo)
    before = edgeota(capsys, "keys-list", repo)["roles"]
    assert before["root"]["threshold"] == 2
    bootstrap = (repo / "metadata" / "1.root.json").read_bytes()
    first = TufClient(DirSource(repo), Disk(), tmp_path / "device", bootstrap)
    first.refresh()
    assert edgeota(capsys, "keys-rotate", repo, role) == {"role": role, "root": 2}
    after = edgeota(capsys, "keys-list", repo)["roles"]
    assert [each for each in before if set(before[each]["keys"]) & set(after[each]["keys"])] == [
        each for each in before if each != role
    ]
    for directory in ("device", "new"):  # one that knew the old keys, one that did not
        client = TufClient(DirSource(repo), Disk(), tmp_path / directory, bootstrap)
        client.refresh()
        assert client.target("models/edge-test/stable.json").custom["version"] == "1.0.0"


def test_too_few_root_keys_rotate_nothing(capsys, tmp_path):
    repo = tmp_path / "repo"
    edgeota(capsys, "init", repo, "--root-keys", 3, "--threshold", 2)
    for name in ("root.pem", "root-2.pem"):
        (repo / "keys" / name).unlink()
    assert "expected 2 of the root" in str(edgeota(capsys, "keys-rotate", repo, "root", code=78))
    assert not (repo / "metadata" / "2.root.json").exists()


def test_expiry_has_an_exit_code_for_cron(capsys, tmp_path):
    repo = tmp_path / "repo"
    edgeota(capsys, "init", repo)
    assert edgeota(capsys, "expiry", repo)["soon"] == []
    said = edgeota(capsys, "expiry", repo, "--days", 40, code=75)
    assert said["error"]["code"] == "expires_soon"
    assert "timestamp" in str(said)
