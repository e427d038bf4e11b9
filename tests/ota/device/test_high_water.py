from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.device.high_water import MAX_LOG_BYTES, HighWater, Mark
from ota.errors import StorageFull, UntrustedMetadata
from ota.storage import Disk
from tests.ota.fakes import FailingDisk

WHEN = datetime(2027, 1, 1, tzinfo=UTC)
MARK = Mark({"root": 2, "timestamp": 9, "snapshot": 8, "targets": 7}, "k1", WHEN, {"tiny": 3})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ota" / "tuf.highwater"


def raised(path, *marks):
    record = HighWater(Disk(), path)
    for mark in marks:
        record.raise_to(mark)
    return HighWater(Disk(), path)


def test_what_was_raised_is_read_again(path):
    assert raised(path, MARK).mark == MARK
    assert HighWater(Disk(), path.with_name("other")).mark == Mark()


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_no_role_goes_back(path, role):
    record = raised(path, MARK)
    version = MARK.versions[role]
    record.check(role, version, "k1")
    record.check(role, version + 1, "k1")
    with pytest.raises(UntrustedMetadata, match=f"{role}: expected version {version} or newer"):
        record.check(role, version - 1, "k1")


def test_new_online_keys_start_their_versions_over_and_nothing_else(path):
    record = raised(path, MARK)
    record.check("timestamp", 1, "k2")
    with pytest.raises(UntrustedMetadata, match="root"):
        record.check("root", 1, "k2")
    record.raise_to(Mark({"root": 3, "timestamp": 1, "snapshot": 1, "targets": 7}, "k2"))
    mark = HighWater(Disk(), path).mark
    assert mark.versions == {"root": 3, "timestamp": 1, "snapshot": 1, "targets": 7}
    assert mark.counters == {"tiny": 3}


def test_a_counter_is_remembered_by_model_and_never_falls(path):
    record = raised(path, MARK)
    record.raise_counter("tiny", 2)
    record.raise_counter("other", 5)
    record = HighWater(Disk(), path)
    assert [record.counter(name) for name in ("tiny", "other", "third")] == [3, 5, -1]
    assert record.mark.versions == MARK.versions


def test_nothing_is_written_when_nothing_is_higher(path):
    record = raised(path, MARK)
    before = path.read_bytes()
    record.raise_to(MARK)
    record.raise_to(Mark({"timestamp": 3}, "k1"))
    assert path.read_bytes() == before


@given(st.data())
def test_a_record_torn_anywhere_keeps_the_lines_before(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("torn") / "record"
    raised(path, MARK)
    first = path.stat().st_size
    raised(path, Mark({"timestamp": 20}, "k1"))
    text = bytearray(path.read_bytes())
    cut = data.draw(st.integers(first, len(text)))
    path.write_bytes(bytes(text[:cut]) + data.draw(st.binary(max_size=40)))
    record = HighWater(Disk(), path)
    assert record.mark.versions["timestamp"] in (9, 20)
    record.raise_to(Mark({"timestamp": 30}, "k1"))
    assert HighWater(Disk(), path).mark.versions["timestamp"] == 30


def test_the_log_stays_small(path):
    record = HighWater(Disk(), path)
    for version in range(1, 700):
        record.raise_to(Mark({"timestamp": version}, "k1"))
    assert path.stat().st_size <= MAX_LOG_BYTES
    assert HighWater(Disk(), path).mark.versions == {"timestamp": 699}


def test_a_full_disk_is_said_and_nothing_is_forgotten(path):
    raised(path, MARK)
    record = HighWater(FailingDisk(0), path)
    with pytest.raises(StorageFull):
        record.raise_to(Mark({"timestamp": 10}, "k1"))
    assert HighWater(Disk(), path).mark == MARK


@given(st.binary(max_size=200))
def test_a_record_of_any_bytes_is_read(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "record"
    path.write_bytes(text)
    assert HighWater(Disk(), path).mark == Mark()
