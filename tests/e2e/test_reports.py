"""Signed reports from a device to its operator, over a real broker and a restart of the agent."""

import pytest

from tests.e2e.house import NODE, edgeota
from tests.e2e.test_updates import broker, fleet, house, installed, models

__all__ = ["broker", "fleet", "house", "models"]

pytestmark = pytest.mark.system


def reports(fleet, *words):
    return edgeota("reports", fleet.repo, *fleet.mqtt, "--seconds", "4", *words)


def test_an_operator_believes_what_an_enrolled_device_says_of_its_updates(house, fleet, models):
    fleet.release(models[1], base=models[0])
    fleet.publish()
    installed(house, "2.0.0")
    fleet.release(models[2], base=models[1])  # its health suite lies
    fleet.publish()
    house.wait_for(house.topics.model_state, phase="rolled_back")

    said = reports(fleet, "--node", NODE)
    assert {each["kind"] for each in said["reports"]} == {"unknown"}
    public = (house.state_dir / "ota" / "device.pub").read_text().strip()
    edgeota("device-enroll", fleet.repo, NODE, public)

    said = reports(fleet)
    assert said["not_believed"] == 0 and said["silent"] == []
    bodies = [each["report"] for each in said["reports"]]
    assert [body["seq"] for body in bodies] == [1, 2]
    committed, undone = (body["end"] for body in bodies)
    assert (committed["type"], committed["version"]) == ("update_committed", "2.0.0")
    assert (undone["type"], undone["code"]) == ("rolled_back", "health_logits")
    assert bodies[1]["model"]["version"] == "2.0.0"

    house.kill_daemon(house.daemon)
    house.daemon = house.start_daemon()
    house.wait_for(house.topics.model_state, phase="idle")
    again = reports(fleet)
    assert again["not_believed"] == 0
    old = [each for each in again["reports"] if each["kind"] == "again"]
    assert [each["report"]["seq"] for each in old] == [1, 2]
    assert edgeota("device-list", fleet.repo)["devices"][NODE]["key"] == public
