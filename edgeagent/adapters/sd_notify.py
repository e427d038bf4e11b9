"""What systemd wants to know: ready, alive, stopping; the sd_notify protocol without a library."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends to ``$NOTIFY_SOCKET``; does nothing where there is none."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        path = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL of Linux's abstract namespace.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        pid = environ.get("WATCHDOG_PID")
        is_ours = pid is None or pid == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "") if is_ours else ""
        self.watchdog_s: float | None = int(usec) / 1e6 if usec.isdecimal() else None

    def send(self, **fields: str) -> None:
        """Send assignments, e.g. ``READY="1"``; a manager that does not listen is no error."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in fields.items()).encode()
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.connect(self._address)
            sock.sendall(message)
