"""The patch of an update in place: both ways, and again."""

import os

import pytest

from ota.device.patch import apply_patch, make_patch, read_patch
from ota.errors import PatchDamaged
from ota.storage import Disk, read_release, verify_directory
from tests.ota.models import Shape, flip, random_shards, write_model, write_release


@pytest.fixture
def pair(tmp_path):
    """An old model, a new one with another file more and one less, and the patch between them."""
    shards = random_shards(1, Shape())
    old = write_model(tmp_path / "old", shards, version="1.0.0", counter=1)
    new = write_model(tmp_path / "new", flip(shards, 0.01, 2), version="1.1.0", counter=2)
    (new / "added.json").write_text("{}")
    (new / "tokenizer.json").rename(new / "vocabulary.json")
    write_release(new, version="1.1.0", counter=2)
    patch = tmp_path / "patch"
    patch.mkdir()
    releases = read_release(old), read_release(new)
    have = set(releases[0].files.values())
    made = [
        (name, [(new / name).read_bytes()])
        for name, entry in sorted(releases[1].files.items())
        if entry not in have
    ]
    make_patch(Disk(), patch, old, releases, made, lambda: releases[1])
    return old, new, patch


def image(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_patch_turns_the_old_model_into_the_new_one_and_back(pair):
    old, new, patch = pair
    before, after = image(old), image(new)
    for _ in range(2):
        for forward, expected in ((True, after), (True, after), (False, before), (False, before)):
            apply_patch(Disk(), patch, old, forward=forward)
            assert image(old) == expected
            verify_directory(old)


def test_a_patch_is_small_where_little_changes(pair):
    _, new, patch = pair
    assert len(read_patch(patch).patched) == 3  # two layers and config.json
    sizes = sum((new / name).stat().st_size for name in read_patch(patch).patched)
    assert (patch / "patch.log").stat().st_size < 2.5 * sizes


def test_a_file_with_a_second_name_is_replaced_and_not_written_over(pair, tmp_path):
    old, new, _ = pair
    shard = sorted(old.glob("*.safetensors"))[-1]
    os.link(shard, tmp_path / "other")
    kept = (tmp_path / "other").read_bytes()
    patch = tmp_path / "second"
    patch.mkdir()
    releases = read_release(old), read_release(new)
    made = [(shard.name, [(new / shard.name).read_bytes()])]
    make_patch(Disk(), patch, old, releases, made, lambda: releases[1])
    assert read_patch(patch).patched == ()
    assert shard.name in read_patch(patch).whole
    apply_patch(Disk(), patch, old, forward=True)
    assert shard.read_bytes() == (new / shard.name).read_bytes()
    assert (tmp_path / "other").read_bytes() == kept


@pytest.mark.parametrize("name", ["patch.log", "patch.json"])
def test_a_damaged_patch_changes_nothing(pair, name):
    old, _, patch = pair
    before = image(old)
    data = bytearray((patch / name).read_bytes())
    for at in range(0, len(data), max(1, len(data) // 40)):
        torn = bytearray(data)
        torn[at] ^= 0x11
        (patch / name).write_bytes(torn)
        with pytest.raises(PatchDamaged):
            apply_patch(Disk(), patch, old, forward=True)
        assert image(old) == before
    for n_bytes in (0, 1, len(data) - 1):
        (patch / name).write_bytes(data[:n_bytes])
        with pytest.raises(PatchDamaged):
            apply_patch(Disk(), patch, old, forward=True)
    assert image(old) == before
