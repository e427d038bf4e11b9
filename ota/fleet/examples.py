"""A release's own examples, asked of the engine before the release is signed.

The engine is a program beside this one (``python -m edgeagent.engine``, ``docs/protocol.md``
section 3).  Where it is not installed, devices are the first to ask.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from ota.errors import ExampleFailed
from ota.release import Release

TIMEOUT_S = 600.0  # sixteen answers of 128 tokens at four tokens a second
MAX_LINE_BYTES = 1 << 20
ENGINE = "edgeagent.engine"


def check_examples(path: Path, release: Release) -> bool:
    """Let an engine answer the examples of the model at ``path``; False: it could not be asked.

    Raises:
        ExampleFailed: an answer is not the expected one, or the model does not load.
    """
    if not release.health.examples or importlib.util.find_spec("edgeagent") is None:
        return False
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(TIMEOUT_S)
        command = [sys.executable, "-m", ENGINE, "--fd", str(theirs.fileno()), "--model", str(path)]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as engine:
            theirs.close()
            try:
                _ask(ours, path)
            except OSError as err:
                raise ExampleFailed(f"{path}: the engine did not answer: {err}") from err
            finally:
                engine.kill()
    return True


def _ask(link: socket.socket, path: Path) -> None:
    with link.makefile("rb") as lines:
        ready = _line(lines)
        if ready.get("event") != "ready":
            why = ready.get("error", {}).get("message", "the engine ended")
            raise ExampleFailed(f"{path}: expected a model that loads, got: {why}")
        link.sendall(b'{"op": "health"}\n')
        checks = _line(lines).get("checks")
    if checks is None:
        raise ExampleFailed(f"{path}: the engine ended before it had answered")
    for check in checks:
        if check["name"].startswith("example") and not check["ok"]:
            raise ExampleFailed(
                f"{path}: {check['name']}: {check['detail']}; correct health.examples or the model"
            )


def _line(lines: IO[bytes]) -> dict[str, Any]:
    line = lines.readline(MAX_LINE_BYTES)
    return dict(json.loads(line)) if line.endswith(b"\n") else {}
