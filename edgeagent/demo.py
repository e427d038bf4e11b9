"""`edgeagent demo`: the whole product once, on this machine, with real parts.

A broker, the daemon, two questions over MQTT, then an update: the daemon starts on the release
before the bundled one, and the bundled release is shipped to it as a signed delta while questions
keep coming.  What happened is printed and left as JSON; what could not be measured is null.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeagent.client import Client
from edgeagent.demo_broker import DemoBroker
from edgeagent.errors import AdapterError, EdgeAgentError
from edgeagent.model.files import read_release
from edgeagent.paths import bundled_model, previous_release_delta
from edgeagent.protocol.topics import Topics

NODE = "demo"
COMMAND = "turn on the kitchen lights"
#: The release before the bundled one takes the genre for an artist: an update one can see.
IMPROVED = "play some jazz"
STORY = "Once upon a time, there was a little girl named Lily."
STORY_TOKENS = 80
COLLECT_S = 0.5  # between two looks whether there is anything left to wait for
READY_TIMEOUT_S = 60.0
UPDATE_TIMEOUT_S = 120.0
#: Gap between the questions that keep coming during the update: about 20 a second.
TRAFFIC_GAP_S = 0.05


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _edgeota(*words: str | Path) -> dict[str, Any]:
    """Run one `edgeota` command as an operator would; return its JSON."""
    command = [sys.executable, "-m", "ota.fleet.cli", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeAgentError(f"edgeota {words[0]}: {done.stderr.strip()}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def rebuild_previous(directory: Path) -> Path:
    """Make the release before the bundled one out of the bundled one and the delta back to it."""
    from ota.device.staging import unpack
    from ota.storage import Disk

    target = directory / "previous"
    target.mkdir()
    unpack(Disk(), previous_release_delta(), bundled_model(), target)
    return target


@dataclass
class Traffic:
    """Questions that keep coming while the model is updated."""

    client: Client
    sent: set[str] = field(default_factory=set)
    answered: dict[str, str] = field(default_factory=dict)  # id -> model version
    failed: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def send(self) -> None:
        """Send questions until told to stop."""
        while not self._stop.wait(TRAFFIC_GAP_S):
            query = {"messages": [{"role": "user", "content": COMMAND}], "max_tokens": 24}
            self.sent.add(self.client.send(NODE, query))

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()

    def collect(self) -> None:
        """Read final answers until every question has one."""
        last_s = time.monotonic()
        while not (self._stop.is_set() and len(self.answered) + len(self.failed) >= len(self.sent)):
            try:
                answer = next(iter(self.client.answers(COLLECT_S)))
            except AdapterError:
                if time.monotonic() - last_s > READY_TIMEOUT_S:
                    return
                continue  # all may be answered: then it is over
            last_s = time.monotonic()
            if answer.get("final") and answer["status"] == "ok":
                self.answered[answer["id"]] = answer["model"]["version"]
            elif answer.get("final"):
                self.failed.append(answer["error"]["message"])

    @property
    def dropped(self) -> int:
        """Questions without a good answer."""
        return len(self.sent) - len(self.answered)


class Demo:
    """One run; `report` is what becomes `demo.json`."""

    def __init__(self, directory: Path, broker: DemoBroker) -> None:
        self._directory = directory
        self._broker = broker
        self._topics = Topics(NODE)
        self.report: dict[str, Any] = {
            "broker": f"{broker.name} (MQTT {broker.protocol})",
            "answers": [],
            "temperature_c": None,
            "update": None,
        }

    def client(self) -> Client:
        """Return a new connection to the broker."""
        return Client("127.0.0.1", self._broker.port)

    def write_config(self, model: Path, root_file: str) -> Path:
        """Write the daemon's configuration."""
        path = self._directory / "edgeagent.toml"
        path.write_text(
            f'[node]\nname = "{NODE}"\n'
            f'[mqtt]\nhost = "127.0.0.1"\nport = {self._broker.port}\n'
            f'[model]\npath = "{model}"\n'
            f'[paths]\nstate_dir = "{self._directory / "state"}"\n'
            f"[telemetry]\ninterval_s = 1.0\n"
            f'[update]\nenabled = true\nrepo = "demo"\nroot_file = "{root_file}"\n'
        )
        return path

    def wait_for(self, client: Client, topic: str, key: str, value: Any, timeout_s: float) -> float:
        """Wait until the retained JSON on `topic` has `key` == `value`; return the seconds."""
        started_s = time.monotonic()
        while time.monotonic() - started_s < timeout_s:
            found = client.retained(topic, wait_s=1.0).get(topic, {})
            if found.get(key) == value:
                return time.monotonic() - started_s
            time.sleep(0.1)
        raise AdapterError(f"{topic}: expected {key} = {value} within {timeout_s:g} s")

    def ask(self, client: Client, label: str, query: dict[str, Any]) -> None:
        """Ask, show the answer as it streams, and note what it cost."""
        prompt = query.get("prompt") or query["messages"][-1]["content"]
        _say(f"\n{label}: {prompt}")
        answer = client.ask(NODE, query, on_text=_write)
        if answer["status"] != "ok":
            raise EdgeAgentError(f"{label}: {answer['error']['message']}")
        energy, timings = answer["energy"], answer["timings"]
        temperature_c = answer["thermal"]["temperature_c"]
        joules = energy["joules"]
        cost = f"{joules:.2f} J" if joules is not None else f"joules unknown: {energy['reason']}"
        heat = f"{temperature_c:.1f} °C" if temperature_c is not None else "°C unknown: no sensor"
        tokens = answer["usage"]["completion_tokens"]
        _say(f"\n  {tokens} tokens, {timings['tokens_per_s']} tokens/s, {heat}, {cost}")
        self.report["temperature_c"] = temperature_c
        self.report["answers"].append(
            {
                "prompt": prompt,
                "text": answer["text"],
                "tokens": tokens,
                "tokens_per_s": timings["tokens_per_s"],
                "energy_j": joules,
            }
        )

    def ask_both(self, client: Client) -> None:
        """Two commands, one story."""
        for command in (COMMAND, IMPROVED):
            self.ask(client, "command", {"messages": [{"role": "user", "content": command}]})
        story = {"prompt": STORY, "max_tokens": STORY_TOKENS, "temperature": 0.6, "seed": 7}
        self.ask(client, "story", story)

    def update(self, repo: Path, previous: Path) -> None:
        """Publish the bundled release and watch the daemon take it while questions keep coming."""
        new = read_release(bundled_model())
        _edgeota("release", repo, bundled_model())
        delta = _edgeota("delta", repo, previous, bundled_model())
        with self.client() as asking, self.client() as watching:
            traffic = Traffic(asking)
            threads = [threading.Thread(target=t) for t in (traffic.send, traffic.collect)]
            for thread in threads:
                thread.start()
            started_s = time.monotonic()
            try:
                _edgeota("publish", repo, "--mqtt", f"127.0.0.1:{self._broker.port}")
                topic = self._topics.model_state
                self.wait_for(watching, topic, "installed_version", new.version, UPDATE_TIMEOUT_S)
                seconds = time.monotonic() - started_s
            finally:
                traffic.stop()
                for thread in threads:
                    thread.join()
        by_version = {
            v: list(traffic.answered.values()).count(v) for v in traffic.answered.values()
        }
        old = read_release(previous)
        self.report["update"] = {
            "from": old.version,
            "to": new.version,
            "delta_bytes": delta["bytes"],
            "full_bytes": new.n_bytes,
            "seconds": round(seconds, 2),
            "dropped_queries": traffic.dropped,
        }
        _say(
            f"\nupdate: {new.name} {old.version} -> {new.version} in {seconds:.1f} s\n"
            f"  delta {delta['bytes']:,} bytes, full model {new.n_bytes:,} bytes\n"
            f"  {len(traffic.sent)} questions meanwhile, {traffic.dropped} dropped; "
            f"answered by {', '.join(f'{v}: {n}' for v, n in sorted(by_version.items()))}"
        )


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _run(demo: Demo, directory: Path, broker: DemoBroker) -> None:
    address = f"127.0.0.1:{broker.port}"
    previous, repo = rebuild_previous(directory), directory / "repo"
    root_file = _edgeota("init", repo, "--name", "demo")["root_file"]
    _edgeota("release", repo, previous)
    _edgeota("publish", repo, "--mqtt", address)
    config = demo.write_config(previous, root_file)
    daemon = [sys.executable, "-m", "edgeagent.cli", "run", "--config", str(config)]
    server = [sys.executable, "-m", "ota.fleet.cli", "serve", str(repo), "--mqtt", address]
    with ExitStack() as stack:
        stack.enter_context(_process(server, directory / "serve.log"))
        stack.enter_context(_process(daemon, directory / "daemon.log"))
        client = stack.enter_context(demo.client())
        ready_s = demo.wait_for(client, Topics(NODE).state, "state", "online", READY_TIMEOUT_S)
        _say(f"daemon: ready after {ready_s:.1f} s")
        demo.ask_both(client)
        demo.update(repo, previous)
        demo.ask_both(client)


def run(out: Path, broker_kind: str) -> int:
    """Run the demo; write the report to `out` and return an exit code."""
    directory = Path(tempfile.mkdtemp(prefix="edgeagent-demo-"))
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    try:
        with DemoBroker(broker_kind, directory) as broker:
            _say(f"broker: {broker.name}, MQTT {broker.protocol}, port {broker.port}")
            demo = Demo(directory, broker)
            _run(demo, directory, broker)
    except EdgeAgentError:
        _say(f"the logs are in {directory}")
        raise
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(demo.report, indent=1, ensure_ascii=False) + "\n")
    _say(f"\nreport: {out}")
    import shutil

    shutil.rmtree(directory)
    return 0
