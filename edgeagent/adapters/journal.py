"""The systemd journal in its native protocol: an event carries a stable ``MESSAGE_ID``.

Text on standard error would reach the journal too, but without fields, and so without the catalog's
explanations (``journalctl -x``).  The id of an event is derived from its name, the first word of a
log line; ``systemd/edgeagent.catalog`` holds the same ids.

    MESSAGE=mqtt.lost reason='refused' retry_s=2.0
    EDGEAGENT_EVENT=mqtt.lost
    MESSAGE_ID=uuid5(NAMESPACE, "mqtt.lost")
"""

from __future__ import annotations

import logging
import os
import re
import socket
import uuid
from collections.abc import Mapping
from functools import cache

SOCKET = "/run/systemd/journal/socket"

# Made once, at random; changing it would orphan the catalog.
NAMESPACE = uuid.UUID("6e9a1b0c-52a7-4f0e-9d53-7f6f0b1f3c5e")

_EVENT = re.compile(r"[a-z]+\.[a-z_]+")
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


@cache
def message_id(event: str) -> str:
    """Return the id of an event, as the journal writes it."""
    return uuid.uuid5(NAMESPACE, event).hex


def event_of(line: str) -> str | None:
    """Return the event's name that a log line begins with."""
    word = line.split(" ", 1)[0]
    return word if _EVENT.fullmatch(word) else None


def is_our_stderr(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether standard error is connected to the journal, as systemd does for a service."""
    environ = os.environ if environ is None else environ
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


class JournalHandler(logging.Handler):
    """Sends records to the journal; what cannot be sent goes to ``fallback``."""

    def __init__(self, fallback: logging.Handler, path: str = SOCKET) -> None:
        super().__init__()
        self._fallback = fallback
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; a datagram that is too long or finds nobody is not lost."""
        try:
            self._socket.sendto(encode(fields(record, self.format(record))), self._path)
        except OSError:
            self._fallback.handle(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


def fields(record: logging.LogRecord, message: str) -> dict[str, str]:
    """Return what the journal stores of a record."""
    entry = {
        "MESSAGE": message,
        "PRIORITY": str(next((p for level, p in _PRIORITIES if record.levelno >= level), 7)),
        "SYSLOG_IDENTIFIER": "edgeagent",
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
    }
    if event := event_of(message):
        entry |= {"EDGEAGENT_EVENT": event, "MESSAGE_ID": message_id(event)}
    return entry


def encode(entry: Mapping[str, str]) -> bytes:
    """Return the datagram: ``NAME=value`` lines; a value of several lines is sent by its length."""
    parts = []
    for name, value in entry.items():
        data = value.encode("utf-8", "replace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)
