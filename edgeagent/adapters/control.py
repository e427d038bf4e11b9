"""The agent's own door on this machine: a socket in the file system, and the lock that names it.

One JSON line in, one JSON line out, one request a connection.  Who may open the socket is decided
by the file system: it belongs to the agent's user, so that user and root may.  It works without a
broker and without a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeagent.errors import AdapterError

log = logging.getLogger(__name__)

LOCK_FILE = "agent.lock"
MAX_LINE_BYTES = 1 << 16
"""A history of 200 entries fits; a request has a hundred bytes."""

PATIENCE_S = 5.0
"""For one line, from somebody on the same machine."""

Handler = Callable[[dict[str, Any]], dict[str, Any]]


class Control:
    """Answers requests while the agent runs.

    Args:
        path: of the socket; None: there is none
        handle: gives the answer to a request
        beat: called at every turn
        wake_s: the longest turn
    """

    def __init__(
        self, path: Path | None, handle: Handler, beat: Callable[[], None], wake_s: float
    ) -> None:
        self._path = path
        self._handle = handle
        self._beat = beat
        self._wake_s = wake_s

    async def run(self) -> None:
        """Listen until cancelled; where no socket can be made, the agent goes on without."""
        server: asyncio.Server | None = None
        if self._path is not None:
            try:
                listening = _listen(self._path)
                server = await asyncio.start_unix_server(
                    self._serve, sock=listening, limit=MAX_LINE_BYTES
                )
            except OSError as err:
                why = err.strerror or str(err)
                log.warning("control.closed path=%s reason=%r", self._path, why)
        try:
            while True:
                self._beat()
                await asyncio.sleep(self._wake_s)
        finally:
            if server is not None and self._path is not None:
                server.close()
                self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                writer.write(_line(self._answer(await _read(reader))))
                await writer.drain()
        writer.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            return {"status": "error", "error": f"expected a JSON object, got {line[:40]!r}"}
        return self._handle(request)


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:
        return b"a line that is too long"


def ask(path: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Send one request; None where no agent listens.

    Raises:
        AdapterError: this user may not, or the answer is none.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link, _short(path) as name:
            link.settimeout(PATIENCE_S)
            link.connect(name)
            link.sendall(_line(request))
            with link.makefile("rb") as answers:
                line = answers.readline(16 * MAX_LINE_BYTES)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return None
    except PermissionError as err:
        raise AdapterError(
            f"{path}: {err.strerror}; run this as root or as the agent's user"
        ) from err
    except OSError as err:
        raise AdapterError(f"{path}: {err}; the agent does not answer") from err
    try:
        answer = json.loads(line)
    except ValueError as err:
        raise AdapterError(f"{path}: expected a JSON line, got {line[:40]!r}") from err
    if not isinstance(answer, dict):
        raise AdapterError(f"{path}: expected a JSON object, got {line[:40]!r}")
    return answer


@contextlib.contextmanager
def only_agent(state_dir: Path) -> Iterator[bool]:
    """Hold the lock that an agent holds as long as it runs; says whether it could be had.

    Raises:
        AdapterError: the directory cannot be used.
    """
    path = state_dir / LOCK_FILE
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise AdapterError(
            f"{path}: {err.strerror}; run this as root or as the agent's user"
        ) from err
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of an agent that was killed; a living one holds the lock
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as name:
            listening.bind(name)
        path.chmod(0o660)
        listening.listen()
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Name a socket within the 107 characters that its address has, however long its path is."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode() + b"\n"
