"""What a TUF client must do, asked of the executable that the public suite would drive.

Over HTTP and over MQTT: the same assertions, down to the list of requests.
"""

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from securesystemslib.signer._crypto_signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile

import ota.device.tuf_client as tuf_client
from bench import conformance
from tests.brokers import Mosquitto, mosquitto_path
from tests.ota.harness import REPO_ROOT
from tests.ota.simulator import Simulator, in_days, web_server


class Client:
    def __init__(self, repo, url, path):
        self.repo, self.url, self.path = repo, url, path
        self.metadata = path / "metadata"
        root = path / "root"
        root.write_bytes(repo.first_root)
        assert conformance.main(["--metadata-dir", str(self.metadata), "init", str(root)]) == 0
        assert repo.requests == []

    def refresh(self):
        self.repo.requests.clear()
        where = ["--metadata-url", f"{self.url}/metadata", "--metadata-dir", str(self.metadata)]
        return conformance.main([*where, "refresh"])

    def download(self, *names):
        self.repo.requests.clear()
        arguments = ["--metadata-url", f"{self.url}/metadata", "--metadata-dir", str(self.metadata)]
        arguments += [f"--target-name={name}" for name in names]
        arguments += ["--target-dir", str(self.path / "targets")]
        arguments += ["--target-base-url", f"{self.url}/targets", "download"]
        return conformance.main(arguments)

    def versions(self):
        return {
            role: json.loads((self.metadata / f"{role}.json").read_bytes())["signed"]["version"]
            for role in ("root", "timestamp", "snapshot", "targets")
            if (self.metadata / f"{role}.json").exists()
        }


@pytest.fixture(scope="module")
def shared_broker():
    if mosquitto_path() is None:
        yield None
    else:
        with Mosquitto() as broker:
            yield broker


@pytest.fixture(params=["http", pytest.param("mqtt", marks=pytest.mark.system)])
def client(request, tmp_path, monkeypatch):
    if request.param == "mqtt":
        broker = request.getfixturevalue("shared_broker")
        if broker is None:
            pytest.skip("mosquitto is not installed")
        monkeypatch.setenv(conformance.MQTT_VARIABLE, f"127.0.0.1:{broker.port}")
    repo = Simulator()
    with web_server(repo.served, repo.requests) as url:
        yield Client(repo, url, tmp_path)


def names(*parts):
    return [f"metadata/{part}.json" for part in parts]


def test_a_refresh_asks_for_exactly_what_it_needs(client):
    assert client.refresh() == 0
    assert client.repo.requests == names("2.root", "timestamp", "1.snapshot", "1.targets")
    assert client.versions() == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
    for role in ("timestamp", "1.snapshot", "1.targets"):
        kept = (client.metadata / f"{role.removeprefix('1.')}.json").read_bytes()
        assert kept == client.repo.served[f"metadata/{role}.json"]
    assert client.refresh() == 0
    assert client.repo.requests == names("2.root", "timestamp")


def test_a_new_snapshot_alone_leaves_the_targets_in_the_cache(client):
    assert client.refresh() == 0
    client.repo.snapshot.version += 1
    client.repo.timestamp.version += 1
    client.repo.publish_snapshot()
    assert client.refresh() == 0
    assert client.repo.requests == names("2.root", "timestamp", "2.snapshot")


@pytest.mark.parametrize("role", ["timestamp", "1.snapshot", "1.targets"])
def test_metadata_that_is_missing_unsigned_or_foreign_is_refused(client, role):
    name = f"metadata/{role}.json"
    whole = client.repo.served.pop(name)
    assert client.refresh() == 1
    unsigned = json.loads(whole)
    unsigned["signatures"] = []
    stranger = Metadata.from_bytes(whole)
    stranger.sign(CryptoSigner.generate_ed25519())
    for data in (json.dumps(unsigned).encode(), stranger.to_bytes(), b"{", b"", whole[:-9]):
        client.repo.served[name] = data
        assert client.refresh() == 1
    assert role.removeprefix("1.") not in client.versions()
    client.repo.served[name] = whole
    assert client.refresh() == 0


