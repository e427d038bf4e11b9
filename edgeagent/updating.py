"""Model updates: when to look, the trial of a new model, and the switch to it.

The updater process fetches and verifies.  The agent lets a second engine prove the new model while
the first one answers queries, and switches only after the updater has committed; the old engine
finishes its query and leaves.  No query is dropped; a failure at any point leaves the old model.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from edgeagent.adapters.engine_process import EngineProcess
from edgeagent.adapters.updater_process import SILENCE_S, Updater
from edgeagent.engines import Engines, Models, WayBack
from edgeagent.errors import AdapterError, EdgeAgentError, ProtocolError, QueryRefused
from edgeagent.progress import Progress
from edgeagent.protocol.commands import FORGIVE, parse_update_request
from edgeagent.protocol.messages import Incoming
from edgeagent.protocol.reports import ModelState, update_refusal, update_response
from edgeagent.surroundings import Surroundings
from edgeagent.trial import TrialFailed, prove
from edgeagent.update_history import History
from edgeagent.update_rest import Gate, Rest, Rests
from ota.errors import UpdateError
from ota.reasons import advice_on

log = logging.getLogger(__name__)

ROLL_BACK, CANCEL, POLL = "rollback", "cancel", "poll"
BY_REQUEST = "rolled back on request"

HISTORY_ENTRIES = 20
"""In one answer over MQTT: some kilobytes."""

GATE_STEP_S = 2.0
"""How often a condition that holds a stage back is looked at."""


class UpdaterFailed(AdapterError):
    """The updater says why it cannot do what it was started for."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Outlet(Protocol):
    """Where the state of updates goes."""

    def publish_state(self, state: ModelState) -> None:
        """Publish ``model/state``."""

    def respond(self, payload: bytes) -> None:
        """Publish on ``model/update/response``."""

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Publish an event."""

    def report_again(self) -> None:
        """Publish every signed report that is kept."""

    @property
    def history(self) -> History:
        """What became of updates."""


class Updating:
    """Follows one repository."""

    def __init__(
        self,
        start_message: Callable[[str], dict[str, Any]],
        engines: Engines,
        models: Models,
        outlet: Outlet,
        progress: Progress,
        *,
        is_enabled: bool,
        poll_interval_s: float,
        trial_timeout_s: float,
        surroundings: Surroundings | None = None,
        start: Callable[[dict[str, Any]], Any] = Updater.start,
    ) -> None:
        self.state = ModelState(title="", installed_version="", latest_version="")
        self._start_message = start_message
        self._engines = engines
        self._models = models
        self._outlet = outlet
        self._progress = progress
        self._beat = progress.loop("update")
        self._is_enabled = is_enabled
        self._rests = Rests(poll_interval_s)
        self._rest = self._rests.poll
        self._surroundings = surroundings
        self._trial_timeout_s = trial_timeout_s
        self._start = start
        self._wanted = asyncio.Event()
        self._action = POLL
        self._updater: Updater | None = None
        self._proving: asyncio.Task[EngineProcess] | None = None
        self._is_updating = self._is_cancelled = False
        self._gated_by: tuple[str, str] | None = None  # what was told last
        self._notice = b""
        self._settled_notice = b""  # the notice after which there was nothing left to do

    # -- what triggers --------------------------------------------------------------------------

    def on_notice(self, incoming: Incoming) -> None:
        """Take in the repository's notice; the one that is settled says nothing new."""
        self._notice = incoming.payload
        if incoming.payload != self._settled_notice:
            self._wanted.set()

    def on_request(self, incoming: Incoming) -> None:
        """Take in a message of ``model/update/request``."""
        if incoming.is_retained:
            return
        try:
            request = parse_update_request(incoming)
        except ProtocolError as err:
            self._outlet.respond(update_refusal(str(err), None))
            return
        try:
            answer = self.request(request.action, request.model)
        except QueryRefused as err:
            self._outlet.respond(update_refusal(str(err), request.transaction))
        else:
            self._outlet.respond(update_response(answer, request.transaction))

    def request(self, action: str, model: str = "") -> dict[str, Any]:
        """Do or answer what somebody asks for; returns the data of the answer.

        ``model`` is what ``forgive`` means.

        Raises:
            QueryRefused: Not now, or not here.
        """
        if action == "history":
            return {"history": self._outlet.history.entries(HISTORY_ENTRIES)}
        if action == "status":
            return self.status()
        if action == "report":
            self._outlet.report_again()
            return {"action": action}
        if action == FORGIVE:
            return self._forgive(model)
        if not self._is_enabled and action != ROLL_BACK:
            raise QueryRefused("updates are not enabled here", code="disabled")
        if action == CANCEL:
            self._cancel()
        elif action == ROLL_BACK and self._models.way_back() is WayBack.NONE:
            raise QueryRefused("there is no model before the active one on this disk", code="none")
        else:
            self._action = action
            self._wanted.set()
        return {"action": action}

    def status(self) -> dict[str, Any]:
        """Return ``model/state``, and what only somebody at the device wants to know."""
        state: dict[str, Any] = json.loads(self.state.encode())
        return state | {
            "enabled": self._is_enabled,
            "way_back": self._models.way_back().value,
            "quarantine": self._models.quarantine(),
        }

    def _forgive(self, model: str) -> dict[str, Any]:
        """Lift a quarantine; nothing begins by itself: what is asked for next finds it lifted."""
        if self._is_updating or self.state.is_in_progress:
            raise QueryRefused("an update is under way; ask again when it is over", code="busy")
        try:
            forgiven = self._models.forgive(model)
        except UpdateError as err:
            raise QueryRefused(str(err), code=err.code) from err
        for entry in forgiven:
            log.info("update.forgiven version=%s root=%s", entry["version"], entry["root"])
            self._outlet.event("update_forgiven", entry)
        return {"forgiven": forgiven}

    def _cancel(self) -> None:
        """Give up what is under way, or waits to go on; a later release is not held."""
        if self._is_updating:
            self._is_cancelled = True
            if self._updater is not None:
                self._updater.cancel()
            if self._proving is not None:
                self._proving.cancel()
        elif self.state.phase in {"gated", "failed"}:
            self._action = CANCEL
            self._wanted.set()
        else:
            raise QueryRefused("nothing is under way", code="none")

    def engine_changed(self) -> None:
        """Publish the version that runs now."""
        engine = self._engines.current
        if engine is None:
            return
        state = self.state
        if state.latest_version == state.installed_version:
            state.latest_version = engine.ready.version
        state.title, state.installed_version = engine.ready.name, engine.ready.version
        self._outlet.publish_state(state)

    # -- the loop -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look for updates when told to, and from time to time."""
        await self._wait_for_engine()
        while True:
            await self._wait(self._rest)
            action, self._action = self._action, POLL
            if not self._is_enabled and action != ROLL_BACK:
                continue
            notice = self._notice
            try:
                if action == ROLL_BACK:
                    await self._roll_back()
                    continue
                self._rest = await self._update(action)
            except EdgeAgentError as err:
                log.error("update.failed code=%s reason=%r", err.code, str(err))
                self._failed(str(err), err.code)
                self._rest = self._rests.broken()
            else:
                self._settled_notice = notice

    async def _wait_for_engine(self) -> None:
        while self._engines.current is None:
            await self._progress.sleep(1.0, self._beat)

    async def _wait(self, rest: Rest) -> None:
        clock = asyncio.get_running_loop().time
        begin_s = clock()
        step_s = self._progress.wake_s if rest.gate is None else GATE_STEP_S
        while not self._wanted.is_set() and (left_s := begin_s + rest.seconds - clock()) > 0:
            self._beat()
            may_look = rest.gate is not None and clock() - begin_s >= rest.gate.least_s
            if may_look and await self._is_open(rest.gate):
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, step_s)):
                    await self._wanted.wait()
        self._wanted.clear()

    async def _is_open(self, gate: Gate | None) -> bool:
        """Say whether what held a stage back is over."""
        if gate is None or self._surroundings is None:
            return False
        return await self._surroundings.may_resume(gate.stage)

    async def _begin(self, action: str) -> Updater:
        """Start the updater, with what it must know about the device."""
        log.info("update.started action=%s", action)
        start = self._start_message(action)
        if self._surroundings is not None:
            start["limits"] = self._surroundings.limits
            start["conditions"] = await self._surroundings.take()
        updater: Updater = await self._start(start)
        self._updater = updater
        if self._is_cancelled:
            updater.cancel()
        return updater

    async def _update(self, action: str) -> Rest:
        """Run the updater once; return how long to rest."""
        self._is_updating, self._is_cancelled = True, False
        try:
            return await self._follow(await self._begin(action))
        finally:
            self._is_updating, self._updater = False, None

    async def _follow(self, updater: Updater) -> Rest:
        """Do what the updater says until it ends."""
        trial: EngineProcess | None = None
        try:
            while (message := await self._next(updater)) is not None:
                event = message.get("event")
                if event == "state":
                    self._phase(str(message.get("state", "")), message.get("progress"))
                elif event == "conditions":
                    await self._tell_conditions(updater)
                elif event == "quiesce":
                    await self._engines.hold()
                    updater.quiet()
                elif event == "staged":
                    trial = await self._try(updater, message)
                elif event == "committed":
                    return self._switch(message, trial)
                else:
                    return self._end(message)
            if trial is not None and self._models.active() == Path(trial.ready.path):
                return self._switch({"version": trial.ready.version}, trial)
            raise AdapterError("the updater ended without a result")
        finally:
            if trial is not None and trial is not self._engines.current:
                await trial.kill()
            await updater.end()
            self._engines.release()

    async def _tell_conditions(self, updater: Updater) -> None:
        if self._surroundings is not None:
            updater.tell(await self._surroundings.take())

    async def _roll_back(self) -> None:
        """Return to the model before the active one, from this disk.

        The engine leaves first, since its files may be turned back; queries wait for the old model.

        Raises:
            AdapterError: There is no way back.
        """
        way = self._models.way_back()
        version, code = self.state.installed_version, "rollback_requested"
        log.info("update.rollback from=%s way=%s", version, way.value)
        if way is WayBack.NONE:
            raise AdapterError("there is no model before the active one on this disk")
        self._phase("rolling_back", None)
        if way is WayBack.DELTA:
            await self._rebuild()
        await self._engines.hold()
        try:
            reverting = asyncio.ensure_future(
                asyncio.to_thread(self._models.revert, BY_REQUEST, code)
            )
            while not reverting.done():
                self._beat()
                await asyncio.wait([reverting], timeout=self._progress.wake_s)
            reverting.result()
        finally:
            self._engines.release()
        self.state.release_summary = f"{version}: {BY_REQUEST}"
        self._phase("rolled_back", None)
        self._outlet.event("rolled_back", {"version": version, "reason": BY_REQUEST, "code": code})

    async def _rebuild(self) -> None:
        """Have the updater make the model before the active one; queries go on meanwhile.

        Raises:
            UpdaterFailed: It cannot be made; nothing has changed.
        """
        self._is_cancelled = False
        updater = await self._begin("rebuild")
        try:
            message = await self._next(updater) or {}
            if message.get("event") != "rebuilt":
                code, said = message.get("code"), message.get("message")
                raise UpdaterFailed(str(said or "the updater ended without a result"), str(code))
            log.info("update.rebuilt seconds=%s", message.get("seconds"))
        finally:
            self._updater = None
            await updater.end()

    async def _next(self, updater: Updater) -> dict[str, Any] | None:
        """Return the updater's next message, with a beat meanwhile."""
        receiving = asyncio.ensure_future(updater.receive())
        try:
            silent_s = 0.0
            while not receiving.done():
                self._beat()
                await asyncio.wait([receiving], timeout=self._progress.wake_s)
                silent_s += self._progress.wake_s
                if silent_s > SILENCE_S:
                    updater.kill()
                    raise AdapterError(f"the updater was silent for {SILENCE_S:g} s")
            return receiving.result()
        finally:
            receiving.cancel()

    async def _try(self, updater: Updater, staged: dict[str, Any]) -> EngineProcess | None:
        """Let a second engine prove the staged model; tell the updater the verdict."""
        self.state.latest_version = str(staged.get("to", ""))
        self._phase("trial", None)
        proving = asyncio.create_task(self._proof(Path(str(staged["slot"]))), name="trial")
        self._proving = proving
        try:
            while not proving.done():
                self._beat()
                await asyncio.wait([proving], timeout=self._progress.wake_s)
            if proving.cancelled():
                return None  # the updater was told, too
            trial = proving.result()
            if staged.get("root", trial.ready.root) != trial.ready.root:
                await trial.kill()
                raise TrialFailed(
                    "health_root", f"expected root {staged['root']}, got {trial.ready.root}"
                )
        except EdgeAgentError as err:
            log.warning("update.trial_failed version=%s reason=%r", staged.get("to"), str(err))
            updater.judge(ok=False, reason=str(err), code=err.code)
            return None
        finally:
            self._proving = None
            proving.cancel()
        log.info("update.trial_passed version=%s", trial.ready.version)
        updater.judge(ok=True)
        return trial

    def _proof(self, slot: Path) -> Coroutine[Any, Any, EngineProcess]:
        engines = self._engines
        return prove(slot, engines.settings, self._trial_timeout_s, engines.current)

    # -- the end --------------------------------------------------------------------------------

    def _switch(self, committed: dict[str, Any], trial: EngineProcess | None) -> Rest:
        version = str(committed.get("version", ""))
        log.info("update.committed version=%s", version)
        self._set_phase("idle", None)
        self.state.latest_version = version
        self.state.release_summary = ""
        if trial is not None:
            self._engines.replace(trial)
        self.engine_changed()
        self._outlet.event("update_committed", _without_event(committed))
        return self._rests.settled()

    def _end(self, message: dict[str, Any]) -> Rest:
        event = message.get("event")
        if event == "up_to_date":
            self.state.latest_version = str(message.get("version", self.state.installed_version))
            self._phase("idle", None)
            return self._rests.settled()
        if event == "rolled_back":
            self.state.release_summary = str(message.get("reason", ""))
            self._phase("rolled_back", None)
            self._outlet.event("rolled_back", _with_advice(_without_event(message)))
            return self._rests.settled()
        if event != "failed":
            raise AdapterError(f"updater: expected an event, got {str(message)[:80]}")
        rest = self._rests.failed(message, random.random())
        reason, code = str(message.get("message", "")), str(message.get("code", ""))
        if rest.gate is None:
            self._failed(reason, code)
        else:
            self._gated(reason, rest)
        return rest

    def _gated(self, summary: str, rest: Rest) -> None:
        """Tell what holds the update back; the event once, the state as often as it is asked."""
        gate = rest.gate
        if gate is None:
            return
        log.info("update.gated stage=%s reason=%s", gate.stage, gate.reason)
        said = {"stage": gate.stage, "reason": gate.reason, "detail": gate.detail}
        self.state.release_summary = summary
        again_s = round(time.time() + gate.again_s)
        self._phase("gated", None, gated=said | {"again_at_s": again_s})
        if self._gated_by != (gate.stage, gate.reason):
            self._gated_by = gate.stage, gate.reason
            self._outlet.event("update_gated", said)

    def _failed(self, reason: str, code: str) -> None:
        self.state.release_summary = reason
        self._phase("failed", None, code=code)
        self._outlet.event("update_failed", _with_advice({"code": code, "reason": reason}))

    def _set_phase(
        self, phase: str, progress: Any, code: str = "", gated: dict[str, Any] | None = None
    ) -> None:
        self.state.phase, self.state.code, self.state.gated = phase, code, gated
        self.state.progress = float(progress) if isinstance(progress, int | float) else None
        if phase not in {"checking", "gated"}:
            self._gated_by = None

    def _phase(
        self, phase: str, progress: Any, *, code: str = "", gated: dict[str, Any] | None = None
    ) -> None:
        self._set_phase(phase, progress, code, gated)
        self._outlet.publish_state(self.state)


def _with_advice(data: dict[str, Any]) -> dict[str, Any]:
    """Add what to do about the code, where there is something to say."""
    advice = advice_on(str(data.get("code", "")))
    return data | {"advice": advice} if advice else data


def _without_event(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "event"}
