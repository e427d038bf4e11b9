import asyncio
import json

import pytest

from edgeagent import home_assistant
from edgeagent.errors import AdapterError
from edgeagent.home_assistant import HomeAssistant
from edgeagent.progress import Progress
from edgeagent.protocol.messages import Incoming

TOPIC = "homeassistant/device/edgeagent_n1/config"


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(home_assistant, "JITTER_S", 0.0)
    monkeypatch.setattr(home_assistant, "READY_STEP_S", 0.01)


class Broker:
    """What is published; confirms at once unless told otherwise."""

    def __init__(self):
        self.sent = []
        self.is_up = True
        self.error = None

    def publish_retained(self, topic, payload):
        self.sent.append((topic, payload))
        if not self.is_up:
            return None
        done = asyncio.get_running_loop().create_future()
        if self.error is None:
            done.set_result(None)
        else:
            done.set_exception(self.error)
        return done


def live(tmp_path, body, *, topic=TOPIC, broker=None, is_ready=lambda: True):
    broker = broker or Broker()

    async def main():
        home = HomeAssistant(broker, topic, lambda: b"hello", is_ready, tmp_path, Progress(1.0))
        task = asyncio.create_task(home.run())
        try:
            await body(home)
            await asyncio.sleep(0.05)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    return broker.sent


async def connect(home):
    home.connected()


def status(payload, *, is_retained=False):
    return Incoming("homeassistant/status", payload, len(payload), is_retained=is_retained)


def remembered(tmp_path):
    return json.loads((tmp_path / "home_assistant.json").read_text())["topics"]


def test_a_node_is_announced_on_each_connection_and_each_birth(tmp_path):
    async def body(home):
        for tell in (home.connected, lambda: home.on_status(status(b"online")), home.connected):
            tell()
            await asyncio.sleep(0.05)

    assert live(tmp_path, body) == [(TOPIC, b"hello")] * 3
    assert remembered(tmp_path) == [TOPIC]


@pytest.mark.parametrize(
    "incoming", [status(b"offline"), status(b"online", is_retained=True), status(b"")]
)
def test_only_a_birth_is_a_birth(tmp_path, incoming):
    async def body(home):
        home.on_status(incoming)

    assert live(tmp_path, body) == []


def test_it_waits_until_it_is_known_what_the_board_measures(tmp_path):
    ready = []

    async def body(home):
        home.connected()
        await asyncio.sleep(0.05)
        ready.append(1)

    assert live(tmp_path, body, is_ready=lambda: bool(ready)) == [(TOPIC, b"hello")]


def test_a_node_that_was_never_announced_writes_nothing_there(tmp_path):
    assert live(tmp_path, connect, topic=None) == []
    assert not (tmp_path / "home_assistant.json").exists()


def test_switched_off_the_announcement_goes_once(tmp_path):
    live(tmp_path, connect)
    assert live(tmp_path, connect, topic=None) == [(TOPIC, b"")]
    assert remembered(tmp_path) == []
    assert live(tmp_path, connect, topic=None) == []


def test_another_prefix_moves_the_announcement(tmp_path):
    live(tmp_path, connect)
    other = TOPIC.replace("homeassistant/", "ha/")
    assert live(tmp_path, connect, topic=other) == [(other, b"hello"), (TOPIC, b"")]
    assert remembered(tmp_path) == [other]


@pytest.mark.parametrize("trouble", ["away", "refused"])
def test_what_the_broker_has_not_confirmed_is_removed_next_time(tmp_path, trouble):
    live(tmp_path, connect)
    broker = Broker()
    broker.is_up = trouble != "away"
    broker.error = AdapterError("not authorized") if trouble == "refused" else None
    live(tmp_path, connect, topic=None, broker=broker)
    assert remembered(tmp_path) == [TOPIC]
    assert live(tmp_path, connect, topic=None) == [(TOPIC, b"")]


@pytest.mark.parametrize("text", ["", "[]", '{"topics": 3}', "{", '{"topics": [1]}'])
def test_a_damaged_memory_forgets_and_goes_on(tmp_path, text):
    (tmp_path / "home_assistant.json").write_text(text)
    assert (TOPIC, b"hello") in live(tmp_path, connect)


def test_a_disk_that_takes_nothing_does_not_keep_it_from_being_announced(tmp_path, caplog):
    (tmp_path / "state").write_text("a file")
    assert live(tmp_path / "state", connect) == [(TOPIC, b"hello")]
    assert "discovery.not_remembered" in caplog.text