@pytest.mark.parametrize("field", ["length", "hashes"])
@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_a_length_or_hash_that_differs_is_refused(client, role, field):
    repo = client.repo
    wrong = MetaFile(1, length=3) if field == "length" else MetaFile(1, hashes={"sha256": "0" * 64})
    if role == "snapshot":
        repo.timestamp.snapshot_meta = wrong
        repo.publish_timestamp()
    else:
        repo.snapshot.meta["targets.json"] = wrong
        repo.publish_snapshot()
    assert client.refresh() == 1
    assert role not in client.versions()


def test_fields_that_are_not_known_are_kept_and_verified(client):
    client.repo.targets.unrecognized_fields["of-tomorrow"] = {"x": [1]}
    client.repo.bump()
    assert client.refresh() == 0
    assert b"of-tomorrow" in (client.metadata / "targets.json").read_bytes()


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_what_has_expired_is_refused_and_its_successor_heals(client, role):
    repo = client.repo
    signed = getattr(repo, role)
    signed.expires = in_days(-1)
    if role == "root":
        signed.version += 1
        repo.publish_root()
    repo.bump()
    assert client.refresh() == 1
    signed.expires = in_days(9)
    if role == "root":
        signed.version += 1
        repo.publish_root()
    repo.bump()
    assert client.refresh() == 0


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_no_role_rolls_back(client, role):
    repo = client.repo
    repo.bump()
    repo.bump()
    assert client.refresh() == 0
    before = client.versions()
    getattr(repo, role).version -= 1
    if role != "timestamp":
        repo.timestamp.version += 1
        if role == "targets":
            repo.snapshot.version += 1
    repo.publish()
    assert client.refresh() == 1
    after = client.versions()
    assert all(after[name] >= before[name] for name in before)


@pytest.mark.parametrize(
    ("role", "rotated"),
    [
        ("timestamp", ["timestamp"]),
        ("snapshot", ["snapshot", "timestamp"]),
        ("targets", ["snapshot", "timestamp"]),
    ],
)
def test_new_keys_recover_from_a_fast_forward(client, role, rotated):
    repo = client.repo
    getattr(repo, role).version = 99999
    repo.publish()
    repo.timestamp.version += 1
    repo.publish()
    assert client.refresh() == 0
    assert client.versions()[role] >= 99999
    for each in rotated:
        repo.rotate(each)
    for signed in (repo.timestamp, repo.snapshot, repo.targets):
        signed.version = 1
    repo.publish()
    assert client.refresh() == 0
    assert client.versions()[role] == 1


def make_signer(kind):
    if kind == "rsa":
        return CryptoSigner(rsa.generate_private_key(65537, 2048))
    if kind == "ecdsa":
        return CryptoSigner(ec.generate_private_key(ec.SECP256R1()))
    return CryptoSigner.generate_ed25519()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_key_types(client, kind):
    client.repo.rotate("root", make_signer(kind))
    client.repo.rotate("snapshot", make_signer(kind))
    client.repo.bump()
    assert client.refresh() == 0
    assert client.versions()["root"] == 3


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_threshold_counts_keys_not_signatures(client, role):
    repo = client.repo
    second = CryptoSigner.generate_ed25519()
    repo.root.add_key(second.public_key, role)
    repo.root.roles[role].threshold = 2
    repo.root.version += 1
    repo.publish_root()
    repo.bump()
    assert client.refresh() == 1
    prefix = "" if role == "timestamp" else "2."
    name = f"metadata/{prefix}{role}.json"
    twice = json.loads(repo.served[name])
    twice["signatures"] *= 2
    repo.served[name] = json.dumps(twice).encode()
    assert client.refresh() == 1
    repo.signers[role].append(second)
    repo.bump()
    assert client.refresh() == 0


