"""The whole agent as a process of its own, with a fake engine, and someone who asks it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeagent.protocol.topics import Topics

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30.0
TOPICS = Topics("n1")

_RUNNER = """
import sys
from pathlib import Path
from edgeagent import agent, config
from tests.fakes import ENGINE_COMMAND

command = ENGINE_COMMAND if sys.argv[2] == "fake" else None
sys.exit(agent.run(config.load(Path(sys.argv[1])), engine_command=command))
"""


class Daemon:
    """The agent's process."""

    def __init__(
        self,
        directory: Path,
        port: int,
        settings: str = "",
        *,
        environ=None,
        model="good-1.0.0",
        mqtt="",
        engine="fake",
    ):
        self.config = directory / "edgeagent.toml"
        self.config.write_text(
            f'[node]\nname = "n1"\n[mqtt]\nhost = "127.0.0.1"\nport = {port}\n{mqtt}'
            f'[model]\npath = "{model}"\n[paths]\nstate_dir = "{directory / "state"}"\n'
            f"[telemetry]\ninterval_s = 1.0\n[update]\nenabled = false\n{settings}"
        )
        self.log = directory / "daemon.log"
        self.environ = environ
        self.engine = engine
        self.process = None

    def start(self):
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _RUNNER, str(self.config), self.engine],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                env=self.environ,
            )

    def engine_pid(self) -> int:
        """Return the process id of the one engine."""
        pid = self.process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)

    def kill(self):
        self.process.kill()
        self.process.wait(TIMEOUT_S)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(TIMEOUT_S)


class Asker:
    """A client with a session of its own that survives the broker, and counts final answers."""

    def __init__(self, port: int, version=paho.MQTTv5, name="asker"):
        self.is_v5 = version == paho.MQTTv5
        self.reply_topic = f"reply/{name}"
        self.finals: list[dict] = []
        self.repeated = 0  # finals that the broker sent us again, and says so: the DUP flag
        self.batches: dict[str, list[dict]] = {}
        self.retained: dict[str, dict] = {}
        self._names: dict[int, str] = {}  # packet identifier -> query
        self._confirmed: set[int] = set()
        self._changed = threading.Condition(threading.RLock())
        self._subscribed = threading.Event()
        session = {} if self.is_v5 else {"clean_session": False}
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id=name, protocol=version, **session
        )
        self.client.reconnect_delay_set(1, 1)
        self.client.max_inflight_messages_set(100)
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_message = self._on_message
        self.client.on_publish = self._on_publish
        options = {}
        if self.is_v5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 600
            options = {"clean_start": False, "properties": properties}
        self.client.connect("127.0.0.1", port, **options)
        self.client.loop_start()
        assert self._subscribed.wait(TIMEOUT_S)

    def _on_connect(self, client, *_):
        client.subscribe([(self.reply_topic, 1), (f"{TOPICS.query_replies}#", 1)])
        client.subscribe(TOPICS.state.removesuffix("state") + "+")

    def _on_message(self, _client, _data, message):
        body = json.loads(message.payload)
        if not message.topic.startswith((self.reply_topic, TOPICS.query_replies)):
            with self._changed:
                self.retained[message.topic] = body
                self._changed.notify_all()
            return
        with self._changed:
            if body.get("final") and message.dup and body["id"] in self.answered():
                self.repeated += 1
            elif body.get("final"):
                self.finals.append(body)
            else:
                self.batches.setdefault(body["id"], []).append(body)
            self._changed.notify_all()

    def _on_publish(self, _client, _data, mid, reason, _properties):
        with self._changed:
            if not reason.is_failure:
                self._confirmed.add(mid)
            self._changed.notify_all()

    def ask(self, query_id: str, prompt: str = "say 3", **fields):
        body = {"id": query_id, "prompt": prompt, **fields}
        properties = None
        if self.is_v5:
            properties = Properties(PacketTypes.PUBLISH)
            properties.ResponseTopic = self.reply_topic
            properties.CorrelationData = query_id.encode()
        else:
            body["reply_to"] = self.reply_topic
        self.send(json.dumps(body).encode(), properties, name=query_id)

    def send(self, payload, properties=None, *, name="", topic=TOPICS.query_request, retain=False):
        # Without our lock: paho holds its own while it calls `_on_publish`.
        info = self.client.publish(topic, payload, 1, retain, properties)
        with self._changed:
            self._names[info.mid] = name
            self._changed.notify_all()

    def wait(self, condition, timeout_s=TIMEOUT_S):
        end_s = time.monotonic() + timeout_s
        with self._changed:
            while not condition():
                left_s = end_s - time.monotonic()
                assert left_s > 0, f"waited in vain; have {Counter(f['id'] for f in self.finals)}"
                self._changed.wait(left_s)

    def wait_finals(self, count, timeout_s=TIMEOUT_S):
        self.wait(lambda: len(self.finals) >= count, timeout_s)
        return self.finals

    def wait_online(self):
        self.wait(lambda: self.retained.get(TOPICS.state) == {"state": "online"})

    @property
    def accepted(self) -> set[str]:
        """The queries that the broker has acknowledged."""
        return {name for mid, name in self._names.items() if mid in self._confirmed}

    def answered(self) -> Counter:
        return Counter(final["id"] for final in self.finals)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
