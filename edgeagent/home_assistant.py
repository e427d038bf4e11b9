"""Announces the node to Home Assistant, and takes that back when it is switched off.

The announcement is retained, and published again when Home Assistant says that it has started,
after a moment of chance so that a house full of nodes does not speak at once.  What was announced
is remembered on the disk: an announcement under another prefix, or none, then removes the old one,
and a node that never announced anything never writes there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edgeagent.errors import AdapterError
from edgeagent.progress import Progress
from edgeagent.protocol.messages import Incoming

log = logging.getLogger(__name__)

JITTER_S = 3.0
"""Home Assistant takes a second or two to subscribe to what it has just been told."""

READY_STEP_S = 0.2
CONFIRM_S = 30.0
MAX_BYTES = 1 << 16


class Publisher(Protocol):
    """The part of `edgeagent.adapters.mqtt.Mqtt` that is needed."""

    def publish_retained(self, topic: str, payload: bytes) -> asyncio.Future[None] | None:
        """Publish state; returns its confirmation, or None while there is no connection."""


class HomeAssistant:
    """The announcement of one node.

    Args:
        publisher: the connection
        topic: where to announce; None: switched off
        announcement: gives the message
        is_ready: whether enough is known for it
        state_dir: where to remember what was announced
        progress: whom to tell that this loop is alive
    """

    def __init__(
        self,
        publisher: Publisher,
        topic: str | None,
        announcement: Callable[[], bytes],
        is_ready: Callable[[], bool],
        state_dir: Path,
        progress: Progress,
    ) -> None:
        self._publisher = publisher
        self._topic = topic
        self._announcement = announcement
        self._is_ready = is_ready
        self._file = state_dir / "home_assistant.json"
        self._progress = progress
        self._beat = progress.loop("discovery")
        self._due = asyncio.Event()
        self._wait_s = 0.0

    def connected(self) -> None:
        """There is a new connection: announce, or remove."""
        self._wait_s = 0.0
        self._due.set()

    def on_status(self, incoming: Incoming) -> None:
        """Home Assistant has started, or stops; what a broker kept of that is old."""
        if incoming.payload.strip() == b"online" and not incoming.is_retained:
            self._wait_s = random.uniform(0.0, JITTER_S)
            self._due.set()

    async def run(self) -> None:
        """Announce whenever it is due."""
        while True:
            await self._progress.wait(self._due, self._beat)
            self._due.clear()
            await self._progress.sleep(self._wait_s, self._beat)
            while not self._is_ready():
                await self._progress.sleep(READY_STEP_S, self._beat)
            await self._settle()

    async def _settle(self) -> None:
        """Bring what is announced in line with what is wanted."""
        known = self._known()
        if self._topic is not None:
            if self._topic not in known:
                known = [*known, self._topic]
                self._remember(known)  # before it is there, or it could be forgotten
            self._publisher.publish_retained(self._topic, self._announcement())
        for topic in [each for each in known if each != self._topic]:
            if await self._is_removed(topic):
                log.info("discovery.removed topic=%s", topic)
                known = [each for each in known if each != topic]
                self._remember(known)

    async def _is_removed(self, topic: str) -> bool:
        """Say whether the broker has confirmed that nothing is kept there."""
        confirmation = self._publisher.publish_retained(topic, b"")
        if confirmation is None:
            return False
        waited_s = 0.0
        while not confirmation.done() and waited_s < CONFIRM_S:
            self._beat()
            await asyncio.wait([confirmation], timeout=self._progress.wake_s)
            waited_s += self._progress.wake_s
        if not confirmation.done():
            return False
        try:
            confirmation.result()
        except AdapterError as err:
            log.warning("discovery.not_removed topic=%s reason=%r", topic, str(err))
            return False
        return True

    def _known(self) -> list[str]:
        try:
            with self._file.open("rb") as file:
                topics = json.loads(file.read(MAX_BYTES))["topics"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [str(topic) for topic in topics] if isinstance(topics, list) else []

    def _remember(self, topics: list[str]) -> None:
        beside = self._file.with_name(f".{self._file.name}.new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                file.write(json.dumps({"topics": topics}).encode())
                file.flush()
                os.fsync(file.fileno())
            beside.rename(self._file)
        except OSError as err:
            log.warning("discovery.not_remembered reason=%r", err.strerror or str(err))
