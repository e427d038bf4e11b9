"""Our states in the words of five other update systems.  Pure.

``phase`` of ``model/state`` is the source; each function gives the nearest word of the other side.
Where theirs are coarser, several of our phases share a word; none of ours has no word.

* Home Assistant, MQTT update entity: ``in_progress`` and ``update_percentage``
  (https://www.home-assistant.io/integrations/update.mqtt/)
* hawkBit, action status and DDI ``execution`` / ``result.finished``
  (https://eclipse.dev/hawkbit/apis/ddi_api/)
* Mender, deployment status of a device
  (https://docs.mender.io/api/#device-api-deployments)
* ThingsBoard, ``fw_state`` (https://thingsboard.io/docs/user-guide/ota-updates/)
* AWS IoT Jobs, status of a job execution
  (https://docs.aws.amazon.com/iot/latest/developerguide/iot-jobs-lifecycle.html)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Phase(Enum):
    """What ``model/state`` says: the states of ``ota.machine``, and the ends."""

    IDLE = "idle"
    CHECKING = "checking"
    GATED = "gated"
    FETCHING = "fetching"
    STAGING = "staging"
    TRIAL = "trial"
    ROLLING_BACK = "rolling_back"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Words:
    """One phase, elsewhere."""

    is_in_progress: bool
    """Home Assistant's ``in_progress``."""
    hawkbit: str
    hawkbit_execution: str
    hawkbit_finished: str
    mender: str
    thingsboard: str
    aws: str


WORDS: dict[Phase, Words] = {
    Phase.IDLE: Words(False, "SCHEDULED", "scheduled", "none", "pending", "QUEUED", "QUEUED"),
    Phase.CHECKING: Words(
        True, "RETRIEVED", "proceeding", "none", "pending", "INITIATED", "IN_PROGRESS"
    ),
    Phase.GATED: Words(False, "SCHEDULED", "scheduled", "none", "pending", "QUEUED", "IN_PROGRESS"),
    Phase.FETCHING: Words(
        True, "DOWNLOAD", "download", "none", "downloading", "DOWNLOADING", "IN_PROGRESS"
    ),
    Phase.STAGING: Words(
        True, "DOWNLOADED", "downloaded", "none", "installing", "DOWNLOADED", "IN_PROGRESS"
    ),
    Phase.TRIAL: Words(
        True, "RUNNING", "proceeding", "none", "rebooting", "UPDATING", "IN_PROGRESS"
    ),
    Phase.ROLLING_BACK: Words(
        True, "RUNNING", "proceeding", "none", "installing", "UPDATING", "IN_PROGRESS"
    ),
    Phase.COMMITTED: Words(
        False, "FINISHED", "closed", "success", "success", "UPDATED", "SUCCEEDED"
    ),
    Phase.ROLLED_BACK: Words(False, "ERROR", "closed", "failure", "failure", "FAILED", "FAILED"),
    Phase.FAILED: Words(False, "ERROR", "closed", "failure", "failure", "FAILED", "FAILED"),
}

REFUSALS = frozenset({"wrong_hardware", "agent_too_old", "downgrade", "release_refused"})
"""Codes that AWS Jobs calls REJECTED and hawkBit ``rejected``: nothing was begun."""


def in_words(phase: Phase, code: str = "") -> Words:
    """Return the words for ``phase``; ``code`` is the reason, if it failed."""
    words = WORDS[phase]
    if phase is not Phase.FAILED:
        return words
    if code in REFUSALS:
        return Words(False, "ERROR", "rejected", "failure", "failure", "FAILED", "REJECTED")
    if code == "cancelled":
        return Words(False, "CANCELED", "canceled", "none", "aborted", "FAILED", "CANCELED")
    return words


STATE_KEYS = (
    "installed_version",
    "latest_version",
    "title",
    "release_summary",
    "in_progress",
    "update_percentage",
)
"""What Home Assistant reads of ``model/state``.  It throws away a message with any other key whole
(``MQTT_JSON_UPDATE_SCHEMA`` in ``homeassistant/components/mqtt/update.py``), so they are picked."""
ATTRIBUTES = ("phase", "code", "gated")


def _picked(keys: tuple[str, ...]) -> str:
    """Return a template that gives an object of these keys of a message."""
    return "{{ {" + ", ".join(f"'{key}': value_json.{key}" for key in keys) + "} | tojson }}"


def discovery(node: str, prefix: str) -> dict[str, Any]:
    """Return Home Assistant's discovery of the update entity of a node.

    Args:
        node: the node's name, one topic level
        prefix: what its topics begin with, ``edge/v1/<node>``
    """
    return {
        "platform": "update",
        "unique_id": f"edgeagent_{node}_model",
        "name": "Model",
        "device_class": "firmware",
        "entity_category": "config",
        "state_topic": f"{prefix}/model/state",
        "value_template": _picked(STATE_KEYS),
        "json_attributes_topic": f"{prefix}/model/state",
        "json_attributes_template": _picked(ATTRIBUTES),
        "command_topic": f"{prefix}/model/update/request",
        "payload_install": '{"action":"install"}',
        "availability_topic": f"{prefix}/state",
        "availability_template": "{{ value_json.state }}",
        "payload_available": "online",
        "payload_not_available": "offline",
    }
