"""Sums of deltas, from the repository's side."""

import pytest

from ota.container import Container
from ota.errors import ConfigError, DeltaFormatError
from ota.fleet.chains import find_chain
from ota.fleet.repository import Repository
from ota.storage import Directory, Disk, verify_directory
from tests.ota.models import Shape, flip, random_shards, write_model

SHARDS = random_shards(1, Shape(layers=1))


@pytest.mark.parametrize(
    ("deltas", "chain"),
    [
        (["ab"], ["ab"]),
        (["ab", "bc", "cd", "bd"], ["ab", "bd"]),
        (["ab", "ba", "bc", "cd"], ["ab", "bc", "cd"]),
    ],
)
def test_the_shortest_chain_is_found(deltas, chain):
    assert find_chain(map(tuple, deltas), "a", chain[-1][1]) == [tuple(c) for c in chain]


@pytest.mark.parametrize(("start", "end"), [("a", "d"), ("b", "a"), ("a", "a"), ("x", "a")])
def test_where_no_deltas_lead_is_an_error(start, end):
    with pytest.raises(ConfigError, match="without --compose"):
        find_chain([("a", "b"), ("b", "c")], start, end)


@pytest.fixture
def repo(tmp_path):
    repo = Repository.create(tmp_path / "repo", "tests", None)
    shards = SHARDS
    for k in range(3):
        repo.add_release(write_model(tmp_path / f"m{k}", shards, version=f"1.{k}.0", counter=k + 1))
        shards = flip(shards, 0.01, k)
    return repo


def test_a_sum_makes_the_newest_model(repo, tmp_path):
    repo.add_delta("1.0.0", "1.1.0", way="reversible")
    repo.add_delta("1.1.0", "1.2.0", way="reversible")
    added = repo.add_delta("1.0.0", "1.2.0", way="compose")
    old = verify_directory(tmp_path / "m0")
    with Disk().open(repo.path / "targets" / added.target) as blob, Directory(tmp_path / "m0") as m:
        container = Container(blob, old)
        assert container.release == verify_directory(tmp_path / "m2")
        for name, pieces in container.make(m):
            assert b"".join(pieces) == (tmp_path / "m2" / name).read_bytes()


def test_deltas_that_look_at_the_base_do_not_add_up(repo):
    repo.add_delta("1.0.0", "1.1.0")
    repo.add_delta("1.1.0", "1.2.0")
    with pytest.raises(DeltaFormatError, match="--reversible"):
        repo.add_delta("1.0.0", "1.2.0", way="compose")
