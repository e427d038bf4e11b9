"""The agent's view of the updater, a short-lived child; ``docs/protocol.md`` section 4.

Metadata and deltas from outside are parsed there, never in the agent, and its memory is given back
when it ends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from edgeagent.adapters.child import Child
from edgeagent.errors import AdapterError, EngineError

COMMAND = (sys.executable, "-m", "ota.device.worker")

SILENCE_S = 600.0
"""It reports as it goes; silence this long is a hang: a chunk takes minutes at worst."""


class Updater:
    """One run of the updater."""

    def __init__(self, child: Child) -> None:
        self._child = child

    @classmethod
    async def start(cls, settings: dict[str, Any], command: Sequence[str] = COMMAND) -> Updater:
        """Start it with ``settings``, the fields of ``start``.

        Raises:
            AdapterError: It cannot be started.
        """
        try:
            child = await Child.start(command)
        except OSError as err:
            raise AdapterError(f"the updater cannot be started: {err}") from err
        child.link.send({"op": "start", **settings})
        return cls(child)

    async def receive(self) -> dict[str, Any] | None:
        """Return its next message; None at its end.

        Raises:
            AdapterError: It does not speak JSON lines.
        """
        try:
            return await self._child.link.receive()
        except EngineError as err:
            raise AdapterError(f"updater: {err}") from err

    def judge(self, *, ok: bool, reason: str = "", code: str = "") -> None:
        """Tell it the verdict of the trial engine."""
        verdict: dict[str, Any] = {"op": "trial", "ok": ok}
        self._child.link.send(verdict if ok else verdict | {"reason": reason, "code": code})

    def quiet(self) -> None:
        """Tell it that no engine has the active model mapped."""
        self._child.link.send({"op": "quiet"})

    def tell(self, conditions: dict[str, Any]) -> None:
        """Tell it what the device is like now."""
        self._child.link.send({"op": "conditions", **conditions})

    def cancel(self) -> None:
        """Have it give up the release for good, at the next safe point."""
        self._child.link.send({"op": "cancel", "for_good": True})

    async def end(self) -> None:
        """Let it stop at the next safe point; what is on disk is resumed by the next run."""
        self._child.link.send({"op": "cancel"})
        await self._child.leave()

    def kill(self) -> None:
        """End it now."""
        self._child.kill()
