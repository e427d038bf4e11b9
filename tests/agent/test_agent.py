"""The whole agent against real brokers: nothing that was accepted is lost, whatever is killed."""

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeagent.errors import EX_CONFIG
from edgeagent.paths import bundled_model
from tests.agent.daemon import TIMEOUT_S, TOPICS, Asker, Daemon
from tests.brokers import Amqtt, Mosquitto

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", params=["mqtt5", "mqtt311"])
def house(request, tmp_path_factory):
    """Return a running agent and a client: MQTT 5 over Mosquitto, 3.1.1 over amqtt."""
    is_v5 = request.param == "mqtt5"
    directory = tmp_path_factory.mktemp(request.param)
    with (Mosquitto if is_v5 else Amqtt)() as broker, Daemon(directory, broker.port) as daemon:
        version = paho.MQTTv5 if is_v5 else paho.MQTTv311
        with Asker(broker.port, version) as asker:
            asker.wait_online()
            yield daemon, asker


@pytest.fixture
def asker(house):
    _, asker = house
    asker.finals.clear()
    asker.batches.clear()
    return asker


@pytest.fixture
def broker():
    with Mosquitto(persistence=True) as running:
        yield running


def test_a_query_streams_and_ends_with_the_whole_answer(asker):
    asker.ask("q1", "slow 20 0.02", transaction="t")
    (final,) = asker.wait_finals(1)
    batches = asker.batches["q1"]
    assert final["text"] == "".join(f"{i} " for i in range(20))
    assert [b["seq"] for b in batches] == list(range(final["seq"]))
    assert "".join(b["text"] for b in batches) == final["text"]
    assert all(message["transaction"] == "t" for message in [final, *batches])


def test_a_query_is_cancelled_in_mid_answer(asker):
    asker.ask("c1", "slow 500 0.02")
    asker.wait(lambda: "c1" in asker.batches)
    asker.send(b'{"id": "c1"}', topic=TOPICS.query_cancel)
    (final,) = asker.wait_finals(1)
    assert final["finish_reason"] == "cancelled"
    assert final["text"].startswith("0 ")


def test_a_cancellation_by_correlation_data(house, asker):
    if not asker.is_v5:
        return
    asker.ask("c2", "slow 500 0.02")
    asker.wait(lambda: "c2" in asker.batches)
    properties = Properties(PacketTypes.PUBLISH)
    properties.CorrelationData = b"c2"
    asker.send(b"", properties, topic=TOPICS.query_cancel)
    assert asker.wait_finals(1)[0]["finish_reason"] == "cancelled"


def test_a_crash_of_the_engine_costs_one_query(asker):
    asker.ask("x1", "crash 2")
    asker.ask("x2", "say 2")
    first, second = asker.wait_finals(2)
    assert (first["id"], first["error"]["code"]) == ("x1", "engine_failed")
    assert (second["id"], second["status"]) == ("x2", "ok")


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"{nonsense", "bad_request"),
        (b'{"prompt": "x", "colour": 1}', "bad_request"),
        (b"x" * 10_000_000, "too_large"),
        (b'{"prompt": "x", "reply_to": "reply/#"}', "forbidden_reply_topic"),
        (b'{"prompt": "x", "reply_to": "homeassistant/x"}', "forbidden_reply_topic"),
    ],
    ids=["malformed", "unknown", "10 MB", "wildcard", "foreign"],
)
def test_a_bad_query_gets_one_clear_line_and_the_next_is_answered(asker, payload, code):
    asker.send(payload)
    (refused,) = asker.wait_finals(1)
    assert refused["error"]["code"] == code
    assert "\n" not in refused["error"]["message"]
    asker.ask(f"after-{code}-{len(payload)}")
    assert asker.wait_finals(2)[1]["status"] == "ok"


def test_large_messages_leave_no_memory_behind(house, asker):
    daemon, _ = house
    for _ in range(5):
        asker.send(b"x" * 10_000_000)
    asker.wait_finals(5)
    asker.ask("after-large")
    asker.wait_finals(6)
    pages = int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1])
    assert pages * os.sysconf("SC_PAGE_SIZE") < 36 * 2**20


