"""Whether the uplink costs money: NetworkManager's word, or a file that somebody else writes.

NetworkManager knows it from the connection's profile, or guesses (a phone's hotspot).  Its property
``Metered`` is read with systemd's own ``busctl``, which every board with systemd has, a few times
in an update: that needs no D-Bus library.  The values are ``NMMetered`` in
https://networkmanager.dev/docs/api/latest/nm-dbus-types.html.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

NETWORK_MANAGER = "org.freedesktop.NetworkManager"
COMMAND = (
    "busctl",
    "--system",
    "get-property",
    NETWORK_MANAGER,
    "/org/freedesktop/NetworkManager",
    NETWORK_MANAGER,
    "Metered",
)
TIMEOUT_S = 3.0
"""A bus answers in milliseconds, or is not there."""

KEPT_S = 60.0
"""Links change when somebody plugs a cable; a condition is looked at every few seconds."""

MAX_BYTES = 64
_ANSWERS = {"u 1": True, "u 2": False, "u 3": True, "u 4": False}  # yes, no, and two guesses
_WORDS = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}


class Metered:
    """Answers, and remembers the answer for a while.

    Args:
        setting: ``yes``, ``no`` or ``auto``
        file: with ``auto``, a file that says ``yes`` or ``no``, in place of NetworkManager
        command: what asks NetworkManager
    """

    def __init__(
        self, setting: str, file: Path | None = None, command: Sequence[str] = COMMAND
    ) -> None:
        self._setting = setting
        self._file = file
        self._command = command
        self._answer: bool | None = None
        self._asked_s: float | None = None

    async def read(self) -> bool | None:
        """Return whether the link is metered; None: nobody knows."""
        if self._setting != "auto":
            return self._setting == "yes"
        if self._file is not None:
            return await asyncio.to_thread(_from_file, self._file)
        now_s = time.monotonic()
        if self._asked_s is None or now_s - self._asked_s > KEPT_S:
            self._answer, self._asked_s = await _ask(self._command), now_s
        return self._answer


def _from_file(path: Path) -> bool | None:
    try:
        with path.open("rb") as file:
            return _WORDS.get(file.read(MAX_BYTES).decode("ascii", "replace").strip().lower())
    except OSError:
        return None


async def _ask(command: Sequence[str]) -> bool | None:
    nowhere = asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=nowhere, stdout=asyncio.subprocess.PIPE, stderr=nowhere
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            said, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return _ANSWERS.get(said.decode("ascii", "replace").strip())
