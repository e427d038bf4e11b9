"""Has ends of updates signed by a child (``ota.device.reporter``) and brings them to the broker.

The ring of signed reports and the number of the last one that the broker has confirmed are on the
disk, so what an outage or a reboot held back goes out afterwards, in order.  A broker confirms what
nobody listened to as well: who was away asks for all of them again (action ``report``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgeagent.errors import AdapterError
from edgeagent.progress import Progress

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "ota.device.reporter")
RING, SENT = "reports.jsonl", "reports.sent"
MAX_RING_BYTES = 1 << 20
SIGN_S = 60.0
"""A first key and a signature take a second on the slowest board; a card may stall for long."""

KILLED_S = 2.0
"""How long a stopping agent waits for its killed child to be collected."""

RETRY_S = 300.0
"""After a failure; nothing is lost meanwhile."""


class Publisher(Protocol):
    """The part of `edgeagent.adapters.mqtt.Mqtt` that is needed."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, correlation: bytes | None = None
    ) -> asyncio.Future[None]:
        """Publish; the future is done when the broker has confirmed it."""


class DeviceReports:
    """The reports of one node.

    Args:
        publisher: the connection
        topic: where they go
        node: the node's name
        state_dir: where the ring is
        facts: what each report says besides: the model that runs, the agent's version
        progress: whom to tell that this loop is alive
        command: what signs
    """

    def __init__(
        self,
        publisher: Publisher,
        topic: str,
        node: str,
        state_dir: Path,
        facts: Callable[[], Mapping[str, Any]],
        progress: Progress,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._publisher = publisher
        self._topic = topic
        self._directory = state_dir / "ota"
        self._command = (*command, "--state-dir", str(state_dir), "--node", node)
        self._facts = facts
        self._progress = progress
        self._beat = progress.loop("reports")
        self._due = asyncio.Event()
        self._due.set()  # what an earlier process left
        self._is_again = False

    def ended(self) -> None:
        """An update has come to an end."""
        self._due.set()

    def again(self) -> None:
        """Send all that are kept, whatever was confirmed."""
        self._is_again = True
        self._due.set()

    async def run(self) -> None:
        """Sign and send whenever there is something."""
        while True:
            await self._progress.wait(self._due, self._beat)
            self._due.clear()
            if await self._sign() and await self._send():
                continue
            self._due.set()
            await self._progress.sleep(RETRY_S, self._beat)

    async def _sign(self) -> bool:
        """Have the child sign what has no report; an agent without updates starts none."""
        if not (self._directory / "history.jsonl").exists():
            return True
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as err:
            log.warning("reports.not_signed reason=%r", err.strerror or str(err))
            return False
        talking = asyncio.ensure_future(child.communicate(json.dumps(self._facts()).encode()))
        try:
            if not await self._finished(talking, SIGN_S):
                child.kill()
                await talking
            line = talking.result()[1].decode(errors="replace").strip()[-300:]
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await asyncio.wait([talking], timeout=KILLED_S)
            raise
        if child.returncode != 0:
            log.warning("reports.not_signed code=%s reason=%r", child.returncode, line)
        return child.returncode == 0

    async def _send(self) -> bool:
        """Publish what the broker has not confirmed, the oldest first."""
        is_again, self._is_again = self._is_again, False
        sent = 0 if is_again else self._sent()
        for seq, envelope in self._ring():
            if seq <= sent:
                continue
            confirmation = self._publisher.publish(self._topic, envelope, qos=1)
            try:
                await self._finished(confirmation, None)  # it waits through an outage
                confirmation.result()
            except AdapterError as err:
                log.warning("reports.refused seq=%d reason=%r", seq, str(err))
                return False
            self._note(max(seq, self._sent()))
        return True

    async def _finished(self, future: asyncio.Future[Any], limit_s: float | None) -> bool:
        waited_s = 0.0
        while not future.done() and (limit_s is None or waited_s < limit_s):
            self._beat()
            await asyncio.wait([future], timeout=self._progress.wake_s)
            waited_s += self._progress.wake_s
        return future.done()

    def _ring(self) -> list[tuple[int, bytes]]:
        try:
            with (self._directory / RING).open("rb") as file:
                lines = file.read(MAX_RING_BYTES).splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                fields = json.loads(line)
                found.append((int(fields["seq"]), json.dumps(fields["envelope"]).encode()))
        return sorted(found)

    def _sent(self) -> int:
        try:
            return int((self._directory / SENT).read_bytes()[:20])
        except (OSError, ValueError):
            return 0

    def _note(self, seq: int) -> None:
        """Remember what was confirmed; after a power cut some may go out twice, which is seen."""
        beside = self._directory / f".{SENT}.new"
        try:
            beside.write_bytes(b"%d\n" % seq)
            beside.rename(self._directory / SENT)
        except OSError as err:
            log.warning("reports.not_noted reason=%r", err.strerror or str(err))
