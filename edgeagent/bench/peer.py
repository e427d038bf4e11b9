"""Another engine as a worker process that answers one measurement at a time.

The protocol is JSON lines, as the docstring of bench/peers.py defines it.  A worker sleeps between
two requests, so that runs can alternate.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
from typing import IO, Any, cast

from edgeagent.errors import AdapterError, ConfigError

_NAMED = re.compile(r"([A-Za-z0-9][\w .+-]*)=(.*)", re.DOTALL)
#: After being told to leave; a worker has nothing to finish.
LEAVE_S = 10.0


def split_command(text: str) -> tuple[str | None, list[str]]:
    """Return name and command of `[NAME=]COMMAND`.

    Raises:
        ConfigError: there is no command, or its quotes do not close.
    """
    named = _NAMED.fullmatch(text)
    name, command = (named[1].strip(), named[2]) if named else (None, text)
    try:
        words = shlex.split(command)
    except ValueError as err:
        raise ConfigError(f"--peer {text!r}: {err}") from err
    if not words:
        raise ConfigError(f"--peer {text!r}: expected [NAME=]COMMAND")
    return name, words


class Peer:
    """One worker; a context manager, so that it never outlives the bench."""

    def __init__(self, text: str) -> None:
        """Start the worker; `wait` for it before the first request."""
        name, command = split_command(text)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as err:
            raise AdapterError(f"peer {command[0]}: {err.strerror}") from err
        self._to, self._from = (
            cast(IO[str], self._process.stdin),
            cast(IO[str], self._process.stdout),
        )
        self.name = name or command[0]
        self._is_named = name is not None
        self.facts: dict[str, Any] = {}

    def wait(self) -> None:
        """Wait until the worker has loaded its model.

        Raises:
            AdapterError: it could not.
        """
        self.facts = self._read()
        if self.facts.get("event") != "ready":
            raise AdapterError(f"peer {self.name}: expected ready, got {self.facts}")
        if not self._is_named:
            model = str(self.facts.get("model", "")).split()
            self.name = " ".join([str(self.facts.get("name", self.name)), *model[-1:]])

    def ask(self, op: str, **arguments: int) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            AdapterError: the worker refuses it or has died.
        """
        try:
            self._to.write(json.dumps({"op": op, **arguments}) + "\n")
            self._to.flush()
        except OSError as err:
            raise AdapterError(f"peer {self.name}: has died") from err
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._from.readline()
        if not line:
            code = self._process.wait()
            raise AdapterError(f"peer {self.name}: ended with exit code {code}")
        try:
            answer = json.loads(line)
        except ValueError as err:
            raise AdapterError(f"peer {self.name}: expected JSON, got {line[:80]!r}") from err
        if not isinstance(answer, dict) or "error" in answer:
            raise AdapterError(f"peer {self.name}: {answer}")
        return answer

    def close(self) -> None:
        """Let the worker leave."""
        with contextlib.suppress(OSError):  # it has left already
            self._to.close()
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._from.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
