"""JSON lines over a socket pair, for asyncio; the agent's end of every link to a child process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

from edgeagent.errors import EngineError

MAX_LINE_BYTES = 1 << 20
"""The contract's bound: a 64 KiB query grows at most six-fold by JSON escaping."""


class Link:
    """One end of a socket pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def pair(cls) -> tuple[Link, socket.socket]:
        """Make a socket pair; return our end and the socket to hand to a child."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return cls(reader, writer), theirs

    def send(self, message: dict[str, Any]) -> None:
        """Queue one message; a peer that has gone is noticed by `receive`.

        Raises:
            EngineError: The message is longer than a line may be.
        """
        line = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise EngineError(f"a message of {len(line)} bytes, a line has {MAX_LINE_BYTES}")
        if not self._writer.is_closing():
            self._writer.write(line)

    async def receive(self) -> dict[str, Any] | None:
        """Return the next message; None at the end of the link.

        Raises:
            EngineError: The peer does not speak JSON lines.
        """
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        except ValueError as err:
            raise EngineError(f"a line of more than {MAX_LINE_BYTES} bytes came") from err
        if not line.endswith(b"\n"):
            return None
        try:
            message = json.loads(line)
        except ValueError as err:
            raise EngineError(f"expected a JSON line, got {line[:80]!r}") from err
        if not isinstance(message, dict):
            raise EngineError(f"expected a JSON object, got {line[:80]!r}")
        return message

    def close(self) -> None:
        """Close our end; the peer sees end of file."""
        self._writer.close()

    async def wait_closed(self) -> None:
        """Wait until our end is closed."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