def test_a_foreign_response_topic_is_answered_at_home(asker):
    if not asker.is_v5:
        return
    for topic in ("homeassistant/x", "edge/v1/other/query/request", "ota/v1/main/notice"):
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = topic
        asker.send(b'{"prompt": "say 1"}', properties)
    refused = asker.wait_finals(3)
    assert {final["error"]["code"] for final in refused} == {"forbidden_reply_topic"}


def test_an_expired_query_and_a_retained_one_run_nothing(asker):
    asker.ask("long", "slow 40 0.02")
    asker.ask("late", "say 1", deadline_s=0.1)
    asker.send(b'{"id": "kept", "prompt": "say 1"}', retain=True)
    finals = asker.wait_finals(2)
    assert finals[0]["error"]["code"] == "expired"
    asker.ask("last")
    answered = {final["id"] for final in asker.wait_finals(3)}
    # A broker delivers a publication without the retain flag to who was subscribed before.
    assert answered <= {"long", "late", "last", "kept"}
    asker.send(b"", retain=True)


def test_a_full_queue_is_busy(broker, tmp_path):
    settings = "[query]\nmax_queue = 2\n"
    with Daemon(tmp_path, broker.port, settings), Asker(broker.port) as asker:
        asker.wait_online()
        asker.ask("b0", "slow 30 0.02")
        asker.wait(lambda: "b0" in asker.batches)
        for i in range(1, 5):
            asker.ask(f"b{i}")
        finals = asker.wait_finals(5)
        busy = [f for f in finals if f.get("error", {}).get("code") == "busy"]
        assert {f["id"] for f in busy} == {"b3", "b4"}
        assert all(f["error"]["retry_after_s"] >= 1 for f in busy)


def test_a_broker_restart_under_load_loses_nothing_and_answers_nothing_twice(broker, tmp_path):
    with Daemon(tmp_path, broker.port, "[query]\nmax_queue = 200\n"), Asker(broker.port) as asker:
        asker.wait_online()

        def load():
            for i in range(80):
                asker.ask(f"q{i}", "slow 2 0.005")
                time.sleep(0.01)

        sending = threading.Thread(target=load)
        sending.start()
        for _ in range(2):
            asker.wait_finals(len(asker.finals) + 5)
            broker.restart()
        sending.join()
        asker.wait(lambda: len(asker.accepted) == 80)
        asker.wait(lambda: len(asker.answered()) == 80)
        asker.ask("end")
        asker.wait(lambda: "end" in asker.answered())
        assert all(final["status"] == "ok" for final in asker.finals)
        assert {q: n for q, n in asker.answered().items() if n > 1} == {}


def test_a_killed_agent_loses_nothing(broker, tmp_path):
    with Daemon(tmp_path, broker.port) as daemon, Asker(broker.port) as asker:
        asker.wait_online()
        for i in range(12):
            asker.ask(f"k{i}", "slow 5 0.02")
        asker.wait(lambda: len(asker.accepted) == 12)
        asker.wait_finals(3)
        daemon.kill()
        daemon.start()
        asker.wait(lambda: len(asker.answered()) == 12)
        # Killed between the broker's confirmation and our acknowledgement, one may come twice.
        assert sum(asker.answered().values()) <= 13


def test_a_query_sent_while_the_agent_is_away_is_answered_when_it_is_back(broker, tmp_path):
    with Daemon(tmp_path, broker.port) as daemon, Asker(broker.port) as asker:
        asker.wait_online()
        assert daemon.stop() == 0
        asker.wait(lambda: asker.retained[TOPICS.state] == {"state": "offline"})
        asker.ask("away")
        asker.wait(lambda: "away" in asker.accepted)
        daemon.start()
        assert asker.wait_finals(1)[0]["status"] == "ok"


def test_sigterm_finishes_what_runs_keeps_what_waits_and_exits_0(broker, tmp_path):
    with Daemon(tmp_path, broker.port) as daemon, Asker(broker.port) as asker:
        asker.wait_online()
        asker.ask("running", "slow 30 0.02")
        asker.ask("waiting")
        asker.wait(lambda: "running" in asker.batches)
        assert daemon.stop() == 0
        assert asker.answered() == {"running": 1}
        daemon.start()
        asker.wait(lambda: "waiting" in asker.answered())


