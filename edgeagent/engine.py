"""The engine process: JSON lines in, tokens out (docs/protocol.md, section 3).

It opens no network and no device: a model directory and one socket are all it has.  A crash here
costs one query, not the agent.  One query runs at a time; between two tokens the socket is read, so
that a cancel or a ping never waits for an answer to end.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from edgeagent.cpus import parse_cpus
from edgeagent.errors import EX_OK, ConfigError, EdgeAgentError, ModelError
from edgeagent.model.generation import LoadedModel, Params
from edgeagent.pace import check_duty, rest_s

#: A query is at most 64 KiB of text; JSON escaping can grow that six-fold.
MAX_LINE_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1


class LinkClosed(Exception):
    """The agent has gone."""


class Link:
    """The engine's end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    def send(self, message: dict[str, Any]) -> None:
        """Write one message."""
        try:
            self._sock.sendall(json.dumps(message, ensure_ascii=False).encode() + b"\n")
        except OSError as err:
            raise LinkClosed from err

    def wait(self, timeout_s: float) -> bool:
        """Wait for the next bytes; say whether some came in time."""
        return bool(self._buffer) or bool(select.select([self._sock], [], [], timeout_s)[0])

    def receive(self, *, wait: bool) -> dict[str, Any] | None:
        """Return the next message; None when there is none and `wait` is false.

        Raises:
            LinkClosed: end of file, or the peer does not speak JSON lines.
        """
        while b"\n" not in self._buffer:
            if not wait and not select.select([self._sock], [], [], 0)[0]:
                return None
            data = self._sock.recv(1 << 16)
            if not data or len(self._buffer) > MAX_LINE_BYTES:
                raise LinkClosed
            self._buffer += data
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            message = json.loads(line)
        except ValueError as err:
            raise LinkClosed from err
        if not isinstance(message, dict):
            raise LinkClosed
        return message


class Engine:
    """Answers the agent's messages with one loaded model."""

    def __init__(self, link: Link, model: LoadedModel) -> None:
        self._link = link
        self._model = model
        self._waiting: deque[dict[str, Any]] = deque()
        self._query: str | None = None
        self._stop_reason: str | None = None
        self._leave = False
        self._duty = 1.0

    def run(self) -> None:
        """Serve until the agent says quit or goes away."""
        while not self._leave:
            message = self._waiting.popleft() if self._waiting else self._link.receive(wait=True)
            if message is not None:
                self._handle(message)

    def _handle(self, message: dict[str, Any]) -> None:
        op = message.get("op")
        if op == "generate":
            self._generate(message)
        elif op == "health":
            checks = self._model.check_health()
            ok = all(check["ok"] for check in checks)
            self._link.send({"event": "health", "ok": ok, "checks": checks})
        elif op == "adapter":
            self._link.send({"event": "adapter", **self._swap(message.get("path"))})
        else:
            self._control(message)

    def _swap(self, path: Any) -> dict[str, Any]:
        """Use the adapter in `path`, or none; what is refused changes nothing."""
        try:
            if path is not None and not isinstance(path, str):
                raise ModelError(f"adapter: expected a directory or null, got {path!r}")
            self._model.set_adapter(None if path is None else Path(path))
        except EdgeAgentError as err:
            return {"ok": False, "path": path, "error": {"code": err.code, "message": str(err)}}
        return {"ok": True, "path": path}

    def _control(self, message: dict[str, Any]) -> None:
        """Handle what may come in the middle of an answer."""
        op = message.get("op")
        if op == "ping":
            self._link.send({"event": "pong", "n": message.get("n")})
        elif op == "cancel":
            if message.get("id") == self._query:
                self._stop_reason = message.get("reason", "cancelled")
        elif op == "threads":
            self._model.session.threads = int(message["n"])
        elif op == "pace":
            self._duty = check_duty(float(message["duty"]))
        elif op == "quit":
            self._leave, self._stop_reason = True, "cancelled"
        else:
            self._waiting.append(message)  # generate, health, adapter: after the running query

    def _poll(self) -> str | None:
        while (message := self._link.receive(wait=False)) is not None:
            self._control(message)
        return self._stop_reason

    def _rest(self, busy_s: float) -> str | None:
        """Rest as the pace demands, awake to the socket; return why to stop."""
        end_s = time.monotonic() + rest_s(busy_s, self._duty)
        reason = self._poll()
        while reason is None and (left_s := end_s - time.monotonic()) > 0:
            self._link.wait(left_s)
            reason = self._poll()
        return reason

    def _generate(self, message: dict[str, Any]) -> None:
        query = str(message.get("id"))
        self._query, self._stop_reason = query, None
        try:
            ids = self._model.encode(message.get("prompt"), message.get("messages"))
            steps = self._model.generate(ids, Params.from_mapping(message.get("params", {})))
            try:
                started_s = time.monotonic()
                text = next(steps)
                while True:
                    busy_s = time.monotonic() - started_s
                    if text:
                        self._link.send({"event": "token", "id": query, "text": text})
                    reason = self._rest(busy_s)
                    started_s = time.monotonic()
                    text = steps.send(reason)
            except StopIteration as end:
                self._link.send({"event": "done", "id": query, **end.value.as_messages()})
        except EdgeAgentError as err:
            error = {"code": err.code, "message": str(err)}
            self._link.send({"event": "error", "id": query, "error": error})
        except (ValueError, TypeError) as err:
            error = {"code": "bad_request", "message": str(err)}
            self._link.send({"event": "error", "id": query, "error": error})
        finally:
            self._query = None


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _die_with_parent() -> None:
    # The agent may be killed without a word; an orphan would keep the model in memory.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        raise LinkClosed
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold people's prompts
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C in a terminal is for the agent


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgeagent.engine")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernel")
    parser.add_argument("--no-zero-skip", dest="zero_skip", action="store_false")
    parser.add_argument("--kv-bits", type=int, default=16)
    parser.add_argument("--kv-group-size", type=int, default=64)
    parser.add_argument("--cpus", default="")
    return parser.parse_args(argv)


