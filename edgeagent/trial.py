"""The trial of a new model: it loads, is what was signed, and is as fast as the old one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import statistics
from pathlib import Path
from typing import Any

from edgeagent.adapters.engine_process import EngineProcess, EngineSettings
from edgeagent.errors import EdgeAgentError, EngineError, ModelError

MIN_SPEED = 0.9
"""Of the old model's tokens a second: less is a kernel or a layout that does not fit this board."""
SPEED_ROUNDS = 12  # the best of twelve short runs is free of what else the board did meanwhile
MAX_ROUNDS = 40  # with those that a query to the old engine disturbed
IDLE_TIMEOUT_S = 0.5  # for the old engine to be done with a query: most take longer than a round
SPEED_TOKENS = 16
MAX_MEMORY = 2.0
"""Times the old engine's memory: what a board with room for two engines is sure to have."""

log = logging.getLogger(__name__)

_number = itertools.count()


class TrialFailed(EngineError):
    """A model is not as good as the one in use; ``code`` is one of ``ota.reasons``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


async def prove(
    slot: Path, settings: EngineSettings, timeout_s: float, old: EngineProcess | None
) -> EngineProcess:
    """Start an engine on ``slot``, let it check itself, and compare it with the one in use.

    Args:
        slot: the new model
        settings: how engines are started
        timeout_s: for the engine's own checks
        old: the engine in use; None: there is nothing to compare with

    Raises:
        TrialFailed: it does not load, a check fails, or it is slower or larger than ``old``.
    """
    try:
        engine = await EngineProcess.start(slot, settings)
    except EdgeAgentError as err:
        code = "health_load" if isinstance(err, ModelError) else "health_start"
        raise TrialFailed(code, str(err)) from err
    try:
        await _check(engine, timeout_s)
        if old is not None:
            _compare_memory(engine, old)
            await _compare_speed(engine, old)
    except TrialFailed:
        await engine.kill()
        raise
    except EngineError as err:
        code = "health_crash" if engine.ended.done() else "health_timeout"
        await engine.kill()
        raise TrialFailed(code, str(err)) from err
    except BaseException:
        await engine.kill()
        raise
    return engine


async def _check(engine: EngineProcess, timeout_s: float) -> None:
    health = await engine.check_health(timeout_s)
    if not health.ok:
        is_answer = bool(health.failed) and all(
            check.startswith("example") for check in health.failed
        )
        raise TrialFailed(
            "health_example" if is_answer else "health_logits",
            "; ".join(health.failed) or "the health suite failed",
        )


def _compare_memory(new: EngineProcess, old: EngineProcess) -> None:
    limit_mib = MAX_MEMORY * old.ready.rss_mib
    if old.ready.rss_mib and new.ready.rss_mib > limit_mib:
        raise TrialFailed(
            "health_memory",
            f"memory: expected at most {limit_mib:.0f} MiB, twice the old model's, "
            f"got {new.ready.rss_mib:.0f}",
        )


async def _compare_speed(new: EngineProcess, old: EngineProcess) -> None:
    """Measure both in turns, so that a busy board fails no good model.

    A model is slow when its best round is slower than the old one's best, and the middle one of its
    rounds is slower than the round of the old one before it: one clear moment of the old engine
    proves nothing.  Only rounds in which the old engine had nothing else to do count; where queries
    leave too few of them, the new model is not held to its speed.
    """
    best_new = best_old = 0.0
    ratios: list[float] = []
    for _ in range(MAX_ROUNDS):
        try:
            old_speed = await _tokens_per_s(old)
        except EngineError:
            return  # it has ended: there is nothing to compare with
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(old.idle.wait(), IDLE_TIMEOUT_S)
        started = old.n_started
        new_speed = await _tokens_per_s(new)
        best_old, best_new = max(best_old, old_speed), max(best_new, new_speed)
        if best_new >= MIN_SPEED * best_old:
            return
        if old.idle.is_set() and old.n_started == started and old_speed:
            ratios.append(new_speed / old_speed)
        if len(ratios) == SPEED_ROUNDS:
            if statistics.median(ratios) >= MIN_SPEED:
                return
            raise TrialFailed(
                "health_speed",
                f"speed: expected at least {MIN_SPEED * best_old:.1f} tokens/s, {MIN_SPEED:g} of "
                f"the old model's, got {best_new:.1f}",
            )
    log.warning("update.speed_unknown undisturbed_rounds=%d of=%d", len(ratios), SPEED_ROUNDS)


async def _tokens_per_s(engine: EngineProcess) -> float:
    """Return the speed of a short answer; 0 if it was too short to tell."""
    request: dict[str, Any] = {
        "op": "generate",
        "id": f"trial-{next(_number)}",
        "prompt": "Hello",
        "params": {"max_tokens": SPEED_TOKENS, "temperature": 0.0},
    }
    async with contextlib.aclosing(engine.generate(request)) as messages:
        async for message in messages:
            if message["event"] == "done":
                return float(message.get("timings", {}).get("tokens_per_s") or 0.0)
    return 0.0
