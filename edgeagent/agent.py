"""The agent process: opens the adapters, runs every loop in one task group, owns the shutdown.

    mqtt -> intake -> inbox -> answering -> engine process
                                  |
    sensing, reporting, updating, engines, watchdog: one loop each

This is the only place that catches what nobody expected: it is written to the journal, and the
process ends, so that systemd starts a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from edgeagent import __version__, config, events
from edgeagent.adapters.control import Control, only_agent
from edgeagent.adapters.engine_process import ENGINE_COMMAND, EngineSettings
from edgeagent.adapters.machine import machine
from edgeagent.adapters.metered import Metered
from edgeagent.adapters.mqtt import WINDOW_MARGIN, Handlers, Mqtt
from edgeagent.adapters.mqtt_client import LOOP_S, Broker, Subscription, tls_context
from edgeagent.adapters.sd_notify import Notifier
from edgeagent.adapters.sensors import Sensors
from edgeagent.answering import Answering
from edgeagent.config import Config
from edgeagent.device_reports import DeviceReports
from edgeagent.discovery import Node, device, discovery_topic
from edgeagent.engines import Engines, Models
from edgeagent.errors import (
    EX_OK,
    EX_SOFTWARE,
    AdapterError,
    ConfigError,
    EdgeAgentError,
    ProtocolError,
    QueryRefused,
)
from edgeagent.home_assistant import HomeAssistant
from edgeagent.intake import Intake
from edgeagent.model_store import ModelStore
from edgeagent.progress import Progress
from edgeagent.protocol.commands import FORGIVE, UPDATE_ACTIONS, read_model
from edgeagent.protocol.inbox import Inbox
from edgeagent.protocol.messages import Bounds, Incoming
from edgeagent.protocol.replies import encode
from edgeagent.protocol.reports import OFFLINE, ONLINE
from edgeagent.protocol.topics import Topics, update_notice
from edgeagent.reporting import Reporting
from edgeagent.sensing import Sensing
from edgeagent.surroundings import Surroundings, limits_of
from edgeagent.update_source import UpdateSource, medium
from edgeagent.updating import Updating

log = logging.getLogger(__name__)

FINISH_S = 5.0
"""At SIGTERM a running query gets this long; a short answer at usual speeds."""

CANCEL_S = 5.0
"""Then it is cancelled; together with the goodbye this stays below systemd's 20 s."""

STATUS_S = 10.0

LARGE_BLOCK_BYTES = 1 << 20
"""The largest line of a link; only messages that are refused are larger."""

_M_MMAP_THRESHOLD = -3  # <malloc.h>


