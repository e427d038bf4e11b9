import json

import pytest

from edgeagent.protocol.reports import (
    OFFLINE,
    ONLINE,
    EventLog,
    ModelState,
    update_refusal,
    update_response,
)


def test_state_is_one_word():
    assert json.loads(ONLINE) == {"state": "online"}
    assert json.loads(OFFLINE) == {"state": "offline"}


def test_events_are_numbered_without_gaps():
    log = EventLog()
    events = [json.loads(log.encode("x", {"a": 1}, 12.34567)) for _ in range(3)]
    assert [event["seq"] for event in events] == [0, 1, 2]
    assert events[0] == {"type": "x", "data": {"a": 1}, "seq": 0, "time_s": 12.346}


def test_the_model_is_an_update_entity_of_home_assistant():
    state = ModelState("edge-tiny", "1.0.0", "1.1.0", "reason " * 60, "fetching", 0.256)
    entity = json.loads(state.encode())
    assert set(entity) == {
        "installed_version",
        "latest_version",
        "title",
        "release_summary",
        "in_progress",
        "update_percentage",
        "phase",
        "code",
        "gated",
    }
    assert (entity["in_progress"], entity["update_percentage"]) == (True, 26)
    assert len(entity["release_summary"]) == 255


@pytest.mark.parametrize("phase", ["idle", "failed", "gated", "rolled_back"])
def test_nothing_is_in_progress_at_rest(phase):
    entity = json.loads(ModelState("t", "1", "1", phase=phase, progress=0.5).encode())
    assert (entity["in_progress"], entity["update_percentage"]) == (False, None)


def test_requests_for_updates_are_answered():
    assert json.loads(update_response({"action": "check"}, "t")) == {
        "status": "ok",
        "data": {"action": "check"},
        "transaction": "t",
    }
    refusal = json.loads(update_refusal("no", None))
    assert refusal == {"status": "error", "data": {}, "error": "no"}
