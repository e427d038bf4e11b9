import json

import jinja2.sandbox
import pytest

from edgeagent.discovery import Node, device, discovery_topic, object_id
from edgeagent.protocol.commands import UpdateRequest, parse_update_request
from edgeagent.protocol.messages import Incoming
from edgeagent.protocol.reports import OFFLINE, ONLINE, ModelState
from edgeagent.protocol.topics import Topics
from ota.vocabulary import STATE_KEYS

NODE = Node("kitchen", "Raspberry Pi 5", "0.1.0", 10.0)
PRESENT = {"temperature_c", "throttled"}

# https://www.home-assistant.io/integrations/sensor.mqtt/ and its neighbours; common to all
COMMON = {"platform", "name", "unique_id", "enabled_by_default", "entity_category", "device_class"}
KNOWN = {
    "update": COMMON
    | {"state_topic", "value_template", "command_topic", "payload_install"}
    | {"json_attributes_topic", "json_attributes_template"},
    "button": COMMON | {"command_topic", "payload_press"},
    "sensor": COMMON
    | {"state_topic", "value_template", "unit_of_measurement", "state_class", "expire_after"}
    | {"suggested_display_precision"},
    "binary_sensor": COMMON | {"state_topic", "value_template", "expire_after"},
}
CLASSES = {
    "sensor": {"temperature", "power", "energy", "battery"},
    "binary_sensor": {"problem"},
    "update": {"firmware"},
}


def announced(present=PRESENT):
    return device(NODE, Topics("kitchen"), present)


def render(template, payload):
    """Render as Home Assistant does: the payload as `value_json`."""
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment()
    return sandbox.from_string(template).render(value_json=json.loads(payload))


def test_a_node_is_one_device_with_all_its_entities():
    message = announced()
    assert message["device"]["identifiers"] == ["edgeagent_kitchen"]
    assert message["origin"]["name"]
    assert len({c["unique_id"] for c in message["components"].values()}) == len(
        message["components"]
    )


@pytest.mark.parametrize("key", announced()["components"])
def test_components_have_only_what_home_assistant_knows(key):
    component = announced()["components"][key]
    assert set(component) <= KNOWN[component["platform"]]
    if "device_class" in component:
        assert component["device_class"] in CLASSES[component["platform"]]
    assert not {"availability_topic", "availability"} & set(component)  # the device has it
    if component.get("device_class") == "energy":
        assert component["unit_of_measurement"] == "Wh"


def test_availability_is_that_of_the_node():
    message = announced()
    assert message["availability_topic"] == Topics("kitchen").state
    for payload, key in ((ONLINE, "payload_available"), (OFFLINE, "payload_not_available")):
        assert render(message["availability_template"], payload) == message[key]


@pytest.mark.parametrize(
    "state",
    [
        ModelState("edge-tiny", "1.0.0", "1.1.0", 'said "no" <b>', "fetching", 0.256),
        ModelState("", "", "", phase="idle"),
        ModelState("m", "1", "2", "hot", "gated", gated={"reason": "temperature", "again_at_s": 9}),
    ],
)
def test_the_update_entity_gets_exactly_the_keys_that_its_schema_allows(state):
    update = announced()["components"]["model"]
    seen = json.loads(render(update["value_template"], state.encode()))
    assert set(seen) == set(STATE_KEYS)
    said = json.loads(state.encode())
    assert seen == {key: said[key] for key in STATE_KEYS}
    assert isinstance(seen["in_progress"], bool)
    assert seen["update_percentage"] is None or 0 <= seen["update_percentage"] <= 100
    assert all(isinstance(seen[key], str) for key in STATE_KEYS[:4])
    attributes = json.loads(render(update["json_attributes_template"], state.encode()))
    assert attributes == {key: said[key] for key in ("phase", "code", "gated")}


@pytest.mark.parametrize("key", ["check", "cancel", "rollback"])
def test_buttons_send_requests_that_we_take(key):
    button = announced()["components"][key]
    payload = button["payload_press"].encode()
    assert parse_update_request(Incoming("t", payload, len(payload))) == UpdateRequest(key)
    assert button["command_topic"] == Topics("kitchen").update_request


@pytest.mark.parametrize(
    ("key", "telemetry", "shown"),
    [
        ("temperature_c", {"temperature_c": 48.2}, "48.2"),
        ("temperature_c", {"temperature_c": None}, "None"),
        ("energy_j", {"energy_j": 7200.0}, "2.0"),
        ("energy_j", {"energy_j": None}, "None"),
        ("throttled", {"throttled": True}, "ON"),
        ("throttled", {"throttled": False}, "OFF"),
        ("throttled", {"throttled": None}, "None"),
        ("engine_restarts", {"engine": {"restarts": 3}}, "3"),
    ],
)
def test_sensors_show_a_value_or_that_there_is_none(key, telemetry, shown):
    template = announced()["components"][key]["value_template"]
    assert render(template, json.dumps(telemetry)) == shown


def test_what_the_board_does_not_measure_is_there_and_switched_off():
    components = announced()["components"]
    assert "enabled_by_default" not in components["temperature_c"]
    assert components["power_w"]["enabled_by_default"] is False
    assert "enabled_by_default" not in announced({"power_w"})["components"]["power_w"]
    assert "enabled_by_default" not in components["tokens_per_s"]


def test_names_become_ids_and_two_names_never_the_same():
    assert object_id("kitchen") == "edgeagent_kitchen"
    ids = {object_id(name) for name in ("a.b", "a_b", "a-b")}
    assert len(ids) == 3
    assert discovery_topic("homeassistant", "kitchen") == (
        "homeassistant/device/edgeagent_kitchen/config"
    )
