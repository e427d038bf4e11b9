import json
from pathlib import Path

import pytest

from edgeagent.protocol.commands import UpdateRequest, parse_update_request
from edgeagent.protocol.messages import Incoming
from edgeagent.protocol.reports import ModelState
from edgeagent.protocol.topics import Topics
from ota.machine import State
from ota.vocabulary import WORDS, Phase, discovery, in_words

HAWKBIT = {"SCHEDULED", "RETRIEVED", "DOWNLOAD", "DOWNLOADED", "RUNNING", "FINISHED", "ERROR"}
EXECUTION = {"scheduled", "proceeding", "download", "downloaded", "closed"}
MENDER = {"pending", "downloading", "installing", "rebooting", "success", "failure"}
THINGSBOARD = {
    "QUEUED", "INITIATED", "DOWNLOADING", "DOWNLOADED", "VERIFIED", "UPDATING", "UPDATED", "FAILED"
}  # fmt: skip
AWS = {"QUEUED", "IN_PROGRESS", "SUCCEEDED", "FAILED"}


def test_each_state_of_the_machine_has_words():
    assert {state.value for state in State} <= {phase.value for phase in Phase}
    assert set(WORDS) == set(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_only_words_that_the_others_know(phase):
    words = in_words(phase)
    assert words.hawkbit in HAWKBIT
    assert words.hawkbit_execution in EXECUTION
    assert words.mender in MENDER
    assert words.thingsboard in THINGSBOARD
    assert words.aws in AWS
    assert (words.hawkbit_execution == "closed") == (words.hawkbit_finished != "none")


def test_what_a_device_refuses_is_rejected_and_a_cancel_is_no_failure():
    assert in_words(Phase.FAILED, "downgrade").aws == "REJECTED"
    assert in_words(Phase.FAILED, "cancelled").aws == "CANCELED"
    assert in_words(Phase.FAILED, "storage_full").aws == "FAILED"
    assert in_words(Phase.TRIAL, "cancelled").aws == "IN_PROGRESS"


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.COMMITTED])
def test_model_state_agrees_with_the_words_for_home_assistant(phase):
    state = ModelState("m", "1.0.0", "1.1.0", phase=phase.value, progress=0.5)
    said = json.loads(state.encode())
    assert said["in_progress"] is in_words(phase).is_in_progress
    assert (said["update_percentage"] is None) is (not said["in_progress"])


def test_what_discovery_tells_home_assistant_to_send_is_a_request_that_we_take():
    topics = Topics("n1")
    entity = discovery("n1", topics.state.removesuffix("/state"))
    assert entity["state_topic"] == topics.model_state
    assert entity["command_topic"] == topics.update_request
    assert entity["availability_topic"] == topics.state
    payload = entity["payload_install"].encode()
    assert parse_update_request(Incoming("t", payload, len(payload))) == UpdateRequest("install")


def test_the_page_has_the_table():
    page = (Path(__file__).parents[2] / "docs" / "updates.md").read_text()
    for phase, words in WORDS.items():
        row = (
            f"| `{phase.value}` | {'yes' if words.is_in_progress else 'no'} | {words.hawkbit} | "
            f"{words.mender} | {words.thingsboard} | {words.aws} |"
        )
        assert row in page
