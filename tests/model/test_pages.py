"""Huge pages are a hint: what is written and read must be the same bytes with them and without."""

import hashlib
import io
import mmap
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.model import files, pages


class Record(io.BytesIO):
    """Remembers where each write began and how long it was."""

    def __init__(self):
        super().__init__()
        self.writes = []

    def write(self, data):
        self.writes.append((self.tell(), len(data)))
        return super().write(data)


@given(st.lists(st.integers(0, 40), max_size=12))
def test_pieces_are_whole_and_the_bytes_are_those_that_came(lengths):
    pages_of = pages.HUGE_BYTES
    pages.HUGE_BYTES = 8
    try:
        rng, out = random.Random(len(lengths)), Record()
        parts = [rng.randbytes(n) for n in lengths]
        pieces = pages.WholePieces(out)
        for part in parts:
            pieces.write(part)
        pieces.close()
    finally:
        pages.HUGE_BYTES = pages_of
    assert out.getvalue() == b"".join(parts)
    assert all(at % 8 == 0 for at, _ in out.writes)
    assert all(n % 8 == 0 for _, n in out.writes[:-1])


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(random.Random(1).randbytes(2 * pages.HUGE_BYTES + 12345))
    return path


def test_fetching_changes_nothing(large):
    want = hashlib.sha256(large.read_bytes()).hexdigest()
    size = large.stat().st_size
    with large.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        pages.fetch_huge(file, 0, size)
        assert file.tell() == 0
        assert files._digest(file, size) == want


def test_a_file_that_was_cut_short_is_for_the_reader_to_find(large):
    size = large.stat().st_size
    with large.open("rb") as file:
        os.truncate(large, 5)
        pages.fetch_huge(file, 0, size)
        assert files._digest(file, size) == hashlib.sha256(large.read_bytes()).hexdigest()


@pytest.mark.parametrize("missing", [True, False])
def test_a_kernel_without_huge_pages_is_no_error(large, monkeypatch, missing):
    if missing:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    else:
        monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999, raising=False)
    with large.open("rb") as file:
        pages.fetch_huge(file, 0, large.stat().st_size)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            pages.want_huge(mapping, len(mapping))
            assert mapping[:] == large.read_bytes()
