"""What the node says about itself: info once a connection, health and telemetry in their time."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeagent import __version__
from edgeagent.adapters.machine import machine
from edgeagent.adapters.mqtt import Mqtt
from edgeagent.answering import Answering
from edgeagent.config import Config
from edgeagent.engines import Engines
from edgeagent.intake import Intake
from edgeagent.progress import Progress
from edgeagent.protocol.messages import MAX_MESSAGES, NUMBERS
from edgeagent.protocol.replies import encode
from edgeagent.protocol.reports import EventLog, ModelState
from edgeagent.protocol.topics import Topics
from edgeagent.sensing import Sensing
from edgeagent.update_history import History

CAPABILITIES = ("stream", "cancel", "deadline", "seed", "energy", "update")


def rss_mib() -> float:
    """Return the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _nothing() -> None:
    """Nobody wants to know."""


class Reporting:
    """Publishes the node's own state."""

    def __init__(
        self,
        config: Config,
        topics: Topics,
        mqtt: Mqtt,
        intake: Intake,
        answering: Answering,
        engines: Engines,
        sensing: Sensing,
        progress: Progress,
    ) -> None:
        self.last_error: dict[str, Any] | None = None
        self._config = config
        self._topics = topics
        self._mqtt = mqtt
        self._intake = intake
        self._answering = answering
        self._engines = engines
        self._sensing = sensing
        self._progress = progress
        self._events = EventLog()
        self.history = History(config.paths.state_dir)
        self.on_end: Callable[[], None] = _nothing
        self.on_report_again: Callable[[], None] = _nothing
        self._started_s = time.monotonic()

    async def run_telemetry(self) -> None:
        """Publish telemetry at its interval."""
        beat = self._progress.loop("telemetry")
        while True:
            self._mqtt.publish(self._topics.telemetry, self.telemetry())
            await self._progress.sleep(self._config.telemetry.interval_s, beat)

    async def run_health(self) -> None:
        """Publish health at its interval."""
        beat = self._progress.loop("health")
        while True:
            self.publish_health()
            await self._progress.sleep(self._config.telemetry.health_interval_s, beat)

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Publish that something happened; failures are kept as the last error."""
        now_s = time.time()
        if kind in {"engine_failed", "rolled_back", "update_failed"}:
            self.last_error = {"type": kind, "time_s": round(now_s, 3), **data}
        if self.history.add(kind, data, now_s):
            self.on_end()
        self._mqtt.publish(self._topics.event, self._events.encode(kind, data, now_s), qos=1)

    def report_again(self) -> None:
        """Publish every signed report that is kept."""
        self.on_report_again()

    def publish_info(self) -> None:
        """Publish what this node is."""
        self._mqtt.publish_retained(self._topics.info, self.info())

    def publish_health(self) -> None:
        """Publish how this node is."""
        self._mqtt.publish_retained(self._topics.health, self.health())

    def publish_state(self, state: ModelState) -> None:
        """Publish the state of the model."""
        self._mqtt.publish_retained(self._topics.model_state, state.encode())

    def respond(self, payload: bytes) -> None:
        """Publish the answer to a request for an update."""
        self._mqtt.publish(self._topics.update_response, payload, qos=1)

    def facts(self) -> dict[str, Any]:
        """Return what each signed report says besides the end of an update."""
        engine = self._engines.current
        ready = None if engine is None else engine.ready
        model = ready and {"name": ready.name, "version": ready.version, "root": ready.root}
        return {"agent_version": __version__, "model": model}

    def info(self) -> bytes:
        """Return the ``info`` payload."""
        config, engine = self._config, self._engines.current
        ready = None if engine is None else engine.ready
        return encode(
            {
                "node": config.node.name,
                "agent_version": __version__,
                "python": platform.python_version(),
                "board": machine(config.power.sysroot).as_dict(),
                "mqtt": self._mqtt.version,
                "model": None
                if ready is None
                else {"name": ready.name, "version": ready.version, "root": ready.root},
                "engine": None
                if ready is None
                else {
                    "kernel": ready.kernel,
                    "threads": ready.threads,
                    "context": ready.context,
                    "load_ms": ready.load_ms,
                    "rss_mib": ready.rss_mib,
                },
                "limits": {
                    "max_queue": config.query.max_queue,
                    "max_bytes": config.query.max_bytes,
                    "max_deadline_s": config.query.max_deadline_s,
                    "max_tokens": NUMBERS["max_tokens"].high,
                    "max_messages": MAX_MESSAGES,
                },
                "capabilities": list(CAPABILITIES),
            }
        )

    def health(self) -> bytes:
        """Return the ``health`` payload."""
        engine, totals = self._engines.current, self._answering.totals
        failure = self._engines.failure
        return encode(
            {
                "status": "ok" if engine is not None else "no_engine",
                "uptime_s": round(time.monotonic() - self._started_s, 1),
                "rss_mib": rss_mib(),
                "queue": {
                    "waiting": len(self._intake.inbox),
                    "max": self._config.query.max_queue,
                    "answered": totals.answered,
                    "failed": totals.failed,
                    "refused": self._intake.refusals,
                },
                "mqtt": {"version": self._mqtt.version, **asdict(self._mqtt.counters)},
                "engine": {
                    "restarts": self._engines.restarts,
                    "failure": None if failure is None else str(failure),
                },
                "last_error": self.last_error,
            }
        )

    def telemetry(self) -> bytes:
        """Return the ``telemetry`` payload; what is not measured is null, with the reason."""
        sample, totals = self._sensing.last, self._answering.totals
        values = {
            name: getattr(sample, name) for name in ("temperature_c", "power_w", "energy_j")
        } | {
            name: getattr(sample, name, None)
            for name in ("throttled", "undervoltage", "battery_percent", "battery_w")
        }
        return encode(
            {
                **values,
                "tokens_per_s": totals.last_tokens_per_s,
                "j_per_token": totals.last_j_per_token,
                "prompt_tokens": totals.prompt_tokens,
                "completion_tokens": totals.completion_tokens,
                "query_joules": round(totals.joules, 3),
                "queue": len(self._intake.inbox),
                "sources": dict(sample.sources),
                "absent": dict(sample.absent),
            }
        )

    def status_line(self) -> str:
        """Return one line for ``systemctl status``."""
        totals, sample = self._answering.totals, self._sensing.last
        link = f"MQTT {self._mqtt.version}" if self._mqtt.is_connected else "offline"
        engine = self._engines.current
        model = f"{engine.ready.name} {engine.ready.version}" if engine else "no engine"
        speed = f"{totals.last_tokens_per_s:.1f} tok/s" if totals.last_tokens_per_s else "- tok/s"
        heat = "-" if sample.temperature_c is None else f"{sample.temperature_c:.1f}"
        return f"{link}; {model}; {totals.answered} answered; {speed}; {heat} C"
