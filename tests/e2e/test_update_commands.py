"""`edgeagent update` as somebody at the device uses it, with and without agent and broker."""

import json
import shutil
import subprocess
import sys

import pytest

from ota.storage import read_release
from tests.brokers import Mosquitto
from tests.e2e.house import NODE, House, edgeota
from tests.ota.simulator import web_server
from tests.tiny import make_model

pytestmark = pytest.mark.system

#: Large enough for its speed to be measured.
BIG = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "head_dim": 64}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    return [
        make_model(path / f"v{n}", drift=0.01 * n, version=f"{n}.0.0", counter=n, **BIG)
        for n in (1, 2, 3)
    ]


@pytest.fixture
def site(tmp_path, mosquitto, models):
    """A house that runs 1.0.0, and a repository with 2.0.0."""
    with Mosquitto() as broker:
        repo = tmp_path / "repo"
        made = edgeota("init", repo, "--name", "house")["root_file"]
        root_file = shutil.copy(made, tmp_path / "root.json")
        for model in models[:2]:
            edgeota("release", repo, model)
        edgeota("delta", repo, *models[:2])
        settings = "previous_slot_s = 0.01\nsoak_s = 0\n"
        with House(tmp_path, broker, models[0], root_file=root_file, settings=settings) as house:
            house.repo = repo
            yield house


def release(house, models, number):
    edgeota("release", house.repo, models[number])
    edgeota("delta", house.repo, models[number - 1], models[number])
    edgeota("publish", house.repo)