def _pin(cpus: str) -> None:
    """Keep this process, and the threads it will make, on some CPUs."""
    wanted = parse_cpus(cpus)
    if not wanted:
        return
    try:
        os.sched_setaffinity(0, wanted)
    except OSError as err:
        have = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        raise ConfigError(
            f"engine.cpus: {cpus}: {err.strerror}; this process may use {have}"
        ) from err


def _load(args: argparse.Namespace) -> LoadedModel:
    try:
        return LoadedModel(
            args.model,
            threads=args.threads,
            kernel=args.kernel,
            zero_skip=args.zero_skip,
            kv_bits=args.kv_bits,
            kv_group_size=args.kv_group_size,
        )
    except ValueError as err:
        raise ConfigError(str(err)) from err


def _ready(model: LoadedModel, threads: int, started_s: float) -> dict[str, Any]:
    release = model.release
    return {
        "event": "ready",
        "model": {
            "name": release.name,
            "version": release.version,
            "root": release.root,
            "path": str(model.path),
        },
        "kernel": model.core.kernel,
        "threads": threads,
        "context": model.session.context,
        "load_ms": round((time.perf_counter() - started_s) * 1e3, 1),
        "rss_mib": _rss_mib(),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the engine on an inherited socket; return a sysexits code."""
    started_s = time.perf_counter()
    args = _parse(sys.argv[1:] if argv is None else argv)
    link = Link(socket.socket(fileno=args.fd))
    try:
        _die_with_parent()
        try:
            _pin(args.cpus)
            model = _load(args)
        except EdgeAgentError as err:
            link.send({"event": "failed", "error": {"code": err.code, "message": str(err)}})
            return err.exit_code
        link.send(_ready(model, args.threads, started_s))
        Engine(link, model).run()
    except LinkClosed:
        pass
    return EX_OK


if __name__ == "__main__":
    sys.exit(main())