def test_a_revoked_key_signs_nothing(client):
    repo = client.repo
    old = list(repo.signers["timestamp"])
    assert client.refresh() == 0
    repo.rotate("timestamp")
    repo.signers["timestamp"] = old
    repo.bump()
    assert client.refresh() == 1


def test_twenty_five_rotations_of_the_root(client):
    for _ in range(25):
        client.repo.rotate("root")
    assert client.refresh() == 0
    assert client.versions()["root"] == 26
    assert client.repo.requests[:26] == names(*(f"{n}.root" for n in range(2, 28)))
    assert client.refresh() == 0
    assert client.repo.requests == names("27.root", "timestamp")


@pytest.mark.parametrize("signed_by", ["old", "new", "nobody"])
def test_a_root_needs_the_old_keys_and_the_new(client, signed_by):
    repo = client.repo
    old = list(repo.signers["root"])
    repo.rotate("root")
    repo.publish_root({"old": old, "new": repo.signers["root"]}.get(signed_by, [make_signer("")]))
    assert client.refresh() == 1
    assert client.versions()["root"] == 1


@pytest.mark.parametrize("role", ["a b", "../up", "ünï", "%25", "x~y", ".", "..", "a/b"])
def test_odd_role_names_stay_inside_the_cache(client, role):
    client.repo.delegate("targets", role, ["odd/*"])
    client.repo.add_target("odd/file", b"data", role)
    client.repo.bump()
    assert client.download("odd/file") == 0
    outside = {path.name for path in client.path.iterdir()}
    assert outside == {
        "root",
        "metadata",
        "metadata.bootstrap",
        "metadata.highwater",
        "targets",
    }


def test_a_target_is_fetched_once_and_verified(client):
    client.repo.add_target("a/file", b"first")
    client.repo.bump()
    assert client.download("a/file") == 0
    assert client.repo.requests[-1].startswith("targets/a/")
    assert (client.path / "targets" / "a%2Ffile").read_bytes() == b"first"
    assert client.download("a/file") == 0
    assert client.repo.requests == names("2.root", "timestamp")
    client.repo.add_target("a/file", b"second")
    client.repo.bump()
    assert client.download("a/file") == 0
    assert (client.path / "targets" / "a%2Ffile").read_bytes() == b"second"


@pytest.mark.parametrize("data", [b"shorter", b"other data of the same size", b"x" * 1000])
def test_a_target_with_other_bytes_is_refused(client, data):
    whole = b"the bytes that were signed."
    client.repo.add_target("file", whole)
    client.repo.bump()
    for name in [name for name in client.repo.served if name.endswith(".file")]:
        client.repo.served[name] = data
    assert client.download("file") == 1
    assert not (client.path / "targets" / "file").exists()
    assert client.download("nothing") == 1


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_hash_algorithms(client, algorithm):
    client.repo.add_target("file", b"data", algorithms=[algorithm])
    client.repo.bump()
    assert client.download("file") == 0


# A graph of delegations, who serves the target, and which roles are asked for in which order.
GRAPHS = {
    "chain": ([("targets", "A", 0), ("A", "B", 0)], ["1.A", "1.B"]),
    "first of two": ([("targets", "A", 0), ("targets", "B", 0)], ["1.A", "1.B"]),
    "depth first": (
        [("targets", "A", 0), ("targets", "B", 0), ("A", "C", 0), ("B", "D", 0)],
        ["1.A", "1.C", "1.B", "1.D"],
    ),
    "terminating": ([("targets", "A", 1), ("targets", "B", 0), ("A", "C", 0)], ["1.A", "1.C"]),
    "cycle": ([("targets", "A", 0), ("A", "B", 0), ("B", "A", 0)], ["1.A", "1.B"]),
}


