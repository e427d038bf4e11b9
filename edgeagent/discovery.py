"""What Home Assistant is told about a node: one device with all its entities.  Pure.

One retained message on ``<prefix>/device/<object id>/config`` (device-based discovery, Home
Assistant 2024.12 and newer: https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery).  The
update entity comes from ``ota.vocabulary``; the others read ``telemetry`` and ``health``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from edgeagent.protocol.topics import Topics
from ota.vocabulary import discovery

AVAILABILITY = (
    "availability_topic",
    "availability_template",
    "payload_available",
    "payload_not_available",
)
MISSED = 3
"""Telemetry that was missed so often makes its sensors unavailable."""


@dataclass(frozen=True, slots=True)
class Node:
    """What does not change while an agent runs."""

    name: str
    model: str
    """The board, in words."""
    agent_version: str
    telemetry_s: float


def object_id(node: str) -> str:
    """Return the node's name in the letters that discovery allows; two names never get one id."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", node)
    tag = "" if plain == node else "_" + hashlib.sha256(node.encode()).hexdigest()[:6]
    return f"edgeagent_{plain}{tag}"


def discovery_topic(prefix: str, node: str) -> str:
    """Return where a node is announced."""
    return f"{prefix}/device/{object_id(node)}/config"


def device(node: Node, topics: Topics, present: Collection[str]) -> dict[str, Any]:
    """Return the message that announces a node.

    Args:
        node: what it is
        topics: where it speaks
        present: quantities that this board measures; entities of others are there, switched off
    """
    update = discovery(node.name, topics.state.removesuffix("/state"))
    shared = {key: update.pop(key) for key in AVAILABILITY}
    components = {"model": update, **_buttons(topics), **_sensors(node, topics, present)}
    for key, component in components.items():
        component["unique_id"] = f"edgeagent_{node.name}_{key}"
    facts = {
        "identifiers": [f"edgeagent_{node.name}"],
        "name": node.name,
        "manufacturer": "edgeagent",
        "model": node.model,
        "sw_version": node.agent_version,
    }
    return {
        "device": {key: value for key, value in facts.items() if value},
        "origin": {"name": "edgeagent", "sw_version": node.agent_version},
        "qos": 1,
        **shared,
        "components": components,
    }


def _buttons(topics: Topics) -> dict[str, dict[str, Any]]:
    return {
        action: {
            "platform": "button",
            "name": name,
            "command_topic": topics.update_request,
            "payload_press": f'{{"action":"{action}"}}',
            "entity_category": "config",
            "enabled_by_default": is_enabled,
        }
        for action, name, is_enabled in (
            ("check", "Look for a model", True),
            ("cancel", "Cancel the update", False),
            ("rollback", "Return to the model before", False),  # not by a slip of the finger
        )
    }


def _sensors(node: Node, topics: Topics, present: Collection[str]) -> dict[str, dict[str, Any]]:
    expires = {"expire_after": max(1, round(MISSED * node.telemetry_s))}
    found: dict[str, dict[str, Any]] = {}
    for key, name, unit, device_class, digits in (
        ("temperature_c", "Temperature", "°C", "temperature", 1),
        ("power_w", "Power", "W", "power", 2),
        ("battery_percent", "Battery", "%", "battery", 0),
        ("tokens_per_s", "Speed", "tok/s", None, 1),
        ("j_per_token", "Energy of a token", "J/tok", None, 3),
        ("queue", "Queries that wait", None, None, 0),
    ):
        found[key] = _sensor(topics.telemetry, name, f"value_json.{key}") | expires
        found[key] |= {"state_class": "measurement", "suggested_display_precision": digits}
        found[key] |= {"unit_of_measurement": unit} if unit else {}
        found[key] |= {"device_class": device_class} if device_class else {}
    energy = "none if value_json.energy_j is none else (value_json.energy_j / 3600) | round(4)"
    found["energy_j"] = _sensor(topics.telemetry, "Energy", energy) | expires
    found["energy_j"] |= {
        "unit_of_measurement": "Wh",
        "device_class": "energy",
        "state_class": "total_increasing",
    }
    for key, name in (("throttled", "Throttled"), ("undervoltage", "Undervoltage")):
        value = f"none if value_json.{key} is none else 'ON' if value_json.{key} else 'OFF'"
        found[key] = _sensor(topics.telemetry, name, value) | expires
        found[key] |= {"platform": "binary_sensor", "device_class": "problem"}
        found[key] |= {"entity_category": "diagnostic"}
    for key in set(found) - {"tokens_per_s", "queue"} - set(present):
        found[key]["enabled_by_default"] = False
    restarts = _sensor(topics.health, "Engine restarts", "value_json.engine.restarts")
    found["engine_restarts"] = restarts | {
        "state_class": "total_increasing",
        "entity_category": "diagnostic",
    }
    return found


def _sensor(topic: str, name: str, value: str) -> dict[str, Any]:
    return {
        "platform": "sensor",
        "name": name,
        "state_topic": topic,
        "value_template": "{{ " + value + " }}",
    }
