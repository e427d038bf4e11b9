"""The agent's view of an engine process; ``docs/protocol.md`` section 3.

A child that answers no ping for ``hang_timeout_s`` is killed.  Whatever ends it, the query in
flight gets an `EngineError`; starting another one is the business of the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeagent.adapters.child import Child
from edgeagent.errors import ConfigError, EdgeAgentError, EngineError, ModelError

log = logging.getLogger(__name__)

ENGINE_COMMAND = (sys.executable, "-m", "edgeagent.engine")

PINGS = 4
"""Pings within the hang timeout: one lost in a long prefill does not kill a working engine."""

START_REFUSALS: dict[str, type[EdgeAgentError]] = {"model": ModelError, "config": ConfigError}
"""Codes of ``failed`` for which another attempt would fail the same."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How engines are started."""

    threads: int = 1
    kernel: str = ""
    zero_skip: bool = True
    kv_bits: int = 16
    kv_group_size: int = 64
    cpus: str = ""
    start_timeout_s: float = 60.0
    hang_timeout_s: float = 60.0
    command: Sequence[str] = ENGINE_COMMAND

    def arguments(self, model: Path) -> list[str]:
        """Return the command line for ``model``."""
        arguments = [*self.command, "--model", str(model), "--threads", str(self.threads)]
        if self.kernel:
            arguments += ["--kernel", self.kernel]
        if not self.zero_skip:
            arguments += ["--no-zero-skip"]
        arguments += ["--kv-bits", str(self.kv_bits), "--kv-group-size", str(self.kv_group_size)]
        if self.cpus:
            arguments += ["--cpus", self.cpus]
        return arguments


@dataclass(frozen=True, slots=True)
class Ready:
    """What an engine said when it was ready."""

    name: str
    version: str
    root: str
    path: str
    kernel: str
    threads: int
    context: int
    load_ms: float
    rss_mib: float


@dataclass(frozen=True, slots=True)
class Health:
    """The verdict of an engine on its model."""

    ok: bool
    failed: tuple[str, ...]  # "name: detail" of every check that failed


