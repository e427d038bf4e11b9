import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.device.journal import MAX_REFUSED, Journal, load_journal, save_journal
from ota.errors import StorageError
from ota.machine import State
from ota.storage import Disk


@pytest.mark.parametrize("state", State)
def test_a_journal_survives_the_disk(tmp_path, state):
    journal = Journal(state, "aa" * 32, 2, ["bb" * 32])
    save_journal(Disk(), tmp_path / "j", journal)
    assert load_journal(tmp_path / "j") == journal


def test_without_a_journal_nothing_is_going_on(tmp_path):
    assert load_journal(tmp_path / "j") == Journal()


def test_refused_payloads_are_bounded(tmp_path):
    save_journal(Disk(), tmp_path / "j", Journal(refused=[str(k) for k in range(99)]))
    assert len(load_journal(tmp_path / "j").refused) == MAX_REFUSED


def test_a_journal_that_cannot_be_read_is_a_disk_error(tmp_path):
    (tmp_path / "j").mkdir()
    with pytest.raises(StorageError):
        load_journal(tmp_path / "j")


@given(
    st.binary(max_size=60)
    | st.dictionaries(
        st.sampled_from(["state", "payload", "trials", "refused"]),
        st.none() | st.integers() | st.text(max_size=9) | st.lists(st.integers(), max_size=2),
    ).map(lambda fields: json.dumps(fields).encode())
)
def test_any_bytes_are_a_journal_or_none(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "journal"
    path.write_bytes(data)
    assert isinstance(load_journal(path).state, State)
