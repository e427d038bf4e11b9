"""The engine in use: kept running, replaced, taken back.

Only one engine is current; an engine that was replaced finishes what it is doing and leaves.  A
crash costs the query in flight and starts a new engine after a growing pause.  A model that was
committed a moment ago and keeps crashing is given up: the store reverts to the one before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from edgeagent.adapters.engine_process import EngineProcess, EngineSettings
from edgeagent.errors import EdgeAgentError, EngineError, ModelError
from edgeagent.progress import Progress
from edgeagent.protocol.reconnect import Backoff

log = logging.getLogger(__name__)

RESTART_FIRST_S = 0.1
RESTART_CAP_S = 30.0
"""The first restart is immediate to a person; a model that always crashes costs no CPU."""
HOLD_STEP_S = 0.05  # how soon after its last token an engine that must leave is seen to be gone


class Models(Protocol):
    """Which model is to run; `edgeagent.model_store` is the real one."""

    def active(self) -> Path:
        """Return the directory of the model to run."""

    def is_fresh(self) -> bool:
        """Whether the active model was committed a moment ago and can be taken back."""

    def is_installed(self) -> bool:
        """Whether the active model came by an update, so that there is one before it."""

    def revert(self, reason: str, code: str) -> None:
        """Give up the active model for the one before it; ``code`` is of ``ota.reasons``."""

    def quarantine(self) -> list[dict[str, Any]]:
        """Return what was given up here, the newest last."""

    def forgive(self, what: str) -> list[dict[str, Any]]:
        """Let models be tried again; return what was known of them."""

    def way_back(self) -> WayBack:
        """Say how the model before the active one can be had again."""


class WayBack(Enum):
    """How the model before the active one can be had again, without a network."""

    NONE = "none"
    SLOT = "slot"  # it lies beside the active one
    IN_PLACE = "in_place"  # the active one is turned back into it; its engine must not run
    DELTA = "delta"  # it is made from the active one first, by the updater


class Engines:
    """Owns every engine process of the agent."""

    def __init__(
        self,
        settings: EngineSettings,
        models: Models,
        progress: Progress,
        *,
        crashes_to_revert: int,
        on_change: Callable[[str, dict[str, object]], None],
    ) -> None:
        self.restarts = 0
        self.failure: EdgeAgentError | None = None  # why there is no engine, if there is none
        self.tried = asyncio.Event()  # a first start has succeeded or failed
        self.settings = settings
        self._models = models
        self._progress = progress
        self._beat = progress.loop("engine")
        self._crashes_to_revert = crashes_to_revert
        self._on_change = on_change
        self._current: EngineProcess | None = None
        self._changed = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self._crashes = 0  # in a row, without a good answer
        self._soak_crashes = 0  # since the model was committed, whatever was answered between
        self._is_held = self._is_starting = False
        self._backoff = Backoff(RESTART_FIRST_S, RESTART_CAP_S)

    @property
    def current(self) -> EngineProcess | None:
        """The engine that takes queries now; one that has just ended takes none."""
        engine = self._current
        return None if engine is None or engine.ended.done() else engine

    @property
    def is_hopeless(self) -> bool:
        """Whether there is no engine because the model itself is wrong."""
        return isinstance(self.failure, ModelError)

    async def run(self) -> None:
        """Keep an engine running."""
        try:
            while True:
                self._beat()
                engine = self._current
                if engine is None and self._is_held:
                    await self._wait()
                elif engine is None:
                    await self._start()
                elif engine.ended.done():
                    await self._crashed(engine, engine.ended.result())
                else:
                    await self._wait()
        finally:
            await self._leave_all()

    async def hold(self) -> None:
        """Let the engines finish what they are at and leave; none is started until `release`.

        Queries wait meanwhile.  Afterwards no engine has a model mapped.
        """
        self._is_held, self.failure = True, None
        engine, self._current = self._current, None
        self._changed.set()
        if engine is not None:
            self._let_go(engine)
        while self._leaving or self._is_starting:
            self._beat()
            await asyncio.sleep(HOLD_STEP_S)

    def release(self) -> None:
        """Start engines again; one that was made the current one meanwhile stays."""
        self._is_held = False
        self._changed.set()

    def answered_well(self) -> None:
        """Note a good answer: the model works."""
        self._crashes = 0
        self._backoff.failures = 0

    def replace(self, engine: EngineProcess) -> None:
        """Make a healthy engine the current one; the other finishes its query and leaves."""
        old = self._current
        self._take(engine)
        self._crashes = self._soak_crashes = 0
        if old is not None:
            self._let_go(old)
        self._on_change("model_changed", {"name": engine.ready.name, "version": _version(engine)})

    # -- inside ---------------------------------------------------------------------------------

    async def _wait(self) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._progress.wake_s):
                await self._changed.wait()

    async def _start(self) -> None:
        self._is_starting = True
        try:
            await self._start_active()
        finally:
            self._is_starting = False

    async def _start_active(self) -> None:
        path = self._models.active()
        self._beat()
        starting = asyncio.ensure_future(EngineProcess.start(path, self.settings))
        try:
            while not starting.done():
                self._beat()
                await asyncio.wait([starting], timeout=self._progress.wake_s)
            engine = starting.result()
        except (ModelError, EngineError) as err:
            self.failure = err
            log.error("engine.not_started model=%s code=%s reason=%r", path, err.code, str(err))
            self._on_change("engine_failed", {"reason": str(err)})
            await self._pause_or_revert(str(err))
        else:
            if self._current is not None or self._is_held:  # an update came meanwhile
                self._let_go(engine)
                return
            self._take(engine)
            self._on_change("engine_ready", {"version": _version(engine)})
        finally:
            starting.cancel()
            self.tried.set()

    async def _crashed(self, engine: EngineProcess, how: str) -> None:
        log.error("engine.ended pid=%d how=%r", engine.pid, how)
        self._current = None
        self.restarts += 1
        self.failure = EngineError(f"the engine ended: {how}")
        await engine.kill()
        self._on_change("engine_failed", {"reason": how})
        await self._pause_or_revert(how)

    async def _pause_or_revert(self, reason: str) -> None:
        self._crashes += 1
        self._soak_crashes = self._soak_crashes + 1 if self._models.is_fresh() else 0
        if self._is_given_up():
            n_failures = max(self._crashes, self._soak_crashes)
            code = "model_damaged" if self.is_hopeless else "soak_crashes"
            self.failure = None  # there is hope: queries wait for the model before this one
            await self._revert(f"{n_failures} failures: {reason}", code)
            self._crashes = self._soak_crashes = 0
            self._on_change("rolled_back", {"reason": reason, "code": code})
            return
        delay_s = self._backoff.next_s(0.0, random.random())
        end_s = time.monotonic() + delay_s
        while (
            self._current is None and not self._is_held and (left_s := end_s - time.monotonic()) > 0
        ):
            self._beat()
            await asyncio.sleep(min(left_s, self._progress.wake_s))

    async def _revert(self, reason: str, code: str) -> None:
        """Give the model up; a slow disk or a model to be made again hold nobody else up."""
        reverting = asyncio.ensure_future(asyncio.to_thread(self._models.revert, reason, code))
        while not reverting.done():
            self._beat()
            await asyncio.wait([reverting], timeout=self._progress.wake_s)
        reverting.result()

    def _is_given_up(self) -> bool:
        """Whether the model before this one is the better bet: a damaged file never heals."""
        if isinstance(self.failure, ModelError):
            return self._models.is_installed()
        return self._soak_crashes >= self._crashes_to_revert

    def _take(self, engine: EngineProcess) -> None:
        self._current, self.failure = engine, None
        engine.ended.add_done_callback(lambda _: self._changed.set())
        self._changed.set()

    def _let_go(self, engine: EngineProcess) -> None:
        task = asyncio.create_task(_leave_when_idle(engine), name="engine-leaving")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave_all(self) -> None:
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        if self._current is not None:
            await self._current.leave()


async def _leave_when_idle(engine: EngineProcess) -> None:
    try:
        await engine.idle.wait()
        await engine.leave()
    except asyncio.CancelledError:
        await engine.kill()
        raise


def _version(engine: EngineProcess) -> str:
    return engine.ready.version
