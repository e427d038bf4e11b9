"""Plays the agent: starts the real worker over a socket pair and answers it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ota.device.store import Store
from ota.fleet.repository import Repository
from tests.ota.models import Shape, flip, random_shards, write_model

REPO_ROOT = Path(__file__).resolve().parents[2]
LINE_TIMEOUT_S = 60.0
ENDS = {"up_to_date", "committed", "rolled_back", "failed"}


@dataclass
class Fleet:
    """An operator's directory with two releases of one model and the delta between them."""

    path: Path
    repo: Repository
    old: Path
    new: Path

    @property
    def root_file(self) -> Path:
        return self.repo.path / "metadata" / "1.root.json"


def make_fleet(path: Path, rate: float = 0.02, shape: Shape | None = None) -> Fleet:
    """Release 1.0.0, then 1.1.0 with the delta, and publish."""
    shards = random_shards(1, shape or Shape())
    old = write_model(path / "old", shards, version="1.0.0", counter=1)
    new = write_model(path / "new", flip(shards, rate, 2), version="1.1.0", counter=2)
    repo = Repository.create(path / "repo", "tests", None)
    repo.add_release(old)
    repo.add_release(new)
    repo.add_delta("1.0.0", "1.1.0")
    repo.publish()
    return Fleet(path, repo, old, new)


class Device:
    """A device whose bundled model is the fleet's old release."""

    def __init__(self, path: Path, fleet: Fleet, **start: Any) -> None:
        self.state_dir = path
        self.bundled = fleet.old
        self.start = {
            "op": "start",
            "state_dir": str(path),
            "bundled_dir": str(fleet.old),
            "repo": fleet.repo.name,
            "node": "dev1",
            "root_file": str(fleet.root_file),
            "hardware": "test-board",
            "agent_version": "0.1.0",
            **start,
        }

    @property
    def store(self) -> Store:
        return Store(self.state_dir, self.bundled)

    def worker(self, **start: Any) -> Worker:
        worker = Worker()
        worker.send(self.start | start)
        return worker

    def update(self, *, is_good: bool = True, reason: str = "", **start: Any) -> list[dict]:
        """Run one worker to its end and return everything it said."""
        with self.worker(**start) as worker:
            return worker.play(is_good=is_good, reason=reason)


class Worker:
    """One worker process, seen from the agent."""

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair()
        self.link.settimeout(LINE_TIMEOUT_S)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ota.device.worker", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=REPO_ROOT,
            )
        self._input = self.link.makefile("rb")

    def send(self, message: dict) -> None:
        self.link.sendall(json.dumps(message).encode() + b"\n")

    def read(self) -> dict | None:
        """Return the next event; None when the worker is gone."""
        try:
            line = self._input.readline()
        except ConnectionResetError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def read_until(self, event: str, state: str | None = None) -> dict:
        while (said := self.read()) is not None:
            if said["event"] == event and state in (None, said.get("state")):
                return said
            assert said["event"] not in ENDS, said
        raise AssertionError(f"the worker ended before {event}")

    def play(self, *, is_good: bool = True, reason: str = "") -> list[dict]:
        said = []
        while (event := self.read()) is not None:
            said.append(event)
            if event["event"] == "staged":
                self.send({"op": "trial", "ok": is_good, "reason": reason})
        self.process.wait(LINE_TIMEOUT_S)
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LINE_TIMEOUT_S)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._input.close()
        self.link.close()
        try:
            self.process.wait(LINE_TIMEOUT_S)
        finally:
            self.process.kill()
            self.process.wait()
