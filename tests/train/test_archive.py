"""Reading compressed files."""

from __future__ import annotations

import io
import tarfile

import zstandard

from edgeagent.train.archive import read_tar, read_text


def test_text_is_decompressed_without_its_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress("\ufeffh\u00e9".encode()))
    assert read_text(path) == "h\u00e9"


def test_the_files_of_an_archive_are_returned_by_name(tmp_path):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        info = tarfile.TarInfo("x/y.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"hi"))
    path = tmp_path / "a.tar.zst"
    path.write_bytes(zstandard.compress(raw.getvalue()))
    assert read_tar(path) == {"x/y.txt": b"hi"}
