from datetime import timedelta

import pytest
from tuf.api.exceptions import ExpiredMetadataError

from ota.device.dir_source import DirSource
from ota.device.tuf_client import TufClient, _translated
from ota.errors import (
    Cancelled,
    ExpiredMetadata,
    RoleExpired,
    RootExpired,
    SnapshotExpired,
    TargetsExpired,
    TimestampExpired,
    TransportError,
    UntrustedMetadata,
)
from ota.storage import Disk
from ota.trust import channel_target, release_target
from tests.ota.fakes import MemorySource
from tests.ota.simulator import Simulator


@pytest.fixture
def objects(fleet):
    """The metadata of a repository, in memory."""
    return {
        f"metadata/{path.name}": path.read_bytes()
        for path in (fleet.repo.path / "metadata").iterdir()
    }


def client(source, path, fleet, root=None):
    return TufClient(source, Disk(), path, root or fleet.root_file.read_bytes())


def test_what_is_signed_is_answered_and_nothing_else(tmp_path, fleet):
    tuf = client(DirSource(fleet.repo.path), tmp_path / "tuf", fleet)
    tuf.refresh()
    assert tuf.target(channel_target("edge-test")).custom == {"version": "1.1.0"}
    assert tuf.target(release_target("edge-test", "1.1.0")).custom["counter"] == 2
    assert tuf.target("models/edge-test/9.9.9/release.json") is None


def test_a_refresh_asks_for_nothing_that_it_has(tmp_path, fleet, objects):
    source = MemorySource(objects)
    client(source, tmp_path / "tuf", fleet).refresh()
    assert [name for name, *_ in source.asked] == [
        "metadata/2.root.json",
        "metadata/timestamp.json",
        "metadata/2.snapshot.json",
        "metadata/2.targets.json",
    ]
    source.asked.clear()
    client(source, tmp_path / "tuf", fleet).refresh()
    assert [name for name, *_ in source.asked] == [
        "metadata/2.root.json",
        "metadata/timestamp.json",
    ]


def test_asking_before_a_refresh_is_a_bug(tmp_path, fleet):
    with pytest.raises(RuntimeError, match="before refresh"):
        client(MemorySource({}), tmp_path / "tuf", fleet).target("x")


def test_a_source_without_metadata_is_a_transport_error(tmp_path, fleet):
    with pytest.raises(TransportError):
        client(MemorySource({}), tmp_path / "tuf", fleet).refresh()


@pytest.mark.parametrize("error", [Cancelled("stop"), TransportError("away")])
def test_what_stops_the_source_comes_out_as_it_is(tmp_path, fleet, error):
    class Broken(MemorySource):
        def fetch(self, name, offset, length):
            raise error

    with pytest.raises(type(error)) as caught:
        client(Broken({}), tmp_path / "tuf", fleet).refresh()
    assert caught.value is error


def test_a_source_that_sends_nothing_does_not_hang(tmp_path, fleet, objects):
    source = MemorySource(objects)
    source.lies["metadata/timestamp.json", 0] = [b""]
    with pytest.raises(TransportError, match="sent nothing at 0"):
        client(source, tmp_path / "tuf", fleet).refresh()


def test_endless_metadata_is_cut_off(tmp_path, fleet, objects):
    source = MemorySource(objects | {"metadata/timestamp.json": b" " * (1 << 20)})
    with pytest.raises(TransportError, match="too large|larger|maximum|length"):
        client(source, tmp_path / "tuf", fleet).refresh()
    assert len(source.asked) < 5


@pytest.mark.parametrize("root", [b"", b"{}", b"not json"])
def test_a_bootstrap_root_that_is_none_is_untrusted(tmp_path, fleet, objects, root):
    with pytest.raises(UntrustedMetadata):
        client(MemorySource(objects), tmp_path / "tuf", fleet, root or b"x").refresh()


