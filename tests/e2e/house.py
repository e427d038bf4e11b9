"""A whole house for a test: broker, repository, chunk server and daemon, all real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from edgeagent.client import Client
from edgeagent.errors import AdapterError
from edgeagent.protocol.topics import Topics

NODE = "house"
TIMEOUT_S = 60


def edgeota(*words):
    command = [sys.executable, "-m", "ota.fleet.cli", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class House:
    """One device with model `model`, following the repository `repo` if there is one."""

    def __init__(self, directory: Path, broker, model: Path, *, root_file=None, settings=""):
        self.directory, self.broker, self.model = directory, broker, model
        self.topics = Topics(NODE)
        self.state_dir = directory / "state"
        self.processes: list[subprocess.Popen] = []
        update = (
            f'repo = "house"\nroot_file = "{root_file}"\n' if root_file else "enabled = false\n"
        )
        self.config = directory / "edgeagent.toml"
        self.config.write_text(
            f'[node]\nname = "{NODE}"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n'
            f'[model]\npath = "{model}"\n[paths]\nstate_dir = "{self.state_dir}"\n'
            f"[telemetry]\ninterval_s = 1.0\n[update]\n{update}{settings}"
        )
        self.log = directory / "daemon.log"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(TIMEOUT_S)

    def start(self, *words) -> subprocess.Popen:
        with self.log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *map(str, words)], stdout=out, stderr=out
            )
        self.processes.append(process)
        return process

    def start_daemon(self) -> subprocess.Popen:
        process = self.start("edgeagent.cli", "run", "--config", self.config)
        self.wait_for(self.topics.state, state="online")
        return process

    def serve(self, repo: Path) -> subprocess.Popen:
        return self.start("ota.fleet.cli", "serve", repo, "--mqtt", f"127.0.0.1:{self.broker.port}")

    def client(self) -> Client:
        return Client("127.0.0.1", self.broker.port)

    def wait_for(self, topic, timeout_s=TIMEOUT_S, **want):
        """Wait until the retained JSON on `topic` holds `want`; return it."""
        end_s, found = time.monotonic() + timeout_s, None
        with self.client() as client:
            while time.monotonic() < end_s:
                with suppress(AdapterError):  # a broker that has no time to answer: ask again
                    found = client.retained(topic, wait_s=1.0).get(topic, {})
                if found is not None and want.items() <= found.items():
                    return found
        raise AssertionError(
            f"{topic}: wanted {want}, last {found}\n{self.log.read_text()[-3000:]}"
        )

    def kill_daemon(self, process):
        process.send_signal(signal.SIGKILL)
        process.wait(TIMEOUT_S)
        self.processes.remove(process)


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
