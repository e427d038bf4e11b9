"""A site's copy of a repository: whole at any moment, verified, and fetched once."""

import json
import shutil
import subprocess
import sys

import pytest

from ota.device.dir_source import DirSource
from ota.device.store import Store
from ota.device.updater import Board, Updater, Verdict
from ota.errors import (
    ConfigError,
    PayloadMismatch,
    StorageError,
    TransportError,
    UntrustedMetadata,
)
from ota.fleet.responder import Responder
from ota.mqtt import Broker
from ota.site.mirror import Mirror
from ota.storage import Disk, verify_directory
from tests.brokers import Mosquitto
from tests.ota.fakes import FailingDisk, MemorySource, ScriptedAgent
from tests.ota.harness import REPO_ROOT, Device, make_fleet
from tests.ota.models import Shape

BIG = Shape(2, 32 * 1200)
"""Payloads of several chunks."""


def objects_of(path):
    """Return everything that a repository serves."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for kind in ("metadata", "targets")
        for file in (path / kind).rglob("*")
        if file.is_file()
    }


class Site:
    """A mirror, and devices that know nothing else."""

    def __init__(self, path, fleet):
        self.path, self.fleet = path / "mirror", fleet
        self.origin = MemorySource(objects_of(fleet.repo.path))

    def sync(self, disk=None):
        self.origin.asked.clear()
        root = self.fleet.root_file.read_bytes()
        return Mirror(self.origin, self.path, self.fleet.repo.name, root, disk).sync()

    def asked(self):
        return [name for name, offset, _ in self.origin.asked if offset == 0]

    def published(self):
        """Take in what the origin has published since."""
        self.origin.objects = objects_of(self.fleet.repo.path)

    def device(self, path):
        """Run a worker on a new device; returns the version that it runs then."""
        store, agent = Store(path, self.fleet.old), ScriptedAgent(Verdict(True))
        root = self.fleet.root_file.read_bytes()
        board = Board("test-board", "0.1.0")
        error = Updater(path, store, DirSource(self.path), Disk(), root, board, agent).run()
        assert error is None, error
        return verify_directory(store.active()).version


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, make_fleet(tmp_path / "fleet"))


def test_a_mirror_serves_what_the_origin_does_and_asks_for_each_object_once(site, tmp_path):
    done = site.sync()
    assert done.models == {"edge-test": "1.1.0"}
    mirrored = objects_of(site.path)
    current = {name for name in mirrored if name.startswith("metadata/")}
    assert current == {
        "metadata/1.root.json",
        "metadata/2.snapshot.json",
        "metadata/2.targets.json",
        "metadata/timestamp.json",
    }
    assert all(site.origin.objects[name] == data for name, data in mirrored.items())
    payloads = {name for name in site.origin.objects if name.startswith("targets/")}
    assert payloads <= set(mirrored)
    assert len(site.asked()) == len(set(site.asked()))
    assert done.n_fetched == len(payloads)
    assert done.fetched_bytes == sum(len(site.origin.objects[name]) for name in payloads)
    for number in range(3):
        assert site.device(tmp_path / f"device-{number}") == "1.1.0"
    site.sync()
    assert site.asked() == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_payloads_of_many_chunks_come_with_their_lists(tmp_path):
    site = Site(tmp_path, make_fleet(tmp_path / "fleet", 0.3, BIG))
    lists = [name for name in site.origin.objects if name.endswith(".etd.chunks")]
    assert lists
    site.sync()
    assert all((site.path / name).read_bytes() == site.origin.objects[name] for name in lists)
    assert site.device(tmp_path / "device") == "1.1.0"


def test_a_model_with_keys_of_its_own_is_mirrored_with_its_role(site, tmp_path):
    site.sync()
    site.fleet.repo.delegate("edge-test")
    site.published()
    done = site.sync()
    assert done.n_fetched == 0
    assert list((site.path / "metadata").glob("*.edge-test.json"))
    assert site.device(tmp_path / "device") == "1.1.0"


def test_keys_that_are_rotated_are_followed(site, tmp_path):
    site.sync()
    site.fleet.repo.rotate("timestamp")
    site.published()
    site.sync()
    assert (site.path / "metadata" / "2.root.json").exists()
    assert site.device(tmp_path / "device") == "1.1.0"


def test_cut_off_at_any_request_nothing_is_served_and_the_next_run_completes(site, tmp_path):
    site.sync()
    n_requests, fetch = len(site.origin.asked), site.origin.fetch
    for number in range(n_requests):
        shutil.rmtree(site.path)

        def breaks(name, offset, length, number=number):
            if len(site.origin.asked) == number:
                raise TransportError("the connection was reset")
            return fetch(name, offset, length)

        site.origin.fetch = breaks
        with pytest.raises(TransportError):
            site.sync()
        assert not (site.path / "metadata" / "timestamp.json").exists()
        site.origin.fetch = fetch
        site.sync()
        assert site.device(tmp_path / f"device-{number}") == "1.1.0"


def test_a_disk_that_fails_at_any_change_leaves_a_state_that_a_device_can_use(site, tmp_path):
    site.sync()
    site.fleet.repo.delegate("edge-test")
    site.published()
    before = tmp_path / "before"
    shutil.copytree(site.path, before)
    for number in range(100):
        shutil.rmtree(site.path)
        shutil.copytree(before, site.path, symlinks=True)
        try:
            site.sync(FailingDisk(number))
        except StorageError:
            assert site.device(tmp_path / f"device-{number}") == "1.1.0"
        else:
            break
    assert 5 < number < 99


def test_what_the_origin_did_not_sign_is_not_served(site):
    [delta] = [name for name in site.origin.objects if "/deltas/" in name]
    site.origin.objects[delta] = bytes(len(site.origin.objects[delta]))
    with pytest.raises(PayloadMismatch):
        site.sync()
    assert not (site.path / delta).exists()
    assert not (site.path / "metadata").exists()
    site.published()
    small = next(name for name in site.origin.objects if name.endswith("stable.json"))
    site.origin.objects[small] = b"{}"
    with pytest.raises(PayloadMismatch, match="the origin sends other bytes"):
        site.sync()
    site.published()
    site.origin.objects["metadata/timestamp.json"] = b"{}"
    with pytest.raises(UntrustedMetadata):
        site.sync()


def test_a_file_that_was_cut_on_the_medium_is_fetched_again(site):
    site.sync()
    for name in ("stable.json", "full.etd"):
        path = next(site.path.rglob(name))
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert site.sync().n_fetched == 1
        assert path.read_bytes() == whole


def test_a_repository_is_no_place_for_a_mirror_and_a_name_must_fit_a_topic(site):
    root = site.fleet.root_file.read_bytes()
    with pytest.raises(ConfigError, match="expected a mirror, got a repository"):
        Mirror(site.origin, site.fleet.repo.path, "tests", root)
    with pytest.raises(ConfigError, match="repository name"):
        Mirror(site.origin, site.path, "a/b", root)


def edgeota(*words, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "ota.fleet.cli", *map(str, words), "--json"],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.system
def test_a_site_with_a_broker_of_its_own_updates_with_the_origin_gone(tmp_path, mosquitto):
    fleet = make_fleet(tmp_path / "fleet", 0.3, BIG)
    copy = tmp_path / "copy"
    words = ["mirror", copy, "--name", "tests", "--root-file", fleet.root_file]
    with Mosquitto() as far, Mosquitto() as near:
        origin = Responder(Broker(far.host, far.port), "tests", fleet.repo.path)
        origin.open()
        words += ["--from-mqtt", f"{far.host}:{far.port}", "--mqtt", f"{near.host}:{near.port}"]
        assert edgeota(*words)["models"] == {"edge-test": "1.1.0"}
        origin.close()
        far.stop()
        server = Responder(Broker(near.host, near.port), "tests", copy)
        server.open()
        for number in range(2):
            device = Device(
                tmp_path / f"state-{number}", fleet, mqtt={"host": near.host, "port": near.port}
            )
            assert device.update()[-1]["event"] == "committed"
        server.close()


def test_a_mirror_from_a_medium_is_shown_like_a_repository(tmp_path, fleet):
    copy = tmp_path / "copy"
    words = ["--name", "tests", "--root-file", fleet.root_file, "--from-dir", fleet.repo.path]
    assert edgeota("mirror", copy, *words)["n_fetched"] > 0
    assert edgeota("status", copy)["models"]["edge-test"]["current"] == "1.1.0"
    words[3] = tmp_path / "none"
    error = edgeota("mirror", copy, *words, code=78)["error"]
    assert error["code"] == "bad_config"
    assert error["message"].endswith("give the origin's 1.root.json")
