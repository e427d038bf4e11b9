import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeagent.update_history import MAX_ENTRIES, MAX_TEXT, REPEAT_S, History

DONE = {"version": "1.1.0", "from": "1.0.0"}


def path_of(state_dir):
    return state_dir / "ota" / "history.jsonl"


def test_what_happened_is_kept_over_restarts_in_order(tmp_path):
    History(tmp_path).add("update_committed", DONE, 10.4)
    again = History(tmp_path)
    again.add("rolled_back", {"version": "1.1.0", "reason": "x" * 9999}, 20.0)
    first, second = History(tmp_path).entries()
    assert first.pop("id") != second["id"]
    assert first == {"time_s": 10, "type": "update_committed", **DONE}
    assert (second["type"], len(second["reason"])) == ("rolled_back", MAX_TEXT)
    assert History(tmp_path).entries(1) == [second]


def test_only_ends_of_updates_are_kept(tmp_path):
    History(tmp_path).add("engine_ready", {}, 1.0)
    assert History(tmp_path).entries() == []
    assert not path_of(tmp_path).exists()


def test_a_failure_that_repeats_is_written_once_a_day(tmp_path):
    history = History(tmp_path)
    failure = {"code": "transport_failed", "reason": "away"}
    for hour in range(25):
        history.add("update_failed", failure, hour * 3600.0)
    assert [entry["time_s"] for entry in history.entries()] == [0, REPEAT_S]
    history.add("update_failed", failure | {"code": "storage_full"}, REPEAT_S + 1)
    assert len(history.entries()) == 3
    for _ in range(2):
        history.add("update_committed", DONE, REPEAT_S + 2)
    assert len(history.entries()) == 5


def test_it_is_bounded(tmp_path):
    history = History(tmp_path)
    for k in range(3 * MAX_ENTRIES):
        history.add("update_committed", {"version": str(k)}, float(k))
    assert len(path_of(tmp_path).read_bytes().splitlines()) <= 2 * MAX_ENTRIES
    entries = history.entries()
    assert len(entries) == MAX_ENTRIES
    assert entries[-1]["version"] == str(3 * MAX_ENTRIES - 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(max_size=80))
def test_whatever_is_in_the_file_the_next_entry_is_found(tmp_path, torn):
    path = path_of(tmp_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(torn)
    history = History(tmp_path)
    history.add("update_committed", DONE, 5.0)
    entry = history.entries()[-1]
    assert len(entry.pop("id")) == 16
    assert entry == {"time_s": 5, "type": "update_committed", **DONE}


def test_a_disk_that_takes_nothing_costs_the_line_only(tmp_path, caplog):
    (tmp_path / "ota").write_text("a file where the directory should be")
    History(tmp_path).add("update_committed", DONE, 5.0)
    assert "history.not_kept" in caplog.text
    assert History(tmp_path).entries() == []


@pytest.mark.parametrize("limit", [0, -1])
def test_no_entries_are_none(tmp_path, limit):
    History(tmp_path).add("update_committed", DONE, 5.0)
    assert json.loads(path_of(tmp_path).read_text())["type"] == "update_committed"
    assert History(tmp_path).entries(limit) == []
