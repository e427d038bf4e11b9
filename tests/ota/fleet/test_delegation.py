"""Models with keys of their own: the operator's ceremonies, and what devices believe afterwards."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from tuf.api._payload import DelegatedRole, Snapshot, TargetFile, Targets

from ota.device.dir_source import DirSource
from ota.device.store import Store
from ota.device.tuf_client import TufClient
from ota.device.updater import Board, Updater, Verdict
from ota.errors import ConfigError, UntrustedMetadata
from ota.fleet import metadata as metadata_files
from ota.fleet.cli import main
from ota.fleet.keys import load_keys
from ota.fleet.repository import Repository
from ota.fleet.responder import Responder
from ota.mqtt import Broker
from ota.storage import Disk
from ota.trust import channel_target, delta_target, full_target, model_patterns, release_target
from tests.ota import harness
from tests.ota.fakes import ScriptedAgent
from tests.ota.models import Shape, flip, random_shards, write_model

SHARDS = random_shards(1, Shape())
OURS, THEIRS = "edge-test", "other"


def model(path, version, counter, name=OURS, rate=0.01):
    shards = flip(SHARDS, rate, counter) if counter > 1 else SHARDS
    return write_model(
        path / f"{name}-{version}", shards, version=version, counter=counter, name=name
    )


@pytest.fixture
def old(tmp_path):
    return model(tmp_path, "1.0.0", 1)


@pytest.fixture
def repo(tmp_path, old):
    """A release of each of two models, signed by the one targets key."""
    repo = Repository.create(tmp_path / "repo", "tests", None)
    repo.add_release(old)
    repo.add_release(model(tmp_path, "1.0.0", 1, THEIRS))
    repo.publish()
    return repo


class Device:
    """A device that has the first release, over a directory."""

    def __init__(self, path, repo, old):
        self.path, self.repo, self.old = path, repo, old
        self.root = (repo.path / "metadata/1.root.json").read_bytes()

    def run(self):
        agent = ScriptedAgent(Verdict(True))
        source = DirSource(self.repo.path)
        store = Store(self.path, self.old)
        board = Board("test-board", "0.1.0")
        Updater(self.path, store, source, Disk(), self.root, board, agent).run()
        end = agent.said[-1]
        return end["code"] if end["event"] == "failed" else end["event"]


@pytest.fixture
def device(tmp_path, repo, old):
    return Device(tmp_path / "device", repo, old)


def without_the_targets_key(repo, tmp_path):
    """Carry the keys of root and targets away; returns how to bring them back."""
    away = tmp_path / "safe"
    away.mkdir(exist_ok=True)
    for role in ("root", "targets"):
        shutil.move(repo.keys_dir / f"{role}.pem", away / f"{role}.pem")
    return lambda: [shutil.copy2(path, repo.keys_dir) for path in away.iterdir()]


def test_patterns_cover_every_target_of_a_model_and_no_other():
    role = DelegatedRole("a", [], 1, True, paths=model_patterns("a"))
    for own in (
        channel_target("a"),
        release_target("a", "1.0"),
        full_target("a", "1.0"),
        delta_target("a", "0" * 64, "1" * 64),
    ):
        assert role.is_delegated_path(own)
        assert not role.is_delegated_path(own.replace("models/a/", "models/ab/"))
        assert not role.is_delegated_path(own.replace("models/a/", "models/b/"))


def test_after_the_ceremony_the_targets_key_is_not_needed(repo, device, tmp_path):
    repo.delegate(OURS)
    without_the_targets_key(repo, tmp_path)
    assert device.run() == "up_to_date"
    repo.add_release(model(tmp_path, "1.1.0", 2))
    delta = repo.add_delta("1.0.0", "1.1.0", OURS)
    repo.publish()
    assert delta.n_bytes < delta.full_bytes
    assert device.run() == "committed"
    assert json.loads(repo.notice())["models"] == {OURS: "1.1.0", THEIRS: "1.0.0"}
    with pytest.raises(ConfigError, match=r"targets\.pem"):
        repo.add_release(model(tmp_path, "1.1.0", 2, THEIRS))


def test_a_delegated_models_targets_leave_the_top_level(repo):
    repo.delegate(OURS)
    top = repo._files.load("targets", Targets).signed
    assert {name.split("/")[1] for name in top.targets} == {THEIRS}
    assert top.delegations.roles[OURS].terminating
    status = repo.status()
    assert status["models"][OURS]["signed_by"] == OURS
    assert status["models"][THEIRS]["signed_by"] == "targets"
    assert status["roles"][OURS]["days_left"] == 364 and status["is_published"]


def sign_as(repo, role, targets, version):
    """Sign ``targets`` as ``role`` with whatever keys lie there, and publish it."""
    metadata = repo._files.load(role, Targets)
    metadata.signed.targets = targets
    repo._files.write(role, metadata, version)


def test_another_models_key_cannot_release_ours(repo, device, tmp_path):
    """B's key lists a release of A: the patterns of B do not reach it."""
    repo.delegate(OURS)
    repo.delegate(THEIRS)
    repo.add_release(model(tmp_path, "1.1.0", 2))
    listed = repo._files.load(OURS, Targets).signed.targets
    theirs = repo._files.load(THEIRS, Targets).signed.targets
    sign_as(repo, OURS, {}, repo._files.next_version(OURS))
    sign_as(repo, THEIRS, theirs | listed, repo._files.next_version(THEIRS))
    repo.publish()
    assert device.run() == "release_refused"


