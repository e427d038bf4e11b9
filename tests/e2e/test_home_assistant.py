"""Home Assistant's side of the broker: found, updated, reborn, and gone again."""

import json
import time

import pytest

from tests.brokers import Mosquitto
from tests.e2e.house import NODE, House
from tests.tiny import make_model

pytestmark = pytest.mark.system

TOPIC = f"homeassistant/device/edgeagent_{NODE}/config"


def switch(house, word):
    text = house.config.read_text().split("[home_assistant]")[0]
    house.config.write_text(f"{text}[home_assistant]\ndiscovery = {word}\n")


def kept(house):
    with house.client() as client:
        return client.retained("homeassistant/#", wait_s=1.0)


def until(condition):
    end_s = time.monotonic() + 30
    while time.monotonic() < end_s:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("not in time")


def test_home_assistant_finds_a_node_and_loses_it_when_it_is_switched_off(tmp_path, mosquitto):
    model = make_model(tmp_path / "model")
    with Mosquitto() as broker, House(tmp_path, broker, model) as house:
        daemon = house.start_daemon()
        house.wait_for(house.topics.model_state, phase="idle")
        assert kept(house) == {}  # off is the default
        house.kill_daemon(daemon)

        switch(house, "true")
        daemon = house.start_daemon()
        until(lambda: TOPIC in kept(house))
        message = kept(house)[TOPIC]
        update = message["components"]["model"]
        with house.client() as client:
            state = client.retained(update["state_topic"], wait_s=2.0)[update["state_topic"]]
        assert state["title"] == "tiny"

        with house.client() as client:  # a broker that lost it is told at the next birth
            client._client.publish(TOPIC, b"", qos=1, retain=True).wait_for_publish(5)
            assert TOPIC not in client.retained("homeassistant/#", wait_s=1.0)
            client._client.publish("homeassistant/status", b"online", qos=0).wait_for_publish(5)
        until(lambda: kept(house).get(TOPIC) == message)
        assert json.loads((house.state_dir / "home_assistant.json").read_text())["topics"]
        house.kill_daemon(daemon)

        switch(house, "false")
        house.start_daemon()
        until(lambda: TOPIC not in kept(house))
