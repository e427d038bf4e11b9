"""`edgeagent demo` is the product's promise: both brokers, exit 0, and a report without holes."""

import json
import os
import subprocess
import sys

import pytest

from edgeagent.model.files import read_release
from edgeagent.paths import bundled_model

pytestmark = pytest.mark.system


@pytest.mark.parametrize(("broker", "protocol"), [("mosquitto", "5"), ("amqtt", "3.1.1")])
def test_the_demo_runs_with_both_brokers(request, tmp_path, broker, protocol):
    if broker == "mosquitto":
        request.getfixturevalue("mosquitto")
    out = tmp_path / "demo.json"
    command = [sys.executable, "-m", "edgeagent.cli", "demo", "--broker", broker, "--out", str(out)]
    # Debian puts Mosquitto where only root's PATH leads.
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert set(report) == {"broker", "answers", "temperature_c", "update"}
    assert report["broker"] == f"{broker} (MQTT {protocol})"
    for answer in report["answers"]:
        assert set(answer) == {"prompt", "text", "tokens", "tokens_per_s", "energy_j"}
        assert answer["text"]
        assert answer["tokens"] > 0
        assert answer["text"].strip() in done.stdout
    command_answer = json.loads(report["answers"][0]["text"])
    assert set(command_answer) == {"intent", "slots"}
    update = report["update"]
    assert update["to"] == read_release(bundled_model()).version
    assert update["from"] != update["to"]
    assert 0 < update["delta_bytes"] < update["full_bytes"] / 2
    assert update["dropped_queries"] == 0