@pytest.mark.parametrize("graph", sorted(GRAPHS))
def test_delegations_are_walked_in_order(client, graph):
    edges, expected = GRAPHS[graph]
    for parent, name, terminating in edges:
        if name in client.repo.delegated:  # a cycle: the same role and key again
            role = client.repo.targets.delegations.roles[name]
            owner = client.repo.delegated[parent]
            client.repo.delegate(parent, f"{name}-again", ["*"])
            del client.repo.delegated[f"{name}-again"]
            owner.delegations.roles = {name: role}
            owner.delegations.keys = {
                key: client.repo.targets.delegations.keys[key] for key in role.keyids
            }
            continue
        client.repo.delegate(parent, name, ["*"], terminating=bool(terminating))
    client.repo.publish()
    assert client.download("file") == 1
    assert client.repo.requests[4:] == names(*expected)


def test_a_path_that_was_not_delegated_is_not_asked_of_a_role(client):
    client.repo.delegate("targets", "A", ["a/*"])
    client.repo.add_target("b/file", b"data", "A")
    client.repo.publish()
    assert client.download("b/file") == 1
    assert client.repo.requests == names("2.root", "timestamp", "1.snapshot", "1.targets")


def test_a_cached_role_is_verified_against_who_delegates_to_it_now(client):
    client.repo.delegate("targets", "A", ["a/*"])
    client.repo.add_target("a/file", b"data", "A")
    client.repo.publish()
    assert client.download("a/file") == 0
    replaced = client.repo.targets.delegations.roles["A"]
    client.repo.targets.revoke_key(replaced.keyids[0], "A")
    client.repo.targets.add_key(make_signer("ed25519").public_key, "A")
    client.repo.targets.version += 1
    client.repo.snapshot.version += 1
    client.repo.timestamp.version += 1
    client.repo.publish()  # A itself is as it was, signed by the key that it had
    assert client.download("a/file") == 1


def test_a_role_below_two_others_is_verified_by_the_keys_that_each_of_them_names(client):
    repo = client.repo
    for name, path in (("A", "x/*"), ("B", "y/*")):
        repo.delegate("targets", name, [path])
    repo.delegate("A", "C", ["x/*", "y/*"])
    repo.add_target("x/file", b"x", "C")
    repo.add_target("y/file", b"y", "C")
    role = DelegatedRole("C", [], 1, False, ["x/*", "y/*"])
    repo.delegated["B"].delegations = Delegations({}, {"C": role})
    repo.delegated["B"].add_key(make_signer("ed25519").public_key, "C")
    repo.publish()
    assert client.download("x/file") == 0
    assert client.download("x/file", "y/file") == 1
    assert not (client.path / "targets" / "y%2Ffile").exists()


def test_several_targets_are_one_refresh_and_stop_at_the_first_failure(client):
    for name in ("a", "b", "c"):
        client.repo.add_target(name, name.encode())
    client.repo.bump()
    broken = next(name for name in client.repo.served if name.endswith(".b"))
    whole = client.repo.served.pop(broken)
    assert client.download("a", "b", "c") == 1
    asked = client.repo.requests
    assert asked[:4] == names("2.root", "timestamp", "2.snapshot", "2.targets")
    assert [name[-2:] for name in asked[4:]] == [".a", ".b"]
    client.repo.served[broken] = whole
    assert client.download("a", "b", "c") == 0
    assert [name[-2:] for name in client.repo.requests[2:]] == [".b", ".c"]
    assert {path.name for path in (client.path / "targets").iterdir()} == {"a", "b", "c"}


def test_an_artifact_that_was_damaged_since_is_fetched_again(client):
    client.repo.add_target("file", b"data")
    client.repo.bump()
    assert client.download("file") == 0
    kept = client.path / "targets" / "file"
    kept.write_bytes(b"dat")
    assert client.download("file") == 0
    assert kept.read_bytes() == b"data"


def test_without_consistent_snapshots_names_have_no_versions(client):
    repo = client.repo
    repo.root.consistent_snapshot = False
    repo.root.version += 1
    repo.publish_root()
    repo.add_target("dir/file", b"data")
    repo.bump()
    for role in ("snapshot", "targets"):
        repo.served[f"metadata/{role}.json"] = repo.served.pop(f"metadata/2.{role}.json")
    repo.served["targets/dir/file"] = b"data"
    assert client.download("dir/file") == 0
    asked = names("2.root", "3.root", "timestamp", "snapshot", "targets")
    assert client.repo.requests == [*asked, "targets/dir/file"]


