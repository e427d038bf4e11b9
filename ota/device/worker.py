"""The updater process: ``python -m ota.device.worker --fd N`` (``docs/protocol.md`` section 4).

A short-lived child of the agent, so that metadata and containers from outside are never parsed in
the agent and their memory is given back.  It speaks JSON lines on the inherited socket and may be
killed at any moment; the next one goes on.  It leaves when the socket closes, and the kernel ends
it when the agent dies.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import queue
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ota.conditions import Samples, parse_limits, parse_samples
from ota.device.dir_source import DirSource
from ota.device.flash import CountingCalls, FlashLedger
from ota.device.http_source import HttpSource
from ota.device.journal import load_journal, save_journal
from ota.device.mqtt_source import MqttSource
from ota.device.source import Source
from ota.device.store import Store
from ota.device.updater import Board, Updater, Verdict
from ota.errors import Busy, Cancelled, ConfigError, RootMissing, StorageError, UpdateError
from ota.mqtt import Broker, Tls
from ota.reasons import REASONS
from ota.retry import uncounted_after_s
from ota.storage import Disk, typed_errors
from ota.wire import is_reply_topic, is_repo, reply_topic

MAX_LINE_BYTES = 1 << 20  # the limit of every link between our processes
POLL, CANCEL, REBUILD = "poll", "cancel", "rebuild"
ANSWER_S = 10.0  # for the agent to read its sensors; then what it said last holds
MAX_ROOT_BYTES = 1 << 18  # root metadata with a few hundred keys
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True, slots=True)
class Start:
    """The first line from the agent."""

    state_dir: Path
    bundled_dir: Path
    root_file: Path
    repo: str
    node: str
    board: Board
    broker: Broker | None
    directory: Path | None
    """A repository on a medium, instead of a broker."""
    flash_budget_bytes: int | None = None
    """What updates may write a day."""
    http: HttpSource | None = None
    """A repository on a web server, instead of a broker."""
    action: str = ""
    """``poll`` for a look of its own accord, ``cancel``, ``rebuild`` for the model before the
    active one; anything else is somebody's request."""


def parse_start(line: bytes) -> Start:
    """Read the first line.

    Raises:
        ConfigError: a field is missing or has the wrong type.
    """
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or fields.get("op") != "start":
        raise ConfigError(f'expected {{"op": "start", ...}}, got {line[:60]!r}')
    repo, node = _text(fields, "repo"), _text(fields, "node")
    if not is_repo(repo) or not is_reply_topic(reply_topic(repo, node), repo):
        raise ConfigError(f"expected repo and node to be one topic level, got {repo!r}, {node!r}")
    directory, http = fields.get("directory"), fields.get("http")
    needs_broker = directory is None and http is None
    return Start(
        Path(_text(fields, "state_dir")),
        Path(_text(fields, "bundled_dir")),
        Path(_text(fields, "root_file")),
        repo,
        node,
        Board(
            _text(fields, "hardware"),
            _text(fields, "agent_version"),
            parse_limits(fields.get("limits")),
            fields.get("action", "install") != POLL,
            _parse_seconds(fields.get("shrink_after_s")),
        ),
        _parse_broker(fields.get("mqtt")) if needs_broker else None,
        None if directory is None else Path(_text(fields, "directory")),
        _parse_budget(fields.get("flash_budget_bytes")),
        None if http is None else _parse_http(http),
        str(fields.get("action", "")),
    )


class AgentLink:
    """The socket to the agent; a thread listens, so that a cancel is heard at any time."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._input = link.makefile("rb")
        self._verdicts: queue.SimpleQueue[Verdict | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._is_quiet = threading.Event()
        self._samples = Samples()
        self._has_samples = threading.Event()
        self._can_ask = self._is_cancelled = False

    def read_start(self) -> Start:
        """Read the first line, then listen in the background."""
        line = self._input.readline(MAX_LINE_BYTES)
        start = parse_start(line)
        conditions = json.loads(line).get("conditions")
        self._samples, self._can_ask = parse_samples(conditions), conditions is not None
        threading.Thread(target=self._listen, name="agent", daemon=True).start()
        return start

    def report(self, event: Mapping[str, Any]) -> None:
        """Tell the agent something; if it is gone there is nobody to tell, and we stop."""
        try:
            self._link.sendall(json.dumps(event).encode() + b"\n")
        except OSError:
            self._stop.set()

    def verdict(self) -> Verdict:
        """Wait for the verdict on the slot; raises ``Cancelled`` if there will be none."""
        verdict = self._verdicts.get()
        if verdict is None:
            raise Cancelled("asked to stop during the trial; it is repeated at the next start")
        return verdict

    def quiesce(self) -> None:
        """Ask the agent to stop its engine and wait until it has."""
        self._is_quiet.clear()
        self.report({"event": "quiesce"})
        self._is_quiet.wait()
        self.check_stop()

    def check_stop(self) -> None:
        """Raise ``Cancelled`` if the agent wants us to stop."""
        if self.is_stopped():
            raise Cancelled("asked to stop; what was done is kept")

    def samples(self) -> Samples:
        """Return what the device is like now; an agent that began with conditions is asked."""
        if self._can_ask:
            self._has_samples.clear()
            self.report({"event": "conditions"})
            self._has_samples.wait(ANSWER_S)
            self.check_stop()
        return self._samples

    def wants_cancel(self) -> bool:
        """Say whether somebody asked to give this release up, not merely to stop for now."""
        return self._is_cancelled

    def is_stopped(self) -> bool:
        """Say whether the agent wants us to stop, or is gone."""
        return self._stop.is_set()

    def _listen(self) -> None:
        while line := self._next_line():
            match _load(line):
                case {"op": "cancel", **rest}:
                    self._is_cancelled = rest.get("for_good") is True
                    break
                case {"op": "quiet"}:
                    self._is_quiet.set()
                case {"op": "conditions", **rest}:
                    self._samples = parse_samples(rest)
                    self._has_samples.set()
                case {"op": "trial", "ok": bool(is_good), **rest}:
                    self._verdicts.put(_verdict(is_good, rest))
        self._stop.set()
        self._is_quiet.set()
        self._has_samples.set()
        self._verdicts.put(None)

    def _next_line(self) -> bytes:
        try:
            return self._input.readline(MAX_LINE_BYTES)
        except OSError:
            return b""


def run_worker(link: socket.socket) -> int:
    """Run one update for the agent at the other end of ``link``; returns the exit code."""
    agent = AgentLink(link)
    try:
        start = agent.read_start()
        if start.action == CANCEL:
            _cancel(start.state_dir / "ota")
        if start.action == REBUILD:
            _rebuild(start, agent)
            return os.EX_OK
        with _only_worker(start.state_dir / "ota"), _open_source(start, agent) as source:
            calls = CountingCalls()
            storage = Disk(calls)
            store = Store(start.state_dir, start.bundled_dir, storage)
            root = _read_root(start.root_file)
            path = start.state_dir / "ota" / "flash.json"
            ledger = FlashLedger(storage, path, calls, start.flash_budget_bytes)
            error = Updater(
                start.state_dir, store, source, storage, root, start.board, agent, ledger
            ).run()
    except UpdateError as err:
        agent.report(
            {
                "event": "failed",
                "code": err.code,
                "message": str(err),
                "retry_after_s": _after_s(err),
            }
        )
        return err.exit_code
    return os.EX_OK if error is None else error.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the worker on an inherited socket."""
    parser = argparse.ArgumentParser(prog="ota.device.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the agent")
    args = parser.parse_args(argv)
    _die_with_parent()
    with socket.socket(fileno=args.fd) as link:
        return run_worker(link)