def test_one_flipped_byte_in_any_role_is_untrusted(tmp_path, fleet, objects):
    for name in ("metadata/timestamp.json", "metadata/2.snapshot.json", "metadata/2.targets.json"):
        data = objects[name].replace(b'"expires":"20', b'"expires":"21', 1)
        assert data != objects[name]
        source = MemorySource(objects | {name: data})
        with pytest.raises(UntrustedMetadata):
            client(source, tmp_path / name.replace("/", "-"), fleet).refresh()


def long_ago(signed):
    signed.expires -= timedelta(days=4000)


@pytest.mark.parametrize(
    ("role", "kind", "advice"),
    [
        ("root", RootExpired, "keys-rotate REPO root"),
        ("timestamp", TimestampExpired, "edgeota publish"),
        ("snapshot", SnapshotExpired, "edgeota publish"),
        ("targets", TargetsExpired, "renew REPO targets"),
    ],
)
def test_what_expired_is_named_with_who_renews_it(tmp_path, role, kind, advice):
    repo = Simulator()
    long_ago(getattr(repo, role))
    repo.root.version += 1
    repo.publish_root()
    repo.bump()
    tuf = TufClient(MemorySource(repo.served), Disk(), tmp_path / "tuf", repo.first_root)
    with pytest.raises(ExpiredMetadata, match=f"^{role}: .* is expired .*{advice}") as caught:
        tuf.refresh()
    assert type(caught.value) is kind


def test_a_model_s_role_that_expired_is_named_whatever_it_is_called(tmp_path):
    repo = Simulator()
    repo.delegate("targets", "root is expired", ["a/*"])
    long_ago(repo.delegated["root is expired"])
    repo.bump()
    tuf = TufClient(MemorySource(repo.served), Disk(), tmp_path / "tuf", repo.first_root)
    tuf.refresh()
    with pytest.raises(RoleExpired, match="^root is expired: .*renew REPO MODEL"):
        tuf.target("a/x")


def test_an_expiry_in_other_words_is_still_one():
    err = _translated(ExpiredMetadataError("in words of a later python-tuf"))
    assert (type(err), err.code) == (ExpiredMetadata, "metadata_expired")
    assert "edgeota expiry" in str(err)


def test_a_root_whose_key_ids_are_no_text_is_untrusted(tmp_path):
    """The root's own keys may sign it; nobody's key can answer for the role."""
    repo = Simulator()
    repo.root.roles["snapshot"].keyids = [2147483648, True]
    repo.root.version += 1
    repo.publish_root()
    tuf = TufClient(MemorySource(repo.served), Disk(), tmp_path / "tuf", repo.first_root)
    with pytest.raises(UntrustedMetadata, match="snapshot was signed by 0/1 keys"):
        tuf.refresh()


def test_a_delegated_role_whose_name_is_a_number_is_untrusted(tmp_path):
    repo = Simulator()
    repo.delegate("targets", "role", ["a/*"])
    role = repo.targets.delegations.roles.pop("role")
    role.name = 7
    repo.targets.delegations.roles[7] = role
    repo.bump()
    tuf = TufClient(MemorySource(repo.served), Disk(), tmp_path / "tuf", repo.first_root)
    tuf.refresh()
    with pytest.raises(UntrustedMetadata, match="expected TUF's types, got TypeError"):
        tuf.target("a/x")


def test_it_works_without_the_cryptography_package(tmp_path, fleet):
    """A board for which there is no wheel: securesystemslib then verifies in plain Python."""
    import subprocess
    import sys

    from tests.ota.harness import REPO_ROOT

    script = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from pathlib import Path\n"
        "from ota.device.dir_source import DirSource\n"
        "from ota.device.tuf_client import TufClient\n"
        "from ota.storage import Disk\n"
        "repo, tuf, root = map(Path, sys.argv[1:])\n"
        "client = TufClient(DirSource(repo), Disk(), tuf, root.read_bytes())\n"
        "client.refresh()\n"
        "print(client.target('models/edge-test/stable.json').custom['version'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script]
        + [str(p) for p in (fleet.repo.path, tmp_path / "tuf", fleet.root_file)],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1.1.0\n", done.stderr