@pytest.mark.parametrize(("days", "code"), [(-20, 0), (29, 0), (31, 1)])
def test_expiry_is_judged_by_the_clock_of_the_device(client, monkeypatch, days, code):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=days)

    monkeypatch.setattr(tuf_client, "datetime", Clock)
    assert client.refresh() == code


def test_the_executable_takes_its_options_in_any_order_and_exits_with_0_or_1(client):
    program = [sys.executable, str(Path(conformance.__file__))]
    fresh = client.path / "fresh"
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}

    def run(*words):
        done = subprocess.run(
            [*program, *map(str, words)], capture_output=True, text=True, env=environment
        )
        assert done.stderr.count("\n") == done.returncode, done.stderr
        return done.returncode

    client.repo.add_target("file", b"data")
    client.repo.bump()
    assert run("--metadata-dir", fresh, "init", client.path / "root") == 0
    assert client.repo.requests == []
    assert (fresh / "root.json").read_bytes() == client.repo.first_root
    url = f"{client.url}/metadata/"
    assert run("--metadata-url", url, "--metadata-dir", fresh, "refresh") == 0
    assert run("--metadata-dir", fresh, "--metadata-url", url, "refresh") == 0
    base = ["--target-base-url", f"{client.url}/targets/", "--target-dir", client.path / "t"]
    where = ["--metadata-dir", fresh, "--metadata-url", url]
    assert run(*base, "--target-name", "file", *where, "download") == 0
    assert run("--target-name", "nothing", *where, *base, "download") == 1
    client.repo.served.clear()
    assert run("--metadata-url", url, "--metadata-dir", fresh, "refresh") == 1


def test_torn_or_lost_files_of_the_cache_heal(client):
    client.repo.rotate("root")
    client.repo.bump()
    assert client.refresh() == 0
    before = client.versions()
    cached = [client.metadata / f"{role}.json" for role in before]
    cached += list((client.metadata / "root_history").iterdir())
    for path in cached:
        for damage in (path.unlink, lambda path=path: path.write_bytes(b"{torn")):
            damage()
            assert client.refresh() == 0, path
            assert client.versions() == before
    (client.metadata / "root.json").unlink()
    (client.metadata / "root.json").write_bytes(b"")
    assert client.refresh() == 0
    assert client.versions() == before


@pytest.mark.parametrize("lost", [["timestamp"], ["snapshot"], ["timestamp", "snapshot"]])
def test_losing_a_file_of_the_cache_does_not_allow_a_replay(client, lost):
    old = dict(client.repo.served)
    client.repo.bump()
    assert client.refresh() == 0
    for role in lost:
        (client.metadata / f"{role}.json").unlink()
    client.repo.served.update(old)
    assert client.refresh() == 1
    kept = client.versions()
    assert all(kept.get(role, 9) >= 2 for role in ("timestamp", "snapshot", "targets"))


def test_a_cache_restored_from_a_backup_does_not_allow_a_replay(client):
    assert client.refresh() == 0
    backup = {path: path.read_bytes() for path in client.metadata.glob("[st]*.json")}
    old = dict(client.repo.served)
    client.repo.bump()
    assert client.refresh() == 0
    for path, data in backup.items():
        path.write_bytes(data)
    client.repo.served.clear()
    client.repo.served.update(old)
    assert client.refresh() == 1


def test_a_timestamp_that_goes_back_is_not_kept(client):
    """CVE-2025-2888: a client wrote the timestamp before it compared the snapshot's version."""
    repo = client.repo
    repo.bump()
    assert client.refresh() == 0
    kept = (client.metadata / "timestamp.json").read_bytes()
    repo.timestamp.version += 1
    repo.timestamp.snapshot_meta = MetaFile(1)
    repo.publish_timestamp()
    assert client.refresh() == 1
    assert (client.metadata / "timestamp.json").read_bytes() == kept