def test_another_models_key_cannot_sign_our_role(repo, device, tmp_path):
    """B's key signs A's role itself."""
    repo.delegate(OURS)
    repo.delegate(THEIRS)
    assert device.run() == "up_to_date"
    repo.add_release(model(tmp_path, "1.1.0", 2))
    version = repo._files.newest(OURS)
    metadata = repo._files.load(OURS, Targets)
    metadata.signatures.clear()
    metadata.sign(load_keys(repo.keys_dir, THEIRS, is_delegated=True)[0])
    path = repo.path / "metadata" / f"{version}.{OURS}.json"
    honest = path.read_bytes()
    path.write_bytes(metadata.to_bytes())
    with pytest.raises(ConfigError, match="not signed by its keys"):
        repo.publish()
    path.write_bytes(honest)
    repo.publish()
    path.write_bytes(metadata.to_bytes())  # put there after it was published
    assert device.run() == "untrusted_metadata"
    path.write_bytes(honest)
    assert device.run() == "committed"


def test_a_threshold_of_a_models_keys_must_sign(repo, device, tmp_path):
    repo.delegate(OURS, n_keys=3, threshold=2)
    keys = repo.keys_dir / "models" / OURS
    (keys / "3.pem").rename(tmp_path / "3.pem")
    repo.add_release(model(tmp_path, "1.1.0", 2))
    repo.publish()
    (keys / "2.pem").rename(tmp_path / "2.pem")
    with pytest.raises(ConfigError, match="expected 2 of its 3 keys"):
        repo.add_release(model(tmp_path, "1.2.0", 3))
    path = repo.path / "metadata" / f"{repo._files.newest(OURS)}.{OURS}.json"
    honest = json.loads(path.read_bytes())
    assert len(honest["signatures"]) == 2
    path.write_text(json.dumps(honest | {"signatures": honest["signatures"][:1]}))
    assert device.run() == "untrusted_metadata"
    twice = [honest["signatures"][0]] * 2
    path.write_text(json.dumps(honest | {"signatures": twice}))
    assert device.run() == "untrusted_metadata"
    path.write_text(json.dumps(honest))
    assert device.run() == "committed"


def test_rotated_keys_sign_and_the_old_ones_do_not(repo, device, tmp_path):
    repo.delegate(OURS)
    keys = repo.keys_dir / "models" / OURS
    stolen = (keys / "1.pem").read_bytes()
    before = repo.keys()[OURS]["keys"]
    assert repo.rotate(OURS) == repo._files.newest("targets")
    assert not set(before) & set(repo.keys()[OURS]["keys"])
    repo.add_release(model(tmp_path, "1.1.0", 2))
    repo.publish()
    fresh = (keys / "1.pem").read_bytes()
    (keys / "1.pem").write_bytes(stolen)
    with pytest.raises(ConfigError, match="expected 1 of its 1 keys"):
        repo.add_release(model(tmp_path, "1.2.0", 3))
    (keys / "1.pem").write_bytes(fresh)
    assert device.run() == "committed"


