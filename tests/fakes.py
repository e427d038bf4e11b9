"""Real implementations of our own interfaces, small enough to be read, for tests.

Run as a program (``python tests/fakes.py --fd N --model DIR ...``) this file is an engine: it
speaks the JSON lines of docs/protocol.md section 3, and the prompt tells it what to do:

    say 5            five tokens, then done
    slow 100 0.02    a hundred tokens, one every 0.02 s
    crash 3          three tokens, then SIGKILL to itself
    hang             one token, then silence for ever
    full             error context_full
    garbage          a line that is not JSON

The name of the model directory decides how it starts: ``broken*`` reports a wrong model, ``picky*``
refuses its settings, ``mute*`` says nothing, ``dies*`` exits, ``sick*`` fails its health suite,
``slow*`` takes a second,
``wrong*`` fails an example, ``falls*`` dies and ``numb*`` is silent when asked for its health,
``big*`` takes memory.  What comes after the last ``-`` is its version: ``good-1.1.0``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

ENGINE_COMMAND = (sys.executable, str(Path(__file__).resolve()))


class FakeEngine:
    """One engine at the end of its socket pair."""

    def __init__(self, sock: socket.socket, model: Path) -> None:
        self.sock = sock
        self.model = model
        self.file = sock.makefile("rb")
        self.version = model.name.rpartition("-")[2]
        self.stop_reason: str | None = None

    def send(self, **message) -> None:
        self.sock.sendall(json.dumps(message).encode() + b"\n")

    def run(self) -> None:
        name = self.model.name
        if name.startswith("broken"):
            self.send(event="failed", error={"code": "model", "message": "layer 3 is wrong"})
            return
        if name.startswith("picky"):
            self.send(event="failed", error={"code": "config", "message": "no kernel neon here"})
            return
        if name.startswith("mute"):
            time.sleep(60)
        if name.startswith("dies"):
            sys.exit(3)
        if name.startswith("slow"):
            time.sleep(1)
        self.send(
            event="ready",
            model={"name": "fake", "version": self.version, "root": "00", "path": str(self.model)},
            kernel="scalar",
            threads=1,
            context=128,
            load_ms=1.0,
            rss_mib=9.0 if name.startswith("big") else 1.0,
        )
        while line := self.file.readline():
            self.handle(json.loads(line))

    def handle(self, message) -> None:
        op = message["op"]
        if op == "generate":
            self.generate(message)
        elif op == "ping":
            self.send(event="pong", n=message["n"])
        elif op == "cancel":
            self.stop_reason = message["reason"]
        elif op == "health" and self.model.name.startswith("falls"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif op == "health" and self.model.name.startswith("numb"):
            pass
        elif op == "health" and self.model.name.startswith("wrong"):
            check = {"name": "example 1/1", "ok": False, "detail": "said no"}
            self.send(event="health", ok=False, checks=[check])
        elif op == "health":
            ok = not self.model.name.startswith("sick")
            checks = [{"name": "logits", "ok": ok, "detail": "" if ok else "hash differs"}]
            self.send(event="health", ok=ok, checks=checks)
        elif op == "quit":
            sys.exit(0)

    def generate(self, message) -> None:
        prompt = message.get("prompt") or message["messages"][-1]["content"]
        verb, *numbers = prompt.split()
        query = message["id"]
        if verb == "full":
            error = {"code": "context_full", "message": "129 tokens, 128 fit"}
            self.send(event="error", id=query, error=error)
            return
        if verb == "garbage":
            self.sock.sendall(b"garbage\n")
            return
        self.stop_reason = None
        count = int(numbers[0]) if numbers else 1
        pause_s = float(numbers[1]) if len(numbers) > 1 else 0.0
        words: list[str] = []
        while len(words) < count and self.stop_reason is None:
            words.append(f"{len(words)} ")
            self.send(event="token", id=query, text=words[-1])
            self.poll(pause_s)
        if verb == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "hang":
            time.sleep(60)
        self.send(
            event="done",
            id=query,
            text="".join(words),
            finish_reason=self.stop_reason or "stop",
            usage={"prompt_tokens": 3, "completion_tokens": len(words)},
            timings={"prefill_ms": 0.1, "decode_ms": 1.0, "tokens_per_s": self.speed()},
            skipped={"multiplications_fraction": 0.0, "bytes_fraction": 0.0},
        )

    def speed(self) -> float:
        """A busy board: the first measurements of anybody are poor."""
        self.n_answers += 1
        best = 500.0 if self.model.name.startswith("slow") else 950.0
        return best if self.n_answers > 2 else best / 4

    n_answers = 0

    def poll(self, pause_s: float) -> None:
        end_s = time.monotonic() + pause_s
        while True:
            left_s = max(0.0, end_s - time.monotonic())
            if not select.select([self.sock], [], [], left_s)[0]:
                return
            line = self.file.readline()
            if not line:
                sys.exit(0)
            self.handle(json.loads(line))


class FakePublisher:
    """Takes what is published; a test confirms it when it likes."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict, int]] = []
        self.acknowledged: list[object] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.confirms_at_once = True
        self.changed = asyncio.Event()

    def publish(self, topic, payload, *, qos=0, correlation=None):
        self.messages.append((topic, json.loads(payload), qos))
        self.changed.set()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if qos == 0 or self.confirms_at_once:
            done.set_result(None)
        else:
            self.waiting.append(done)
        return done

    def acknowledge(self, delivery) -> None:
        self.acknowledged.append(delivery)

    async def until(self, condition, timeout_s=10.0) -> None:
        """Wait for something to be published until ``condition()`` holds."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def finals(self) -> list[dict]:
        return [message for _, message, _ in self.messages if message.get("final")]


class FakeModels:
    """Which model is to run, as a list that reverting takes from."""

    def __init__(self, *paths: Path, fresh: bool = False) -> None:
        self.paths = list(paths)  # the last one is active
        self.fresh = fresh
        self.reverted: list[str] = []
        self.given_up: list[dict] = []

    def way_back(self):
        from edgeagent.engines import WayBack  # this file is the fake engine's program too

        return WayBack.SLOT if len(self.paths) > 1 else WayBack.NONE

    def active(self) -> Path:
        return self.paths[-1]

    def is_fresh(self) -> bool:
        return self.fresh

    def is_installed(self) -> bool:
        return len(self.paths) > 1

    def revert(self, reason: str, code: str) -> None:
        self.reverted.append(reason)
        version = self.paths.pop().name
        self.given_up.append({"root": version, "version": version, "code": code, "reason": reason})
        self.fresh = False

    def quarantine(self) -> list[dict]:
        return list(self.given_up)

    def forgive(self, what: str) -> list[dict]:
        from ota.errors import NothingToForgive

        lifted = [entry for entry in self.given_up if what in {"all", entry["version"]}]
        if not lifted:
            raise NothingToForgive(f"{what}: nothing is in quarantine here")
        self.given_up = [entry for entry in self.given_up if entry not in lifted]
        return lifted


class FakeSensors:
    """A board that draws a constant power, or one without sensors."""

    def __init__(self, power_w: float | None = None, temperature_c: float | None = None) -> None:
        self.power_w = power_w
        self.temperature_c = temperature_c

    def read(self, now_s: float):
        from edgeagent.power.samples import Sample

        values = {"power_w": self.power_w, "temperature_c": self.temperature_c}
        present = {name: value for name, value in values.items() if value is not None}
        return Sample(
            now_s,
            sources=dict.fromkeys(present, "measured: fake"),
            absent={name: "none here" for name in values if name not in present},
            **present,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--model", type=Path, required=True)
    arguments, _ = parser.parse_known_args()
    with socket.socket(fileno=arguments.fd) as end:
        FakeEngine(end, arguments.model).run()
