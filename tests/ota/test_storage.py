import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ota.errors import (
    FileTooLarge,
    PayloadMismatch,
    QuotaFull,
    ReleaseFormatError,
    StorageDenied,
    StorageError,
    StorageFull,
)
from ota.storage import Directory, Disk, typed_errors, verify_directory
from tests.ota.models import Shape, random_shards, write_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def disk():
    return Disk()


def test_a_file_is_replaced_as_a_whole(disk, tmp_path):
    path = tmp_path / "file"
    disk.replace(path, b"old")
    disk.replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_linked_file_shares_its_bytes(disk, tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    disk.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").stat().st_ino == (tmp_path / "b").stat().st_ino


def test_where_links_are_refused_a_file_is_copied(disk, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_bytes(b"x")
    disk.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x"
    assert (tmp_path / "a").stat().st_ino != (tmp_path / "b").stat().st_ino


def test_an_open_file_is_written_and_read_anywhere(disk, tmp_path):
    with disk.open(tmp_path / "f") as file:
        file.resize(10)
        file.write_at(4, b"abc")
        file.sync()
        assert file.read_at(0, 99) == b"\0\0\0\0abc\0\0\0"


def test_removing_what_is_not_there_is_fine(disk, tmp_path):
    disk.remove(tmp_path / "nothing")
    disk.make_directory(tmp_path / "a" / "b")
    disk.remove(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_tree_is_synced_and_renamed(disk, tmp_path):
    disk.make_directory(tmp_path / "a")
    disk.write(tmp_path / "a" / "f", [b"1", b"2"])
    disk.sync_tree(tmp_path / "a")
    disk.rename(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "f").read_bytes() == b"12"
    assert disk.free_bytes(tmp_path) > 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_is_an_error_of_its_own(code):
    with pytest.raises(StorageFull), typed_errors(Path("x")):
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EIO, "check the disk"),
        (errno.ENOENT, "check the disk"),
        (errno.EROFS, "often mounted so"),
        (errno.EACCES, "must own its state"),
    ],
)
def test_what_else_the_disk_refuses_is_typed_too(code, advice):
    with pytest.raises(StorageError, match=advice) as caught, typed_errors(Path("x")):
        raise OSError(code, os.strerror(code))
    assert not isinstance(caught.value, StorageFull)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EDQUOT, QuotaFull),
        (errno.EFBIG, FileTooLarge),
        (errno.EACCES, StorageDenied),
        (errno.EPERM, StorageDenied),
    ],
)
def test_who_must_act_decides_the_kind(code, kind):
    with pytest.raises(kind), typed_errors(Path("x")):
        raise OSError(code, os.strerror(code))


def test_a_real_write_beyond_a_real_limit_is_a_full_disk(tmp_path):
    script = (
        "import signal\nfrom pathlib import Path\n"
        "from ota.errors import StorageFull\nfrom ota.storage import Disk\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: Disk().write(Path('f'), [bytes(1 << 16)] * 99)\n"
        "except StorageFull as err: print(err.code)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "file_too_large\n"


def test_a_model_directory_is_verified_whole(tmp_path):
    path = write_model(tmp_path / "m", random_shards(1, Shape()), version="1.0.0", counter=1)
    assert verify_directory(path).version == "1.0.0"
    (path / "extra").write_text("")
    with pytest.raises(PayloadMismatch, match="extra"):
        verify_directory(path)
    (path / "extra").unlink()
    data = (path / "config.json").read_bytes()
    (path / "config.json").write_bytes(data[:-1] + b"]")
    with pytest.raises(PayloadMismatch, match=r"config.json: expected \d+ bytes with sha256"):
        verify_directory(path)
    (path / "config.json").unlink()
    with pytest.raises(PayloadMismatch, match=r"config.json"):
        verify_directory(path)
    (path / "release.json").unlink()
    with pytest.raises(ReleaseFormatError, match="expected a model directory"):
        verify_directory(path)


def test_a_directory_is_read_anywhere(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "b").write_bytes(b"b")
    with Directory(tmp_path) as files:
        assert files.read_at("a", 2, 3) == b"234"
        assert files.read_at("b", 0, 9) == b"b"
        assert files.read_at("a", 8, 9) == b"89"
        with pytest.raises(StorageError):
            files.read_at("c", 0, 1)