def test_a_model_that_was_taken_back_goes_on_under_targets(repo, device, tmp_path):
    repo.delegate(OURS)
    assert device.run() == "up_to_date"
    assert repo.undelegate(OURS) == 3  # a release: its channel, its text, its image
    assert repo.status()["models"][OURS]["signed_by"] == "targets"
    assert set(repo.keys()) == {"root", "targets", "snapshot", "timestamp"}
    repo.add_release(model(tmp_path, "1.1.0", 2))
    repo.publish()
    assert device.run() == "committed"
    assert f"{OURS}.json" in repo._files.load("snapshot", Snapshot).signed.meta


def test_a_model_can_be_handed_out_again(repo, device, tmp_path):
    repo.delegate(OURS)
    assert device.run() == "up_to_date"
    first = repo._files.newest(OURS)
    repo.undelegate(OURS)
    repo.delegate(OURS)
    assert repo._files.newest(OURS) > first  # or devices would call it a replay
    repo.add_release(model(tmp_path, "1.1.0", 2))
    repo.publish()
    assert device.run() == "committed"


def test_what_bad_keys_signed_can_be_dropped(repo, device):
    repo.delegate(OURS)
    assert device.run() == "up_to_date"
    assert repo.undelegate(OURS, drop=True) == 0
    assert OURS not in repo.status()["models"]
    assert device.run() == "release_refused"


def test_a_models_role_never_goes_back_even_if_the_cache_is_lost(repo, device, tmp_path):
    """Whoever has the online keys puts an old role into a new snapshot."""
    repo.delegate(OURS)
    old_version = repo._files.newest(OURS)
    repo.add_release(model(tmp_path, "1.1.0", 2))
    repo.publish()
    assert device.run() == "committed"
    shutil.rmtree(device.path / "ota" / "tuf")
    (repo.path / "metadata" / f"{repo._files.newest(OURS)}.{OURS}.json").unlink()
    repo.publish()
    assert repo._files.published()[OURS] == old_version
    assert device.run() == "untrusted_metadata"
    record = (device.path / "ota" / "tuf.highwater").read_bytes()
    assert f'"{OURS}": {old_version + 1}'.encode() in record


def test_a_cached_role_is_compared_with_the_record_too(repo, device, tmp_path):
    repo.delegate(OURS)
    assert device.run() == "up_to_date"
    tuf = TufClient(DirSource(repo.path), Disk(), device.path / "ota" / "tuf", device.root)
    tuf.refresh()
    mark = tuf.high_water.mark
    tuf.high_water.raise_to(type(mark)({OURS: 99}, mark.online_keys, mark.time, {}))
    with pytest.raises(UntrustedMetadata, match=f"{OURS}: expected version 99"):
        tuf.target(channel_target(OURS))


def test_a_role_that_expired_is_told_apart(repo, device, monkeypatch):
    repo.delegate(OURS, life_days=5)
    assert repo.status()["roles"][OURS]["days_left"] == 4
    yesterday = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    role = repo._files.load(OURS, Targets)
    with monkeypatch.context() as patch:
        patch.setattr(metadata_files, "until", lambda _life: yesterday)
        repo._files.write(OURS, role, repo._files.next_version(OURS))
    repo.publish()
    assert device.run() == "role_expired"
    repo.renew(OURS)
    assert device.run() == "up_to_date"


def test_a_crafted_tree_of_delegations_ends(repo, device, tmp_path):
    """Roles that delegate to each other: each is looked into once, and only so many."""
    repo.delegate(OURS)
    metadata = repo._files.load(OURS, Targets)
    top = repo._files.load("targets", Targets).signed
    metadata.signed.delegations = top.delegations  # OURS delegates to itself
    metadata.signed.targets = {}
    repo._files.write(OURS, metadata, repo._files.next_version(OURS))
    repo.publish()
    assert device.run() == "release_refused"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "targets"}, "no role of TUF itself"),
        ({"model": "../x"}, "name of a model"),
        ({"n_keys": 0}, "1 <= threshold <= keys"),
        ({"n_keys": 2, "threshold": 3}, "got 3 of 2"),
        ({"life_days": 0}, "life of 1 to"),
    ],
)
def test_a_ceremony_that_makes_no_sense_changes_nothing(repo, change, message):
    before = sorted(path.name for path in (repo.path / "metadata").iterdir())
    with pytest.raises(ConfigError, match=message):
        repo.delegate(**({"model": OURS} | change))
    assert sorted(path.name for path in (repo.path / "metadata").iterdir()) == before