def test_a_killed_agent_is_offline_by_its_will(tmp_path):
    with (
        Amqtt() as broker,
        Daemon(tmp_path, broker.port) as daemon,
        Asker(broker.port, paho.MQTTv311) as asker,
    ):
        asker.wait_online()
        daemon.kill()
        asker.wait(lambda: asker.retained[TOPICS.state] == {"state": "offline"})


def test_it_tells_systemd_that_it_is_ready_and_alive_and_stopping(tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, Mosquitto() as broker:
        manager.bind(address)
        manager.settimeout(TIMEOUT_S)
        environ = os.environ | {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1200000"}
        with Daemon(tmp_path, broker.port, environ=environ) as daemon:
            heard = [manager.recv(1000).decode() for _ in range(4)]
            assert heard[0].startswith("READY=1\nSTATUS=MQTT 5; fake 1.0.0; 0 answered")
            assert all(line.endswith("WATCHDOG=1") for line in heard[1:])
            assert daemon.stop() == 0
            rest = ""
            while "STOPPING=1" not in rest:
                rest = manager.recv(1000).decode()


def test_what_it_says_about_itself(asker):
    for topic in (TOPICS.info, TOPICS.health, TOPICS.telemetry, TOPICS.event):
        asker.wait(lambda topic=topic: topic in asker.retained)
    info, health = asker.retained[TOPICS.info], asker.retained[TOPICS.health]
    assert info["mqtt"] == ("5" if asker.is_v5 else "3.1.1")
    assert info["model"]["version"] == "1.0.0"
    assert info["limits"]["max_bytes"] == 65536
    assert health["status"] == "ok"
    telemetry = asker.retained[TOPICS.telemetry]
    for name in ("temperature_c", "power_w", "energy_j"):
        assert telemetry[name] is not None or telemetry["absent"][name]
    assert json.dumps(telemetry)


def exit_code_of(daemon):
    with daemon:
        return daemon.process.wait(TIMEOUT_S), daemon.log.read_text()


def test_settings_that_the_engine_refuses_end_the_agent_for_good(tmp_path):
    daemon = Daemon(tmp_path, 1, model="picky-1.0.0")
    code, log = exit_code_of(daemon)
    assert code == EX_CONFIG  # systemd does not restart after it
    assert "agent.failed code=config reason='no kernel neon here'" in log


def test_a_password_file_that_is_not_there_ends_the_agent_for_good(tmp_path):
    daemon = Daemon(tmp_path, 1, mqtt='password_file = "/nonexistent"\n')
    code, log = exit_code_of(daemon)
    assert code == EX_CONFIG
    assert "mqtt.password_file: cannot be read" in log


def test_a_wrong_model_leaves_the_agent_reachable(tmp_path):
    with (
        Mosquitto() as broker,
        Daemon(tmp_path, broker.port, model="broken-1.0.0"),
        Asker(broker.port) as asker,
    ):
        asker.wait_online()
        asker.ask("q")
        assert asker.wait_finals(1)[0]["error"]["code"] == "engine_failed"
        asker.wait(lambda: asker.retained.get(TOPICS.health, {}).get("status") == "no_engine")


def test_without_a_broker_it_is_ready_all_the_same_and_stops_when_told(tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(TIMEOUT_S)
        environ = os.environ | {"NOTIFY_SOCKET": address}
        with Daemon(tmp_path, 1, environ=environ) as daemon:
            assert manager.recv(1000).startswith(b"READY=1\nSTATUS=offline; fake 1.0.0")
            assert daemon.stop() == 0


def test_sigkill_on_a_real_engine_in_mid_answer_costs_that_query_alone(broker, tmp_path):
    model = bundled_model()
    with (
        Daemon(tmp_path, broker.port, engine="real", model=model) as daemon,
        Asker(broker.port) as asker,
    ):
        asker.wait_online()
        story = {"max_tokens": 400, "temperature": 1.0, "seed": 1, "stop": []}
        asker.ask("killed", "Once upon a time, there was a little girl named Lily.", **story)
        asker.ask("next", "Once", max_tokens=8)
        asker.wait(lambda: "killed" in asker.batches)
        os.kill(daemon.engine_pid(), signal.SIGKILL)
        killed, after = asker.wait_finals(2)
        assert (killed["id"], killed["error"]["code"]) == ("killed", "engine_failed")
        assert "killed by SIGKILL" in killed["error"]["message"]
        assert (after["id"], after["status"]) == ("next", "ok")
