"""The queue's worker: one query at a time from the inbox through the engine to its requester."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from edgeagent.adapters.engine_process import EngineProcess
from edgeagent.engines import Engines
from edgeagent.errors import ConfigError, EngineError, ProtocolError
from edgeagent.intake import Intake, Publisher
from edgeagent.progress import Progress
from edgeagent.protocol.inbox import Ticket
from edgeagent.protocol.replies import Final, TokenBatch, final_answer, final_error, token_batch
from edgeagent.sensing import Sensing

log = logging.getLogger(__name__)

LATE_S = 60.0
"""How long after its deadline a query may keep the engine: a block of prefill on a slow board."""


@dataclass(slots=True)
class Totals:
    """What the worker has done since the start."""

    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    joules: float = 0.0
    last_tokens_per_s: float | None = None
    last_j_per_token: float | None = None


@dataclass(slots=True)
class _Run:
    """The query that is running."""

    ticket: Ticket
    engine: EngineProcess
    seq: int = 0
    batch: TokenBatch = field(default_factory=TokenBatch)
    flush: asyncio.TimerHandle | None = None


class Answering:
    """Takes queries from the inbox and answers them."""

    def __init__(
        self,
        intake: Intake,
        publisher: Publisher,
        engines: Engines,
        sensing: Sensing,
        progress: Progress,
    ) -> None:
        self.totals = Totals()
        self._intake = intake
        self._publisher = publisher
        self._engines = engines
        self._sensing = sensing
        self._progress = progress
        self._beat = progress.loop("queue")
        self._work = asyncio.Event()
        self._admitted = asyncio.Event()
        self._running: _Run | None = None
        self._is_closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        intake.on_admitted = self._on_admitted
        intake.on_cancel_running = self._cancel_running

    async def run(self) -> None:
        """Answer queries until cancelled."""
        while True:
            self._beat()
            self._intake.expire()
            ticket = self._next()
            if ticket is not None:
                self._idle.clear()
                try:
                    await self._answer(ticket)
                finally:
                    self._idle.set()
                continue
            self._work.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s()):
                    await self._work.wait()

    async def run_deadlines(self) -> None:
        """Answer what expires in the queue while a query is running."""
        beat = self._progress.loop("deadlines")
        while True:
            beat()
            self._intake.expire()
            self._admitted.clear()
            next_s, wait_s = self._intake.inbox.next_deadline_s(), self._progress.wake_s
            if next_s is not None:
                wait_s = min(wait_s, max(0.0, next_s - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._admitted.wait()

    async def drain(self, finish_s: float, cancel_s: float) -> None:
        """Start no more queries; let the running one finish, then cancel it."""
        self._is_closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(finish_s):
                await self._idle.wait()
            return
        if self._running is not None:
            self._cancel_running(self._running.ticket)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(cancel_s):
                await self._idle.wait()

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return not self._idle.is_set() or len(self._intake.inbox) > 0

    def engine_changed(self) -> None:
        """Look again whether there is something to do."""
        self._work.set()

    def _on_admitted(self) -> None:
        self._work.set()
        self._admitted.set()

    # -- choosing -------------------------------------------------------------------------------

    def _next(self) -> Ticket | None:
        """Return the next query, unless there is no engine for it now."""
        if self._is_closing or len(self._intake.inbox) == 0:
            return None
        if self._engines.current is None and not self._engines.is_hopeless:
            return None
        return self._intake.inbox.start(time.monotonic())

    def _wait_s(self) -> float:
        """Return how long to sleep when there is nothing to do."""
        limit_s = self._progress.wake_s
        return limit_s if self._engines.current is not None else min(limit_s, 0.2)

    def _cancel_running(self, ticket: Ticket) -> None:
        if self._running is not None and self._running.ticket is ticket:
            self._running.engine.cancel(ticket.address.query_id, "cancelled")

    # -- answering ------------------------------------------------------------------------------

    async def _answer(self, ticket: Ticket) -> None:
        """Run one query and publish its final answer, whatever happens."""
        first = self._sensing.begin()
        run: _Run | None = None
        try:
            engine = self._engines.current
            if engine is None:
                raise EngineError(f"there is no engine: {self._engines.failure}")
            self._running = run = _Run(ticket, engine)
            done = await self._generate(run)
        except EngineError as err:
            await self._sensing.finish(first, 0)
            self._fail(ticket, run, err)
        else:
            tokens = int(done.get("usage", {}).get("completion_tokens", 0))
            await self._succeed(run, done, await self._sensing.finish(first, tokens))
        finally:
            self._running = None
            if run is not None and run.flush is not None:
                run.flush.cancel()

    async def _generate(self, run: _Run) -> dict[str, Any]:
        """Stream the answer; return the engine's last message.

        Raises:
            EngineError: The engine failed, or did not end the query long after its deadline.
        """
        query = run.ticket.query
        if query is None:
            raise RuntimeError("a ticket without a query was started")
        clock = asyncio.get_running_loop()
        left_s = run.ticket.deadline_s - time.monotonic()
        deadline = clock.call_later(max(0.0, left_s), run.engine.cancel, query.id, "deadline")
        try:
            async with (
                asyncio.timeout(max(0.0, left_s) + LATE_S),
                contextlib.aclosing(run.engine.generate(query.engine_request())) as messages,
            ):
                async for message in messages:
                    self._beat()
                    if message["event"] != "token":
                        return message
                    if query.stream:
                        self._token(run, str(message.get("text", "")))
        except TimeoutError:
            await run.engine.kill()
            raise EngineError(f"the engine did not stop within {LATE_S:g} s") from None
        finally:
            deadline.cancel()
        raise EngineError("the engine ended the query without a last message")

    def _token(self, run: _Run, text: str) -> None:
        """Publish a batch when one is due, or see to it that one will be."""
        now_s = time.monotonic()
        due = run.batch.add(text, now_s)
        if due is not None:
            self._publish_batch(run, due)
        elif run.flush is None:
            wait_s = run.batch.wait_s(now_s) or 0.0
            run.flush = asyncio.get_running_loop().call_later(wait_s, self._flush, run)

    def _flush(self, run: _Run) -> None:
        run.flush = None
        text = run.batch.flush(time.monotonic())
        if text is not None:
            self._publish_batch(run, text)

    def _publish_batch(self, run: _Run, text: str) -> None:
        if run.flush is not None:
            run.flush.cancel()
            run.flush = None
        address = run.ticket.address
        payload = token_batch(address, run.seq, text)
        run.seq += 1
        self._publisher.publish(address.topic, payload, correlation=address.correlation)

    async def _succeed(self, run: _Run, done: dict[str, Any], measured: dict[str, Any]) -> None:
        ticket = run.ticket
        if done["event"] == "error":
            error = done.get("error", {})
            problem = ProtocolError(str(error.get("message", "")), code=_code(error.get("code")))
            self._fail(ticket, run, problem)
            return
        self._flush(run)
        ready = run.engine.ready
        queue_ms = round((ticket.started_s - ticket.arrived_s) * 1e3, 2)
        final = Final(
            text=str(done.get("text", "")),
            finish_reason=str(done.get("finish_reason", "stop")),
            usage=done.get("usage", {}),
            timings={"queue_ms": queue_ms, **done.get("timings", {})},
            energy=measured["energy"],
            thermal=measured["thermal"],
            skipped=done.get("skipped", {}),
            model={"name": ready.name, "version": ready.version},
        )
        self._count(final)
        self._engines.answered_well()
        self._intake.finish(ticket, final_answer(ticket.address, run.seq, final))
        log.info(
            "query.done id=%s finish=%s tokens=%s seconds=%.3f",
            ticket.address.query_id,
            final.finish_reason,
            final.usage.get("completion_tokens"),
            time.monotonic() - ticket.started_s,
        )

    def _fail(
        self, ticket: Ticket, run: _Run | None, error: EngineError | ProtocolError | ConfigError
    ) -> None:
        self.totals.failed += 1
        log.warning(
            "query.failed id=%s code=%s reason=%r", ticket.address.query_id, error.code, str(error)
        )
        if run is not None:
            self._flush(run)
        seq = 0 if run is None else run.seq
        self._intake.finish(ticket, final_error(ticket.address, seq, error))

    def _count(self, final: Final) -> None:
        totals = self.totals
        totals.answered += 1
        totals.prompt_tokens += int(final.usage.get("prompt_tokens", 0))
        totals.completion_tokens += int(final.usage.get("completion_tokens", 0))
        totals.last_tokens_per_s = final.timings.get("tokens_per_s")
        totals.last_j_per_token = final.energy.get("j_per_token")
        totals.joules += final.energy.get("joules") or 0.0


_ENGINE_CODES = frozenset({"bad_request", "context_full", "engine_failed", "cancelled"})


def _code(code: object) -> str:
    """Return an error code of the contract; what an engine says otherwise is our internal error."""
    return code if isinstance(code, str) and code in _ENGINE_CODES else "internal"