class EngineProcess:
    """One running engine with one model."""

    def __init__(self, child: Child, ready: Ready, settings: EngineSettings) -> None:
        self.ready = ready
        self._child = child
        self._settings = settings
        self._queries: dict[str, asyncio.Queue[dict[str, Any] | EngineError]] = {}
        self.idle = asyncio.Event()
        self.idle.set()
        self.n_started = 0
        """Queries begun, to tell whether there were any in between."""
        self._health: asyncio.Future[Health] | None = None
        self._adapter: asyncio.Future[None] | None = None
        self._heard_s = time.monotonic()
        self._tasks = [
            asyncio.create_task(self._read(), name="engine-read"),
            asyncio.create_task(self._watch(), name="engine-watch"),
        ]
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(cls, model: Path, settings: EngineSettings) -> EngineProcess:
        """Start an engine and wait until it is ready.

        Raises:
            ModelError: The model is wrong; another attempt would fail the same.
            ConfigError: The engine refuses its settings.
            EngineError: It did not come up; the message says how.
        """
        try:
            child = await Child.start(settings.arguments(model))
        except OSError as err:
            raise EngineError(f"the engine cannot be started: {err}") from err
        try:
            async with asyncio.timeout(settings.start_timeout_s):
                first = await child.link.receive()
            if first is None:
                how = await child.wait()
                raise EngineError(f"the engine ended before it was ready: {how}")
            ready = _ready(first)
        except TimeoutError:
            child.kill()
            await child.wait()
            limit_s = settings.start_timeout_s
            raise EngineError(f"the engine was not ready within {limit_s:g} s") from None
        except BaseException:
            child.kill()
            await child.wait()
            raise
        log.info(
            "engine.ready pid=%d version=%s kernel=%s threads=%d load_ms=%.0f",
            child.pid,
            ready.version,
            ready.kernel,
            ready.threads,
            ready.load_ms,
        )
        return cls(child, ready, settings)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    async def generate(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Run a query; yield its ``token`` messages and at last ``done`` or ``error``.

        Use it within `contextlib.aclosing`: the engine is idle when the generator is closed.

        Raises:
            EngineError: The engine failed.
        """
        if self.ended.done():
            raise EngineError(f"the engine has ended: {self.ended.result()}")
        queue: asyncio.Queue[dict[str, Any] | EngineError] = asyncio.Queue()
        query_id = request["id"]
        self._queries[query_id] = queue
        self.n_started += 1
        self.idle.clear()
        try:
            self._child.link.send(request)
            while True:
                message = await queue.get()
                if isinstance(message, EngineError):
                    raise message
                yield message
                if message["event"] in {"done", "error"}:
                    return
        finally:
            del self._queries[query_id]
            if not self._queries:
                self.idle.set()

    def cancel(self, query_id: str, reason: str) -> None:
        """Ask the engine to end a query with ``reason``: ``cancelled`` or ``deadline``."""
        self._child.link.send({"op": "cancel", "id": query_id, "reason": reason})

    def set_threads(self, threads: int) -> None:
        """Change the number of threads, from the next token on."""
        self._child.link.send({"op": "threads", "n": threads})

    def set_pace(self, duty: float) -> None:
        """Let the cores be busy for this share of the time, from the next token on."""
        self._child.link.send({"op": "pace", "duty": duty})

    async def check_health(self, timeout_s: float) -> Health:
        """Let the engine check its model.

        Raises:
            EngineError: It failed, or gave no answer in time.
        """
        if self.ended.done():
            raise EngineError(f"the engine has ended: {self.ended.result()}")
        self._health = asyncio.get_running_loop().create_future()
        self._child.link.send({"op": "health"})
        try:
            async with asyncio.timeout(timeout_s):
                return await self._health
        except TimeoutError:
            raise EngineError(f"no verdict on its health within {timeout_s:g} s") from None
        finally:
            self._health = None

    async def set_adapter(self, path: Path | None, timeout_s: float) -> None:
        """Let the engine use the LoRA adapter in a directory, or none, from the next query on.

        A query that runs ends with the adapter that it began with.

        Raises:
            ModelError: The adapter does not fit; the engine goes on with what it had.
            EngineError: It failed, gave no answer in time, or another swap is under way.
        """
        if self.ended.done():
            raise EngineError(f"the engine has ended: {self.ended.result()}")
        if self._adapter is not None:
            raise EngineError("another change of the adapter is under way")
        self._adapter = asyncio.get_running_loop().create_future()
        self._child.link.send({"op": "adapter", "path": None if path is None else str(path)})
        try:
            async with asyncio.timeout(timeout_s):
                await self._adapter
        except TimeoutError:
            raise EngineError(f"no word of its adapter within {timeout_s:g} s") from None
        finally:
            self._adapter = None

    async def leave(self) -> None:
        """Let it finish the token it is at, and end."""
        if not self.ended.done():
            self._child.link.send({"op": "quit"})
            with contextlib.suppress(TimeoutError):
                await self._child.leave()
        await self._stop()

    async def kill(self) -> None:
        """End it now."""
        self._child.kill()
        await self._stop()

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        how = await self._child.wait()
        self._fail(how)

    # -- tasks ----------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Sort what the engine says to who waits for it."""
        why = ""
        try:
            while (message := await self._child.link.receive()) is not None:
                self._heard_s = time.monotonic()
                self._dispatch(message)
        except EngineError as err:
            why = f": {err}"
            self._child.kill()
        how = await self._child.wait()
        self._fail(how + why)

    async def _watch(self) -> None:
        """Ping, and kill a child that is silent for too long."""
        interval_s = self._settings.hang_timeout_s / PINGS
        number = 0
        while not self.ended.done():
            await asyncio.sleep(interval_s)
            silence_s = time.monotonic() - self._heard_s
            if silence_s > self._settings.hang_timeout_s:
                log.error("engine.hung pid=%d silence_s=%.1f", self.pid, silence_s)
                self._child.kill()
                return
            if silence_s > interval_s / 2:
                number += 1
                self._child.link.send({"op": "ping", "n": number})

    def _dispatch(self, message: dict[str, Any]) -> None:
        event = message.get("event")
        if event in {"token", "done", "error"}:
            queue = self._queries.get(str(message.get("id")))
            if queue is not None:
                queue.put_nowait(message)
        elif event == "health" and self._health is not None and not self._health.done():
            failed = tuple(
                f"{check.get('name')}: {check.get('detail')}"
                for check in message.get("checks", [])
                if not check.get("ok")
            )
            self._health.set_result(Health(message.get("ok") is True, failed))
        elif event == "adapter" and self._adapter is not None and not self._adapter.done():
            if message.get("ok") is True:
                self._adapter.set_result(None)
            else:
                why = message.get("error", {}).get("message", "no reason given")
                self._adapter.set_exception(ModelError(str(why)))

    def _fail(self, how: str) -> None:
        if self.ended.done():
            return
        self.ended.set_result(how)
        error = EngineError(f"the engine ended: {how}")
        for queue in self._queries.values():
            queue.put_nowait(error)
        for waiting in (self._health, self._adapter):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)


def _ready(message: dict[str, Any]) -> Ready:
    if message.get("event") == "failed":
        error = message.get("error", {})
        kind = START_REFUSALS.get(error.get("code"), EngineError)
        raise kind(str(error.get("message", "no reason given")))
    try:
        model = message["model"]
        return Ready(
            name=str(model["name"]),
            version=str(model["version"]),
            root=str(model["root"]),
            path=str(model["path"]),
            kernel=str(message["kernel"]),
            threads=int(message["threads"]),
            context=int(message["context"]),
            load_ms=float(message["load_ms"]),
            rss_mib=float(message["rss_mib"]),
        )
    except (KeyError, TypeError, ValueError) as err:
        raise EngineError(f"expected ready, got {str(message)[:80]}: {err!r}") from err