class Agent:
    """Every part of the agent, put together."""

    def __init__(
        self,
        settings: Config,
        notifier: Notifier,
        models: Models,
        *,
        engine_command: Sequence[str] | None = None,
        is_alone: bool = True,
    ) -> None:
        self._config = settings
        self._notifier = notifier
        self._topics = topics = Topics(settings.node.name, settings.mqtt.prefix)
        self._progress = progress = Progress(notifier.watchdog_s)
        self._mqtt = mqtt = Mqtt(
            _broker(settings, topics, progress.wake_s),
            Handlers(self._on_message, self._on_connected, self._on_lost, progress.loop("mqtt")),
        )
        self._engines = Engines(
            _engine_settings(settings, engine_command),
            models,
            progress,
            crashes_to_revert=settings.update.soak_crashes,
            on_change=self._on_engine,
        )
        self._intake = Intake(
            mqtt,
            topics,
            settings.mqtt.reply_prefixes,
            _bounds(settings),
            Inbox(settings.query.max_queue),
        )
        self._sensing = Sensing(
            Sensors(settings.power.sysroot), progress, settings.telemetry.interval_s
        )
        self._answering = Answering(self._intake, mqtt, self._engines, self._sensing, progress)
        self._reporting = Reporting(
            settings,
            topics,
            mqtt,
            self._intake,
            self._answering,
            self._engines,
            self._sensing,
            progress,
        )
        self._reports = self._make_reports()
        self._updating, self._home = self._make_updating(models), self._make_home()
        self._routes: dict[str, Callable[[Incoming], None]] = {
            topics.query_request: self._intake.on_request,
            topics.query_cancel: self._intake.on_cancel,
        }
        self._notes: dict[str, Callable[[Incoming], None]] = {  # acknowledged at once
            topics.update_request: self._updating.on_request,
            update_notice(settings.update.repo): self._updating.on_notice,
            settings.home_assistant.status_topic: self._home.on_status,
        }
        self._control = self._make_control(is_alone)
        self._defect: BaseException | None = None
        self._stop = asyncio.Event()

    def _make_reports(self) -> DeviceReports:
        settings = self._config
        reports = DeviceReports(
            self._mqtt,
            self._topics.model_report,
            settings.node.name,
            settings.paths.state_dir,
            self._reporting.facts,
            self._progress,
        )
        self._reporting.on_end, self._reporting.on_report_again = reports.ended, reports.again
        return reports

    def _make_home(self) -> HomeAssistant:
        settings = self._config
        topic = discovery_topic(settings.home_assistant.prefix, settings.node.name)
        return HomeAssistant(
            self._mqtt,
            topic if settings.home_assistant.discovery else None,
            self._announcement,
            lambda: self._sensing.last.time_s > 0,  # which sensors there are
            settings.paths.state_dir,
            self._progress,
        )

    def _announcement(self) -> bytes:
        """Return what Home Assistant is told about this node."""
        settings = self._config
        node = Node(
            settings.node.name,
            machine(settings.power.sysroot).model,
            __version__,
            settings.telemetry.interval_s,
        )
        return encode(device(node, self._topics, self._sensing.last.sources))

    def _make_control(self, is_alone: bool) -> Control:
        path = config.control_socket(self._config.paths) if is_alone else None
        progress = self._progress
        return Control(path, self._on_control, progress.loop("control"), progress.wake_s)

    def _make_updating(self, models: Models) -> Updating:
        update = self._config.update
        self._source = UpdateSource(update)
        link = Metered(update.metered, update.metered_file)
        surroundings = Surroundings(
            limits_of(update), self._sensing, link, lambda: self._answering.is_busy
        )
        return Updating(
            self._updater_start,
            self._engines,
            models,
            self._reporting,
            self._progress,
            is_enabled=update.enabled and update.root_file is not None,
            poll_interval_s=update.poll_interval_s,
            trial_timeout_s=update.trial_timeout_s,
            surroundings=surroundings,
        )

    async def run(self) -> None:
        """Run every loop until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.set_exception_handler(self._on_defect)
        self._mqtt.publish_retained(self._topics.state, ONLINE)
        loops: dict[str, Coroutine[Any, Any, None]] = {
            "mqtt": self._mqtt.run(),
            "engine": self._engines.run(),
            "queue": self._answering.run(),
            "deadlines": self._answering.run_deadlines(),
            "sensors": self._sensing.run(),
            "update": self._updating.run(),
            "control": self._control.run(),
            "discovery": self._home.run(),
            "reports": self._reports.run(),
            "telemetry": self._reporting.run_telemetry(),
            "health": self._reporting.run_health(),
            "watchdog": self._watch(),
        }
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(body, name=name) for name, body in loops.items()]
            await self._stop.wait()
            await self._shut_down()
            for task in tasks:
                task.cancel()
        if self._defect is not None:
            raise self._defect

    # -- what the adapters tell -----------------------------------------------------------------

    def _on_message(self, incoming: Incoming) -> None:
        try:
            if route := self._routes.get(incoming.topic):
                route(incoming)
                return
            if note := self._notes.get(incoming.topic):
                note(incoming)
        except Exception as err:
            # Without its acknowledgement the broker would send it again to the next process, and
            # the one after: a message that meets a defect of ours must not stop the device.
            log.critical("agent.defect topic=%s reason=%r", incoming.topic, str(err), exc_info=err)
        self._mqtt.acknowledge(incoming.delivery)

    def _on_control(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer somebody on this machine."""
        action = request.get("update")
        if action == "history":
            return {"status": "ok", "data": {"history": self._reporting.history.entries()}}
        if action not in UPDATE_ACTIONS:
            known = ", ".join(UPDATE_ACTIONS)
            return {"status": "error", "error": f"update: expected one of {known}, got {action!r}"}
        try:
            model = read_model(request.get("model")) if action == FORGIVE else ""
            place = medium(request["from"]) if "from" in request else None
            data = self._updating.request(str(action), model)
            if place is not None:
                self._source.use(place)
            return {"status": "ok", "data": data}
        except (ConfigError, ProtocolError, QueryRefused) as err:
            return {"status": "error", "error": str(err)}

    def _on_connected(self) -> None:
        self._reporting.publish_info()
        self._reporting.publish_health()
        self._home.connected()

    def _on_lost(self) -> None:
        self._intake.connection_lost()

    def _on_engine(self, kind: str, data: dict[str, object]) -> None:
        self._answering.engine_changed()
        self._updating.engine_changed()
        self._reporting.event(kind, data)
        self._reporting.publish_info()
        self._reporting.publish_health()

    def _on_defect(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End the process for what went wrong in a callback, where no task group sees it."""
        self._defect = self._defect or context.get("exception") or RuntimeError(context["message"])
        self._stop.set()

    def _updater_start(self, action: str) -> dict[str, Any]:
        """Return the fields of the updater's ``start``."""
        settings, mqtt = self._config, self._config.mqtt
        return {
            "action": action,
            "state_dir": str(settings.paths.state_dir),
            "bundled_dir": str(settings.model.path),
            "repo": settings.update.repo,
            "node": settings.node.name,
            "mqtt": {
                "host": mqtt.host,
                "port": mqtt.port,
                "username": mqtt.username or None,
                "password": config.password(mqtt),
                "protocol": self._mqtt.version,
                "tls": _tls_files(settings),
            },
            "root_file": str(settings.update.root_file),
            "hardware": settings.update.hardware,
            "flash_budget_bytes": settings.update.flash_budget_mib << 20 or None,
            "agent_version": __version__,
            **self._source.fields(action, self._updating.state.phase),
            "shrink_after_s": max(settings.update.previous_slot_s, settings.update.soak_s)
            if settings.update.previous_slot_s
            else None,
        }

    # -- life ----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Tell systemd when we are ready, how we are, and that every loop is alive."""
        await self._engines.tried.wait()
        await self._mqtt.tried.wait()
        self._notifier.send(READY="1", STATUS=self._reporting.status_line())
        log.info("agent.ready version=%s node=%s", __version__, self._config.node.name)
        watchdog_s = self._notifier.watchdog_s
        interval_s = STATUS_S if watchdog_s is None else min(STATUS_S, watchdog_s / 2)
        self._progress.silent()
        while True:
            await asyncio.sleep(interval_s)
            fields = {"STATUS": self._reporting.status_line()}
            silent = self._progress.silent()
            if silent:
                log.error("agent.stuck loops=%s", ",".join(silent))
            else:
                fields["WATCHDOG"] = "1"
            self._notifier.send(**fields)

    async def _shut_down(self) -> None:
        log.info("agent.stopping")
        self._notifier.send(STOPPING="1", STATUS="stopping")
        await self._answering.drain(FINISH_S, CANCEL_S)
        await self._mqtt.close(self._topics.state, OFFLINE)


def run(settings: Config, *, engine_command: Sequence[str] | None = None) -> int:
    """Run the agent until SIGTERM; return a sysexits code.

    Args:
        settings: The configuration.
        engine_command: What to start as the engine, for tests; by default the real one.
    """
    events.install()
    _give_large_blocks_back()
    started_s = time.monotonic()
    try:
        asyncio.run(_main(settings, engine_command))
    except Exception as err:  # noqa: BLE001  (the last resort, see the module's docstring)
        return _exit_code(err)
    log.info("agent.stopped uptime_s=%.0f", time.monotonic() - started_s)
    return EX_OK


def _give_large_blocks_back() -> None:
    """Keep glibc from learning, by one message of 10 MB, to keep blocks of that size for ever."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


async def _main(settings: Config, engine_command: Sequence[str] | None) -> None:
    with _as_only_agent(settings) as is_alone:
        models = ModelStore(settings.paths.state_dir, settings.model.path, settings.update.soak_s)
        await Agent(
            settings, Notifier(), models, engine_command=engine_command, is_alone=is_alone
        ).run()


@contextlib.contextmanager
def _as_only_agent(settings: Config) -> Iterator[bool]:
    """Hold the lock that tells commands that an agent runs; without it the agent runs, too."""
    is_alone = False
    with contextlib.ExitStack() as stack:
        try:
            is_alone = stack.enter_context(only_agent(settings.paths.state_dir))
            if not is_alone:
                log.error("agent.not_alone state_dir=%s", settings.paths.state_dir)
        except AdapterError as err:
            log.warning("agent.no_lock reason=%r", str(err))
        yield is_alone


def _exit_code(err: Exception) -> int:
    """Write down what ended the agent; return the exit code."""
    known: BaseException | None = err
    if isinstance(err, ExceptionGroup):
        expected, defects = err.split(EdgeAgentError)
        known = None if defects is not None else expected
    while isinstance(known, ExceptionGroup):
        known = known.exceptions[0]
    if isinstance(known, EdgeAgentError):
        log.error("agent.failed code=%s reason=%r", known.code, str(known))
        return known.exit_code
    log.critical("agent.defect reason=%r", str(err), exc_info=err)
    return EX_SOFTWARE


def _broker(settings: Config, topics: Topics, wake_s: float) -> Broker:
    mqtt = settings.mqtt
    subscriptions = [
        Subscription(topics.query_request),
        # QoS 0: at QoS 1 it would wait behind the very queries it is to stop.
        Subscription(topics.query_cancel, qos=0),
        Subscription(topics.update_request),
    ]
    if settings.update.enabled:
        subscriptions.append(Subscription(update_notice(settings.update.repo), wants_retained=True))
    if settings.home_assistant.discovery:
        subscriptions.append(Subscription(settings.home_assistant.status_topic, qos=0))
    tls = None
    if _tls_files(settings) is not None:
        try:
            tls = tls_context(mqtt.tls_ca_file, mqtt.tls_cert_file, mqtt.tls_key_file)
        except OSError as err:
            raise ConfigError(f"mqtt.tls_*_file: {err}") from err
    return Broker(
        host=mqtt.host,
        port=mqtt.port,
        client_id=settings.node.name,
        will_topic=topics.state,
        will_payload=OFFLINE,
        subscriptions=tuple(subscriptions),
        username=mqtt.username or None,
        password=config.password(mqtt),
        tls=tls,
        protocol=mqtt.protocol,
        keepalive_s=mqtt.keepalive_s,
        session_expiry_s=mqtt.session_expiry_s,
        max_unacknowledged=settings.query.max_queue + WINDOW_MARGIN,
        max_payload_bytes=settings.query.max_bytes,
        turn_s=min(wake_s, LOOP_S),
    )


def _tls_files(settings: Config) -> dict[str, str | None] | None:
    """Return what the updater needs to encrypt as we do; None without encryption."""
    mqtt = settings.mqtt
    files = {"ca_file": mqtt.tls_ca_file, "cert_file": mqtt.tls_cert_file}
    if not mqtt.tls and not any(files.values()):
        return None
    files["key_file"] = mqtt.tls_key_file
    return {name: None if path is None else str(path) for name, path in files.items()}


def _engine_settings(settings: Config, command: Sequence[str] | None) -> EngineSettings:
    engine = settings.engine
    return EngineSettings(
        command=ENGINE_COMMAND if command is None else command,
        threads=engine.threads,
        kernel=engine.kernel,
        zero_skip=engine.zero_skip,
        kv_bits=engine.kv_bits,
        kv_group_size=engine.kv_group_size,
        cpus=engine.cpus,
        start_timeout_s=engine.start_timeout_s,
        hang_timeout_s=engine.hang_timeout_s,
    )


def _bounds(settings: Config) -> Bounds:
    query = settings.query
    return Bounds(
        max_bytes=query.max_bytes,
        default_max_tokens=query.default_max_tokens,
        default_deadline_s=query.default_deadline_s,
        max_deadline_s=query.max_deadline_s,
        zero_skip=settings.engine.zero_skip,
    )
