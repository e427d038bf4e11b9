"""`run`, `ask` and `status`: the daemon, and talking to it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeagent.errors import ConfigError, EdgeAgentError
from edgeagent.protocol.topics import Topics

if TYPE_CHECKING:
    from edgeagent.client import Client
    from edgeagent.config import Config


class AnswerError(EdgeAgentError):
    """The agent answered, with an error; its code decides how we exit."""

    exit_code = 1


def load_config(path: Path | None) -> Config:
    """Load the named file, else the system's if there is one, else the defaults."""
    from edgeagent import config

    return config.load(path)


def run(args: argparse.Namespace) -> int:
    """Run the agent until SIGTERM."""
    from edgeagent import agent

    return agent.run(load_config(args.config))


def connect(args: argparse.Namespace) -> tuple[Client, str]:
    """Return a client of the broker that the configuration or --mqtt names, and the node."""
    from edgeagent.adapters.mqtt_client import tls_context
    from edgeagent.client import Client
    from edgeagent.config import password

    config = load_config(args.config)
    mqtt = config.mqtt
    host, port = mqtt.host, mqtt.port
    tls = mqtt.tls or mqtt.tls_ca_file is not None or mqtt.tls_cert_file is not None
    if args.mqtt:
        host, _, text = args.mqtt.rpartition(":") if ":" in args.mqtt else (args.mqtt, "", "1883")
        if not text.isdecimal():
            raise ConfigError(f"--mqtt: expected HOST or HOST:PORT, got {args.mqtt!r}")
        port = int(text)
    client = Client(
        host,
        port,
        protocol=mqtt.protocol,
        username=mqtt.username or None,
        password=password(mqtt),
        tls=tls_context(mqtt.tls_ca_file, mqtt.tls_cert_file, mqtt.tls_key_file) if tls else None,
        prefix=mqtt.prefix,
    )
    return client, args.node or config.node.name


def _query(args: argparse.Namespace) -> dict[str, Any]:
    fields = (
        "max_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "seed",
        "stop",
        "zero_skip",
    )
    query = {name: getattr(args, name) for name in fields if getattr(args, name) is not None}
    if args.prompt is not None:
        return query | {"prompt": args.prompt}
    text = sys.stdin.read().strip() if args.text is None else args.text
    return query | {"messages": [{"role": "user", "content": text}]}


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def ask(args: argparse.Namespace) -> int:
    """Send one query to the agent and stream its answer."""
    query = _query(args)
    client, node = connect(args)
    with client:
        on_text = None if args.json else _show
        answer = client.ask(node, query, on_text=on_text, timeout_s=args.timeout)
    print(json.dumps(answer, ensure_ascii=False) if args.json else "")
    if answer["status"] != "ok":
        error = AnswerError(f"{node}: {answer['error']['code']}: {answer['error']['message']}")
        raise error
    return 0


def status(args: argparse.Namespace) -> int:
    """Print the agent's retained state, info, health and model, and its last telemetry."""
    client, node = connect(args)
    topics = Topics(node, client.prefix)
    base = topics.state.removesuffix("state")
    with client:
        found = client.retained(f"{base}#", wait_s=args.timeout)
    document = {topic.removeprefix(base): value for topic, value in found.items()}
    state = document.get("state", {}).get("state", "unknown")
    if args.json:
        print(json.dumps({"node": node, **document}, ensure_ascii=False))
    else:
        print(f"{node}: {state}")
        for topic, value in sorted(document.items()):
            print(f"\n{topic}")
            _print_fields(value)
    return 0 if state == "online" else 1


def _print_fields(value: Any, indent: str = "  ") -> None:
    for key, item in value.items():
        if isinstance(item, dict):
            print(f"{indent}{key}")
            _print_fields(item, indent + "  ")
        else:
            print(f"{indent}{key:<22} {'-' if item is None else item}")
