import json
import stat

import pytest
from tuf.api.metadata import Targets

from ota.errors import ConfigError, PayloadMismatch
from ota.fleet.repository import Repository
from ota.storage import verify_directory
from ota.wire import MAX_NOTICE_BYTES
from tests.ota.harness import make_fleet
from tests.ota.models import Shape, flip, random_shards, write_model

SHARDS = random_shards(1, Shape())


@pytest.fixture
def repo(tmp_path):
    return Repository.create(tmp_path / "repo", "tests", None)


@pytest.fixture
def old(tmp_path):
    return write_model(tmp_path / "old", SHARDS, version="1.0.0", counter=1)


@pytest.fixture
def new(tmp_path):
    return write_model(tmp_path / "new", flip(SHARDS, 0.01, 2), version="1.1.0", counter=2)


def test_keys_are_only_for_their_owner(repo):
    keys = repo.path / "keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    for role in ("root", "targets", "snapshot", "timestamp"):
        assert stat.S_IMODE((keys / f"{role}.pem").stat().st_mode) == 0o600


def test_a_key_that_others_can_read_is_refused(repo, old):
    (repo.path / "keys" / "targets.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        repo.add_release(old)


def test_keys_and_repositories_are_never_overwritten(repo):
    with pytest.raises(ConfigError, match="already"):
        Repository.create(repo.path, "tests", None)
    with pytest.raises(ConfigError, match="choose another --keys"):
        Repository.create(repo.path / "second", "tests", repo.path / "keys")


def test_a_name_must_fit_a_topic(tmp_path):
    with pytest.raises(ConfigError, match="got 'a/b'"):
        Repository.create(tmp_path / "repo", "a/b", None)


def test_without_a_repository_the_error_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="edgeota init"):
        Repository.open(tmp_path)


def test_a_release_must_be_what_it_says_and_newer(repo, old, new):
    repo.add_release(new)
    with pytest.raises(ConfigError, match="released already"):
        repo.add_release(new)
    with pytest.raises(ConfigError, match="counter above 2, got 1"):
        repo.add_release(old)
    (new / "config.json").write_text("{}")
    with pytest.raises(PayloadMismatch, match="config.json"):
        repo.add_release(new)


def test_a_delta_is_made_from_versions_or_from_directories(repo, old, new):
    repo.add_release(old)
    repo.add_release(new)
    by_version = repo.add_delta("1.0.0", "1.1.0")
    by_directory = repo.add_delta(str(old), str(new))
    assert by_version == by_directory
    assert by_version.n_bytes < by_version.full_bytes / 5
    back = repo.add_delta("1.1.0", "1.0.0")
    assert (back.from_version, back.to_version) == ("1.1.0", "1.0.0")


def test_a_delta_needs_two_released_models(repo, old, new):
    repo.add_release(old)
    with pytest.raises(ConfigError, match="expected a model directory or the version"):
        repo.add_delta("1.0.0", "9.9.9")
    with pytest.raises(ConfigError, match="release it first"):
        repo.add_delta("1.0.0", str(new))
    with pytest.raises(ConfigError, match="two models"):
        repo.add_delta("1.0.0", "1.0.0")


def test_a_version_can_be_made_again_from_its_full_image(repo, old):
    repo.add_release(old)
    targets = repo._files.load("targets", Targets).signed
    with repo._model_dir(targets, "1.0.0", None) as path:
        assert verify_directory(path).root == verify_directory(old).root


def test_status_shows_versions_expiry_and_what_is_not_published(repo, old):
    assert repo.status()["is_published"]
    repo.add_release(old)
    status = repo.status()
    assert not status["is_published"]
    assert status["models"]["edge-test"]["current"] == "1.0.0"
    assert status["roles"]["timestamp"]["version"] == 1
    assert 28 <= status["roles"]["timestamp"]["days_left"] <= 30
    assert repo.publish() == 2
    assert repo.status()["is_published"]


def test_the_notice_names_what_is_published_only(repo, old, new):
    repo.add_release(old)
    repo.publish()
    repo.add_release(new)
    notice = repo.notice()
    assert len(notice) <= MAX_NOTICE_BYTES
    assert json.loads(notice) == {"format": 1, "timestamp": 2, "models": {"edge-test": "1.0.0"}}


def test_every_publish_renews_what_expires_soon(repo):
    assert [repo.publish(), repo.publish()] == [2, 3]
    assert repo.status()["roles"]["snapshot"]["version"] == 3


def test_nothing_unfinished_is_left_behind(tmp_path):
    fleet = make_fleet(tmp_path)
    assert not list(fleet.repo.path.rglob(".*"))
