import errno
import hashlib
import random

import pytest

from ota.device.download import MAX_BAD_CHUNKS, SYNC_BYTES, Download
from ota.device.mqtt_source import IN_FLIGHT_BYTES
from ota.errors import ObjectMissing, PayloadMismatch, StorageError, StorageFull, TransportError
from ota.storage import Calls, Disk
from ota.trust import Payload
from tests.ota.fakes import FailingDisk, MemorySource

CHUNK = 1024
DATA = random.Random(3).randbytes(10 * CHUNK + 100)
NAME = "targets/p.etd"
HASHES = b"".join(hashlib.sha256(DATA[k : k + CHUNK]).digest() for k in range(0, len(DATA), CHUNK))
PAYLOAD = Payload(
    "p.etd",
    len(DATA),
    hashlib.sha256(DATA).hexdigest(),
    None,
    "aa" * 32,
    CHUNK,
    hashlib.sha256(HASHES).hexdigest(),
    0,
)


@pytest.fixture
def source():
    return MemorySource({NAME: DATA, f"{NAME}.chunks": HASHES})


def download(source, path, disk=None, payload=PAYLOAD):
    return Download(source, disk or Disk(), payload, path)


def offsets_asked(source):
    return [offset for name, offset, _ in source.asked if name == NAME]


def test_a_payload_comes_whole_and_says_how_far_it_is(source, tmp_path):
    progress = []
    download(source, tmp_path / "p").run(progress.append)
    assert (tmp_path / "p").read_bytes() == DATA
    assert progress[0] == 0 and progress[-1] == 1 and progress == sorted(progress)


def test_what_is_there_is_not_fetched_again(source, tmp_path):
    have = bytearray(len(DATA))
    have[CHUNK : 3 * CHUNK] = DATA[CHUNK : 3 * CHUNK]
    have[5 * CHUNK] = 1  # torn
    (tmp_path / "p").write_bytes(have)
    download(source, tmp_path / "p").run()
    assert (tmp_path / "p").read_bytes() == DATA
    assert set(offsets_asked(source)) == set(range(0, len(DATA), CHUNK)) - {CHUNK, 2 * CHUNK}


def test_a_finished_payload_is_not_fetched_at_all(source, tmp_path):
    (tmp_path / "p").write_bytes(DATA)
    download(source, tmp_path / "p").run()
    assert offsets_asked(source) == []


def test_a_file_that_is_too_long_is_cut(source, tmp_path):
    (tmp_path / "p").write_bytes(DATA + b"more")
    download(source, tmp_path / "p").run()
    assert (tmp_path / "p").read_bytes() == DATA


def test_a_wrong_chunk_never_touches_the_disk_and_is_asked_for_again(source, tmp_path):
    source.lies[NAME, CHUNK] = [bytes(CHUNK), DATA[:CHUNK]]
    download(source, tmp_path / "p").run()
    assert (tmp_path / "p").read_bytes() == DATA
    assert offsets_asked(source).count(CHUNK) == 3


def test_a_source_that_keeps_lying_is_given_up(source, tmp_path):
    source.lies[NAME, CHUNK] = [b"x" * CHUNK] * 99
    with pytest.raises(PayloadMismatch, match=f"{MAX_BAD_CHUNKS} chunks differ"):
        download(source, tmp_path / "p").run()
    assert b"x" * CHUNK not in (tmp_path / "p").read_bytes()


def test_a_chunk_list_that_is_not_the_signed_one_is_refused(source, tmp_path):
    source.objects[f"{NAME}.chunks"] = bytes(len(HASHES))
    with pytest.raises(PayloadMismatch, match="chunk list"):
        download(source, tmp_path / "p").run()
    assert not (tmp_path / "p").exists()


def test_a_payload_of_one_chunk_needs_no_list(source, tmp_path):
    data = DATA[:100]
    digest = hashlib.sha256(data)
    payload = Payload(
        "one.etd",
        100,
        digest.hexdigest(),
        None,
        "aa" * 32,
        CHUNK,
        hashlib.sha256(digest.digest()).hexdigest(),
        0,
    )
    source.objects["targets/one.etd"] = data
    download(source, tmp_path / "p", payload=payload).run()
    assert (tmp_path / "p").read_bytes() == data
    assert [name for name, *_ in source.asked] == ["targets/one.etd"]


def test_what_came_before_the_source_went_away_is_kept(source, tmp_path):
    del source.objects[NAME]
    with pytest.raises(ObjectMissing):
        download(source, tmp_path / "p").run()
    source.objects[NAME] = DATA
    download(source, tmp_path / "p").run()
    assert (tmp_path / "p").read_bytes() == DATA


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_write_gives_a_typed_error_and_goes_on_later(
    source, tmp_path, error
):
    healthy = FailingDisk(10_000)
    download(source, tmp_path / "healthy", healthy).run()
    for fail_at in range(healthy.n_changes):
        path = tmp_path / f"p{fail_at}"
        with pytest.raises(StorageFull if error == errno.ENOSPC else StorageError):
            download(source, path, FailingDisk(fail_at, error)).run()
        download(source, path).run()
        assert path.read_bytes() == DATA


def test_only_what_is_in_the_file_counts_as_progress(source, tmp_path):
    """The list of chunks comes each time; it brings a payload that never comes no nearer."""
    whole = source.objects.pop(NAME)
    attempt = download(source, tmp_path / "p")
    with pytest.raises(ObjectMissing):
        attempt.run()
    assert attempt.fetched_bytes == len(HASHES) and attempt.kept_bytes == 0
    source.objects[NAME] = whole
    attempt = download(source, tmp_path / "p")
    attempt.run()
    assert attempt.kept_bytes == len(DATA)
    assert attempt.fetched_bytes == len(DATA) + len(HASHES)


class Forgetful(Calls):
    """Forgets at ``power_cut`` whatever was written since the last sync."""

    def __init__(self):
        self.unsynced = []
        self.most_bytes = 0

    def write(self, fd, data, offset):
        self.unsynced.append((offset, len(data)))
        self.most_bytes = max(self.most_bytes, sum(length for _, length in self.unsynced))
        return super().write(fd, data, offset)

    def sync(self, fd):
        self.unsynced.clear()

    def power_cut(self, path):
        with path.open("r+b") as file:
            for offset, length in self.unsynced:
                file.seek(offset)
                file.write(bytes(length))


def test_a_power_cut_costs_at_most_a_mebibyte(tmp_path, monkeypatch):
    """At any moment: what was not synced, and what was asked for over the network."""
    assert SYNC_BYTES + IN_FLIGHT_BYTES <= 1 << 20
    monkeypatch.setattr("ota.device.download.SYNC_BYTES", 4 * CHUNK)
    for last in range(1, 11):
        source = MemorySource({NAME: DATA, f"{NAME}.chunks": HASHES})
        calls, path = Forgetful(), tmp_path / f"p{last}"
        fetch = source.fetch

        def breaking(name, offset, length, *, fetch=fetch, last=last):
            if offset == last * CHUNK:
                raise TransportError("the power is gone")
            return fetch(name, offset, length)

        source.fetch = breaking
        with pytest.raises(TransportError):
            download(source, path, Disk(calls)).run()
        calls.power_cut(path)
        source.fetch = fetch
        source.asked.clear()
        download(source, path).run()
        again = [offset for offset in offsets_asked(source) if offset < last * CHUNK]
        assert len(again) * CHUNK <= calls.most_bytes <= 4 * CHUNK
        assert path.read_bytes() == DATA