def test_a_model_is_handed_out_once(repo):
    repo.delegate(OURS)
    with pytest.raises(ConfigError, match="keys-rotate"):
        repo.delegate(OURS)
    for change in (repo.undelegate, repo.rotate, repo.renew):
        with pytest.raises(ConfigError, match="keys of its own"):
            change(THEIRS)


def test_names_that_contain_each_other_are_told_apart(tmp_path):
    repo = Repository.create(tmp_path / "repo", "tests", None)
    for name in ("b", "a.b", "b-2"):
        repo.delegate(name, n_keys=2)
    for name in ("b", "a.b", "b-2"):
        repo.add_release(model(tmp_path, "1.0.0", 1, name))
    repo.publish()
    assert {name: entry["signed_by"] for name, entry in repo.status()["models"].items()} == {
        name: name for name in ("b", "a.b", "b-2")
    }
    repo.rotate("b")
    repo.add_release(model(tmp_path, "1.1.0", 2, "b-2"))


def edgeota(capsys, *args, code=0):
    assert main([str(arg) for arg in (*args, "--json")]) == code
    return json.loads(capsys.readouterr().out)


def test_the_ceremony_of_the_document(capsys, tmp_path, old):
    repo = tmp_path / "repo"
    edgeota(capsys, "init", repo, "--name", "home")
    edgeota(capsys, "release", repo, old)
    edgeota(capsys, "publish", repo)
    made = edgeota(
        capsys, "delegate", repo, OURS, "--role-keys", 3, "--threshold", 2, "--expires", 90
    )
    team = tmp_path / "team"
    shutil.copytree(repo / "keys" / "models", team / "models", copy_function=shutil.move)
    assert made["keys"].endswith(f"models/{OURS}")
    listed = edgeota(capsys, "keys-list", repo)["roles"][OURS]
    assert listed["threshold"] == 2 and len(listed["keys"]) == 3
    assert OURS in edgeota(capsys, "expiry", repo)["roles"]
    soon = edgeota(capsys, "expiry", repo, "--days", 91, code=os.EX_TEMPFAIL)["error"]["message"]
    assert OURS in soon
    edgeota(capsys, "release", repo, model(tmp_path, "1.1.0", 2), "--keys", team)
    edgeota(capsys, "delta", repo, "1.0.0", "1.1.0", "--keys", team)
    edgeota(capsys, "renew", repo, "targets")
    edgeota(capsys, "publish", repo)
    shutil.copytree(team / "models", repo / "keys" / "models", dirs_exist_ok=True)
    assert edgeota(capsys, "keys-rotate", repo, OURS)["targets"] > 1
    assert edgeota(capsys, "undelegate", repo, OURS)["kept"] == 6
    error = edgeota(capsys, "undelegate", repo, OURS, code=os.EX_CONFIG)["error"]
    assert "edgeota delegate" in error["message"]


@pytest.mark.system
@pytest.mark.parametrize("way", ["directory", "mqtt"])
def test_the_worker_follows_a_delegation(tmp_path, repo, old, mosquitto, way):
    """The real process, from a directory and over a real broker."""
    repo.delegate(OURS, n_keys=2, threshold=2)
    without_the_targets_key(repo, tmp_path)
    new = model(tmp_path, "1.1.0", 2)
    repo.add_release(new)
    repo.add_delta("1.0.0", "1.1.0", OURS)
    repo.publish()
    fleet = harness.Fleet(tmp_path, repo, old, new)
    at = {"host": mosquitto.host, "port": mosquitto.port}
    start = {"directory": str(repo.path)} if way == "directory" else {"mqtt": at}
    responder = Responder(Broker(**at), "tests", repo.path)
    responder.open()
    try:
        said = harness.Device(tmp_path / "state", fleet, **start).update()
    finally:
        responder.close()
    assert said[-1]["event"] == "committed"
    staged = next(each for each in said if each["event"] == "staged")
    assert (staged["payload"], staged["to"]) == ("delta", "1.1.0")


def test_a_target_that_both_could_sign_is_signed_by_the_model_alone(repo):
    """Nothing of a delegated model may stay at the top, or the old key would still decide."""
    repo.delegate(OURS)
    top = repo._files.load("targets", Targets).signed
    assert not [name for name in top.targets if name.startswith(f"models/{OURS}/")]
    assert isinstance(repo._files.everything().targets[channel_target(OURS)], TargetFile)