def run(house, verb, *words, code=0):
    """Run the command; return what it says as JSON, or its one line of error."""
    command = [sys.executable, "-m", "edgeagent.cli", "update", verb, *words, "--json"]
    if "--mqtt" not in words:
        command += ["--config", str(house.config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, (done.stdout, done.stderr, house.log.read_text()[-2000:])
    if code:
        assert done.stderr.startswith("edgeagent: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr
    return json.loads(done.stdout)


def start(house):
    house.serve(house.repo)
    return house.start_daemon()


def test_a_model_is_installed_given_up_and_forgiven(site, models):
    edgeota("publish", site.repo)
    start(site)
    assert run(site, "status")["installed_version"] == "1.0.0"
    assert "no model before" in run(site, "rollback", code=1)
    assert "nothing is under way" in run(site, "cancel", code=1)
    assert run(site, "install", "--wait", "60")["installed_version"] == "2.0.0"
    over_mqtt = ["--mqtt", f"127.0.0.1:{site.broker.port}", "--node", NODE]
    assert run(site, "status", *over_mqtt)["way_back"] == "slot"
    assert run(site, "check", *over_mqtt, "--wait", "60")["installed_version"] == "2.0.0"
    state = run(site, "rollback", "--wait", "60")
    assert (state["phase"], state["way_back"]) == ("rolled_back", "none")
    assert site.wait_for(site.topics.model_state, installed_version="1.0.0")
    assert "quarantined" in run(site, "install", "--wait", "60", code=1)
    done, back, refused = run(site, "history")["history"]
    assert (done["type"], done["from"], done["version"]) == ("update_committed", "1.0.0", "2.0.0")
    assert done["written_bytes"] > 0
    assert (back["type"], back["version"]) == ("rolled_back", "2.0.0")
    assert refused["code"] == "quarantined"
    assert run(site, "history", *over_mqtt)["history"][0] == done
    [entry] = run(site, "status")["quarantine"]
    assert (entry["version"], entry["code"]) == ("2.0.0", "rollback_requested")
    assert entry["base"] == read_release(models[0]).root
    assert "expected all, or a version or root" in run(site, "forgive", "9.9.9", code=1)
    assert run(site, "forgive", entry["root"][:16], *over_mqtt)["forgiven"] == [entry]
    assert "nothing is in quarantine" in run(site, "forgive", "all", code=1)
    assert run(site, "status")["quarantine"] == []
    assert run(site, "history")["history"][-1]["type"] == "update_forgiven"
    assert run(site, "install", "--wait", "60")["installed_version"] == "2.0.0"


def test_a_stick_is_enough_where_no_repository_answers(site):
    edgeota("publish", site.repo)
    stick = site.state_dir.parent / "stick"
    shutil.copytree(site.repo, stick, ignore=shutil.ignore_patterns("keys"))
    site.start_daemon()
    assert "found no metadata/timestamp.json" in run(site, "install", "--from", "/mnt", code=1)
    over_mqtt = ["--mqtt", f"127.0.0.1:{site.broker.port}", "--node", NODE]
    refused = run(site, "install", "--from", str(stick), *over_mqtt, code=78)
    assert "a directory of this machine" in refused
    state = run(site, "install", "--from", str(stick), "--wait", "60")
    assert state["installed_version"] == "2.0.0"
    shutil.rmtree(stick)
    site.broker.stop()
    assert run(site, "history")["history"][-1]["type"] == "update_committed"


def test_a_web_server_is_a_repository_too(site):
    edgeota("publish", site.repo)
    served = {
        str(path.relative_to(site.repo)): path.read_bytes()
        for kind in ("metadata", "targets")
        for path in (site.repo / kind).rglob("*")
        if path.is_file()
    }
    with web_server(served, []) as url:
        config = site.config.read_text()
        assert "[update]\n" in config
        site.config.write_text(config.replace("[update]\n", f'[update]\nsource = "{url}"\n'))
        site.start_daemon()
        assert run(site, "install", "--wait", "60")["installed_version"] == "2.0.0"


def test_with_the_broker_gone_the_way_back_comes_from_the_delta_on_the_disk(site, models):
    edgeota("publish", site.repo)
    start(site)
    run(site, "install", "--wait", "60")
    release(site, models, 2)
    assert run(site, "install", "--wait", "60")["installed_version"] == "3.0.0"
    assert run(site, "status")["way_back"] == "slot"
    site.wait_for(site.topics.model_state, phase="idle")
    run(site, "check", "--wait", "60")  # the first look after previous_slot_s
    assert run(site, "status")["way_back"] == "delta"
    slots = site.state_dir / "models" / "slots"
    assert len(list(slots.iterdir())) == 1
    site.broker.stop()
    state = run(site, "rollback", "--wait", "60")
    assert state["phase"] == "rolled_back"
    assert "update.rebuilt" in site.log.read_text()
    assert run(site, "history")["history"][-1]["version"] == "3.0.0"
    site.broker.start()
    assert site.wait_for(site.topics.model_state, installed_version="2.0.0", phase="rolled_back")


def test_without_an_agent_the_disk_is_read_and_turned_back(site, models):
    missing = run(site, "status", code=69)
    assert "no agent has ever run here" in missing
    edgeota("publish", site.repo)
    daemon = start(site)
    run(site, "install", "--wait", "60")
    release(site, models, 2)
    run(site, "install", "--wait", "60")
    run(site, "check", "--wait", "60")
    site.kill_daemon(daemon)
    assert run(site, "status") == {
        "installed_version": "3.0.0",
        "title": "tiny",
        "phase": "no_agent",
        "way_back": "delta",
        "quarantine": [],
    }
    assert "start it" in run(site, "install", code=69)
    assert run(site, "rollback")["installed_version"] == "2.0.0"
    assert run(site, "history")["history"][-1]["type"] == "rolled_back"
    assert "3.0.0 (" in run(site, "forgive", "2.0.0", code=1)
    [forgiven] = run(site, "forgive", "3.0.0")["forgiven"]
    assert forgiven["reason"] == "rolled back on request"
    assert run(site, "status")["quarantine"] == []
    assert run(site, "history")["history"][-1]["root"] == forgiven["root"]
    site.start_daemon()
    site.wait_for(site.topics.model_state, installed_version="2.0.0")
    assert run(site, "install", "--wait", "60")["installed_version"] == "3.0.0"
