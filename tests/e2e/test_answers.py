"""What a user of the daemon sees, through a real broker."""

import json
import subprocess
import sys

import pytest

from edgeagent.paths import bundled_model
from tests.brokers import Amqtt, Mosquitto
from tests.e2e.house import NODE, House, children, rss_mib

pytestmark = pytest.mark.system

#: Bounds of the product, not of this machine: an idle agent, and an engine with the bundled model.
MAX_AGENT_MIB = 45
MAX_ENGINE_MIB = 60
STORY = {"prompt": "Once upon a time", "seed": 7, "temperature": 0.8, "max_tokens": 60}


@pytest.fixture(scope="module", params=["mosquitto", "amqtt"])
def house(request, tmp_path_factory):
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto")
    with (
        (Mosquitto if request.param == "mosquitto" else Amqtt)() as broker,
        House(tmp_path_factory.mktemp("house"), broker, bundled_model()) as house,
    ):
        house.daemon = house.start_daemon()
        yield house


def edgeagent(*words):
    done = subprocess.run(
        [sys.executable, "-m", "edgeagent.cli", *words], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_text_over_mqtt_is_that_of_the_command_line(house):
    words = ["--prompt", STORY["prompt"], "--seed", "7", "--temperature", "0.8"]
    words += ["--max-tokens", "60"]
    local = edgeagent("generate", *words)
    pieces = []
    with house.client() as client:
        answer = client.ask(NODE, STORY, on_text=pieces.append)
    assert answer["text"] + "\n" == local
    assert "".join(pieces) == answer["text"]
    where = ["--mqtt", f"127.0.0.1:{house.broker.port}", "--node", NODE]
    assert edgeagent("ask", *words, *where) == local


def test_an_answer_says_what_it_cost_and_invents_nothing(house):
    with house.client() as client:
        answer = client.ask(NODE, STORY)
    assert answer["status"] == "ok"
    assert answer["usage"]["completion_tokens"] <= 60
    assert answer["timings"]["tokens_per_s"] > 0
    assert answer["skipped"]["multiplications_fraction"] > 0
    if answer["energy"]["joules"] is None:
        assert answer["energy"]["reason"]
    else:
        assert answer["energy"]["source"]


@pytest.mark.parametrize(
    ("query", "code", "says"),
    [
        ({"prompt": "x", "max_tokens": 0}, "bad_request", "max_tokens"),
        ({"prompt": "x", "tempreature": 1}, "bad_request", "tempreature"),
        ({"prompt": "x", "messages": []}, "bad_request", "prompt"),
        ({"prompt": "word " * 5000}, "context_full", "expected 1 to 511 tokens"),
    ],
)
def test_a_bad_query_is_answered_in_one_line_and_the_next_one_well(house, query, code, says):
    with house.client() as client:
        answer = client.ask(NODE, query)
        assert answer["status"] == "error"
        assert answer["error"]["code"] == code
        assert says in answer["error"]["message"]
        assert "\n" not in answer["error"]["message"]
        assert client.ask(NODE, {**STORY, "max_tokens": 2})["status"] == "ok"


def test_ten_megabytes_are_refused_politely_and_forgotten(house):
    """MQTT 3.1.1 has the reply topic inside the payload, so the node's own reply topic gets it."""
    before_mib = rss_mib(house.daemon.pid)
    with house.client() as client:
        query_id = client.send(NODE, {"prompt": "x" * 10_000_000})
        if client.is_v5:
            answer = next(iter(client.answers(60)))
            assert answer["id"] == query_id
            assert answer["error"]["code"] == "too_large"
            assert "65536" in answer["error"]["message"]
        assert client.ask(NODE, {**STORY, "max_tokens": 2})["status"] == "ok"
    assert rss_mib(house.daemon.pid) < before_mib + 5


def test_it_tells_about_itself(house):
    where = ["--mqtt", f"127.0.0.1:{house.broker.port}", "--node", NODE]
    document = json.loads(edgeagent("status", *where, "--json"))
    assert document["state"] == {"state": "online"}
    assert document["info"]["model"]["name"] == "edge-tiny"
    assert document["health"]["uptime_s"] >= 0
    assert NODE in edgeagent("status", *where)


def test_it_stays_small(house):
    with house.client() as client:
        client.ask(NODE, STORY)
    assert rss_mib(house.daemon.pid) <= MAX_AGENT_MIB
    (engine,) = children(house.daemon.pid)
    assert rss_mib(engine) <= MAX_ENGINE_MIB
