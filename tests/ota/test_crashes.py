"""Every strategy, cut off at every call; the long run is ``make crashes``."""

import pytest

from ota.storage import Disk
from tests.ota.crashes import SCENES, run, slot_scene
from tests.ota.crashfs import Image, Recorder, Renamed, Resized, Written, sectors, states

STATES = 120  # a sample of the states of ``make crashes``: each cut at least in its plainest form


@pytest.mark.parametrize("strategy", sorted(SCENES))
def test_every_sampled_state_is_whole_and_completes(tmp_path, strategy):
    scene = SCENES[strategy](tmp_path / "scene")
    stride = max(1, len(scene.recorder.ops) // STATES)
    n_states, n_cuts = run(scene, 2, STATES, tmp_path, stride=stride)
    assert n_states >= STATES // 2
    assert n_cuts >= STATES // 4


def test_an_unsynced_rename_may_come_before_the_data(tmp_path):
    recorder = Recorder(tmp_path)
    fd = recorder.open(tmp_path / "a")
    recorder.write(fd, memoryview(b"x" * 1024), 0)
    recorder.close(fd)
    recorder.rename(tmp_path / "a", tmp_path / "b")
    contents = set()
    for _, image in states(recorder, 200, seed=1):
        names = dict(image.walk(recorder.directories))
        if "b" in names:
            contents.add(bytes(image.contents.get(names["b"], b"")))
    assert b"" in contents  # the name without the data
    assert b"x" * 1024 in contents
    assert b"x" * 512 + bytes(512) in contents  # torn
    assert bytes(512) + b"x" * 512 in contents


def test_a_replaced_file_is_the_old_one_or_the_new_one(tmp_path):
    (tmp_path / "f").write_bytes(b"old")
    recorder = Recorder(tmp_path)
    Disk(recorder).replace(tmp_path / "f", b"n" * 2000)
    seen = set()
    for _, image in states(recorder, 500, seed=1):
        names = dict(image.walk(recorder.directories))
        seen.add(bytes(image.contents.get(names["f"], b"")))
    assert seen == {b"old", b"n" * 2000}


def test_a_replacement_without_a_sync_is_found_out(tmp_path):
    """The simulator tells a careless disk from a careful one."""
    (tmp_path / "f").write_bytes(b"old")
    recorder = Recorder(tmp_path)
    disk = Disk(recorder)
    disk.write(tmp_path / "new", [b"n" * 2000])
    disk.rename(tmp_path / "new", tmp_path / "f")
    seen = set()
    for _, image in states(recorder, 500, seed=1):
        names = dict(image.walk(recorder.directories))
        seen.add(bytes(image.contents.get(names["f"], b"")))
    assert len(seen) > 2


def test_a_slot_that_is_not_synced_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Disk, "sync_tree", lambda self, path: None)
    scene = slot_scene(tmp_path / "scene")
    with pytest.raises(AssertionError):
        run(scene, 6, 2000, tmp_path)


def test_sectors_follow_the_disk_and_not_the_write():
    assert sectors(Written(1, 500, bytes(20))) == [(0, 12), (12, 20)]
    assert sectors(Written(1, 0, bytes(1024))) == [(0, 512), (512, 1024)]


def test_an_image_applies_calls_in_order():
    image = Image()
    image.apply(Renamed(((0, "a", 1),)))
    image.apply(Written(1, 2, b"xy"))
    image.apply(Resized(1, 3))
    image.apply(Renamed(((0, "a", None), (0, "b", 1))))
    assert list(image.walk(set())) == [("b", 1)]
    assert image.contents[1] == b"\0\0x"