def _verdict(is_good: bool, fields: Mapping[Any, Any]) -> Verdict:
    code = str(fields.get("code", ""))
    known = code if code in REASONS else "health_failed"
    return Verdict(is_good, str(fields.get("reason", "")), "" if is_good else known)


@contextmanager
def _only_worker(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: python-tuf's store and the payload have one owner."""
    Disk().make_directory(directory)
    path = directory / "lock"
    with typed_errors(path), path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{path}: another worker is running; wait for it to end") from None
        yield


def _cancel(directory: Path) -> None:
    """Give up the release that an earlier worker left unfinished; a later one is not held."""
    with _only_worker(directory):
        path = directory / "update.json"
        journal = load_journal(path)
        journal.cancelled = journal.root
        save_journal(Disk(), path, journal)
    raise Cancelled("cancelled on request; what was fetched is kept")


def _rebuild(start: Start, agent: AgentLink) -> None:
    """Make the model before the active one from its delta; no network is asked for anything."""
    began_s, calls = time.monotonic(), CountingCalls()
    with _only_worker(start.state_dir / "ota"):
        store = Store(start.state_dir, start.bundled_dir, Disk(calls))
        store.rebuild_previous(agent.check_stop)
        ledger = FlashLedger(Disk(calls), start.state_dir / "ota" / "flash.json", calls, None)
        n_bytes = ledger.settle(time.time())
    agent.report(
        {
            "event": "rebuilt",
            "written_bytes": n_bytes,
            "seconds": round(time.monotonic() - began_s, 3),
        }
    )


def _open_source(start: Start, agent: AgentLink) -> Source:
    if start.http is not None:
        start.http.is_stopped = agent.is_stopped
        return start.http
    if start.broker is None:
        return DirSource(start.directory or Path())
    return MqttSource(start.broker, start.repo, start.node, agent.is_stopped)


def _after_s(err: UpdateError) -> float | None:
    """Return when to try again after a failure that there was no journal yet to count in."""
    if isinstance(err, StorageError):
        return uncounted_after_s(err.code, random.random())
    return err.retry_after_s


def _read_root(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_ROOT_BYTES)
    except OSError as err:
        raise RootMissing(f"{path}: {err.strerror}; expected the repository's 1.root.json") from err


def _parse_broker(fields: Any) -> Broker:
    if not isinstance(fields, dict):
        raise ConfigError("expected mqtt, directory or http, got none")
    port, username, password = (fields.get(key) for key in ("port", "username", "password"))
    if type(port) is not int:
        raise ConfigError(f"expected mqtt.port to be a number, got {port!r}")
    return Broker(
        _text(fields, "host"),
        port,
        None if username is None else str(username),
        None if password is None else str(password),
        fields.get("protocol") or "auto",
        _parse_tls(fields.get("tls")),
    )


def _parse_budget(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise ConfigError(f"expected flash_budget_bytes to be a number or null, got {value!r}")
    return value


def _parse_seconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ConfigError(f"expected shrink_after_s to be a number or null, got {value!r}")
    return float(value)


def _parse_http(fields: Any) -> HttpSource:
    if not isinstance(fields, dict):
        raise ConfigError(f"expected http to be an object with a url, got {fields!r}")
    tls = _parse_tls(fields.get("tls"))
    return HttpSource(_text(fields, "url"), None if tls is None else tls.context())


def _parse_tls(fields: Any) -> Tls | None:
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise ConfigError(f"expected mqtt.tls to be an object or null, got {fields!r}")
    files = (fields.get(name) for name in ("ca_file", "cert_file", "key_file"))
    return Tls(*(None if path is None else str(path) for path in files))


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"expected {key} to be a string, got {value!r}")
    return value


def _load(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _die_with_parent() -> None:
    """Ask the kernel to kill us when the agent dies; the closed socket says it too, but later."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
