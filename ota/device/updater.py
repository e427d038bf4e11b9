"""One update on one device: the machine's actions, carried out.

``Updater.run`` feeds ``ota.machine`` and does what it answers.  The journal is written before each
action.  Every action can be carried out twice, so nothing here asks how the last run ended.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ota.conditions import FETCH, STAGE, TRIAL, Limits, Samples, decide
from ota.device.download import Download
from ota.device.flash import FlashLedger
from ota.device.journal import load_journal, save_journal
from ota.device.offers import read_offer, read_payloads
from ota.device.room import PATCH_SHARE, Room
from ota.device.source import Source
from ota.device.staging import Stager
from ota.device.store import Store
from ota.device.tuf_client import TufClient
from ota.errors import (
    Cancelled,
    FlashBudget,
    Gated,
    PayloadError,
    StorageError,
    TransportError,
    UpdateError,
    WireError,
)
from ota.machine import Action, Event, State, UpdateMachine
from ota.quarantine import MAX_REASON_CHARS, GivenUp
from ota.release import Release
from ota.retry import retry_after_s, uncounted_after_s
from ota.storage import Storage, read_release, verify_directory
from ota.trust import (
    Device,
    Offer,
    Payload,
    accept,
)

MAX_TRIALS = (
    3  # a slot that takes the agent down is offered again after each restart, but not for ever
)
PROGRESS_STEP = 0.02  # fifty reports an update are enough for any display


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the agent says about a slot."""

    is_good: bool
    reason: str = ""
    code: str = "health_failed"
    """Of ``ota.reasons``, if it is not good."""


class Agent(Protocol):
    """The agent, as the updater sees it."""

    def report(self, event: Mapping[str, Any]) -> None:
        """Tell the agent something."""
        ...

    def verdict(self) -> Verdict:
        """Wait for the verdict on the slot; raises ``Cancelled`` if there will be none."""
        ...

    def quiesce(self) -> None:
        """Return when no engine has the active model mapped; ``Cancelled`` if it will not."""
        ...

    def check_stop(self) -> None:
        """Raise ``Cancelled`` if the agent wants us to stop."""
        ...

    def wants_cancel(self) -> bool:
        """Say whether somebody asked to give this release up, not merely to stop for now."""
        ...

    def samples(self) -> Samples:
        """Return what the device is like now, as far as the agent knows."""
        ...


@dataclass(frozen=True, slots=True)
class Board:
    """What the agent knows about this device."""

    hardware: str
    agent_version: str
    limits: Limits = field(default_factory=Limits)
    """When the stages of an update may begin."""
    is_requested: bool = True
    """Somebody asked for this run: what was cancelled or struck out here is tried again."""
    shrink_after_s: float | None = None
    """How long after a commit the slot of the model before may become a delta; None: only for
    room."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What was decided, and everything that is signed about it."""

    base: Release
    offer: Offer
    payload: Payload
    release_sha256: str
    in_place: bool = False
    """Whether the active slot is written over, because there is no room for another one."""


class Updater:
    """Runs one update to its end, or to where it has to stop for now.

    Args:
        state_dir: the agent's state; ours is ``ota/`` below it
        store: the models
        source: where bytes come from
        storage: the disk
        bootstrap_root: the root metadata that came with the device
        board: what decides about a release on this side
        agent: whom to report to
        ledger: what may be written a day; None: it is not counted
    """

    def __init__(
        self,
        state_dir: Path,
        store: Store,
        source: Source,
        storage: Storage,
        bootstrap_root: bytes,
        board: Board,
        agent: Agent,
        ledger: FlashLedger | None = None,
    ) -> None:
        self._directory = state_dir / "ota"
        self._payload_path = self._directory / "payload.part"
        self._journal_path = self._directory / "update.json"
        self._store = store
        self._source = source
        self._storage = storage
        self._board = board
        self._agent = agent
        self._ledger = ledger or FlashLedger(storage, self._directory / "flash.json", None, None)
        self._tuf = TufClient(source, storage, self._directory / "tuf", bootstrap_root)
        self._plan: _Plan | None = None
        self._fetched_bytes = self._kept_bytes = 0
        self._error: UpdateError | None = None
        self._verdict = Verdict(False, "no verdict")
        self._started_s = time.monotonic()
        self._storage.make_directory(self._directory)
        self._journal = load_journal(self._journal_path)
        if board.is_requested:
            self._journal.cancelled = ""
            self._journal.refused.clear()
        self._ledger.begin(self._journal.written_bytes)
        self._machine = UpdateMachine(self._journal.state)

    def run(self) -> UpdateError | None:
        """Run the update; returns what stopped it, or None if it came to a good end."""
        event: Event | None = Event.STARTED
        try:
            while event is not None:
                event = self._perform(self._advance(event))
        finally:
            with suppress(StorageError):
                self._ledger.settle(time.time())
        return self._error

    def _advance(self, event: Event) -> Action:
        action = self._machine.handle(event)
        if self._machine.state is not self._journal.state:
            self._journal.state = self._machine.state
            self._save()
            if self._machine.state is not State.IDLE:  # how it ended is told by the last report
                self._report_state()
        return action

    def _perform(self, action: Action) -> Event | None:
        """Carry out ``action``; returns what happened, None at the end."""
        try:
            return self._do(action)
        except UpdateError as err:
            self._error = err
            return self._after(err)

    def _after(self, err: UpdateError) -> Event | None:
        """Return what ``err`` means to the machine."""
        if self._machine.state is State.IDLE:  # it came from a last action, and so ends the run
            self._keep()
            return None
        if isinstance(err, PayloadError) and self._plan is not None:
            self._journal.refused.append(self._plan.payload.sha256)
            self._save()
            return Event.PAYLOAD_REFUSED
        if isinstance(err, Cancelled) and self._agent.wants_cancel():
            self._give_up()
        if isinstance(err, (Cancelled, Gated, TransportError, StorageError, WireError)):
            return Event.INTERRUPTED
        return Event.FAILED

    def _do(self, action: Action) -> Event | None:
        going_on: dict[Action, Callable[[], Event]] = {
            Action.REFRESH: self._refresh,
            Action.FETCH: self._fetch,
            Action.STAGE: self._stage,
            Action.TRY: self._try,
        }
        ending: dict[Action, Callable[[], None]] = {
            Action.COMMIT: self._commit,
            Action.ROLL_BACK: self._roll_back,
            Action.KEEP: self._keep,
            Action.DISCARD: self._discard,
            Action.FINISH: self._finish,
        }
        if action in going_on:
            return going_on[action]()
        ending[action]()
        return None

    # Each of the following is one action.

    def _refresh(self) -> Event:
        self._store.recover()
        self._tuf.refresh()
        self._journal.forgive(self._tuf.n_targets)
        base = self._store.active_release()
        offer, release_sha256 = read_offer(self._tuf, base.name)
        state = self._store.state()
        counter = max(base.counter, state.counter, self._tuf.high_water.counter(base.name))
        device = Device(
            self._board.hardware,
            self._board.agent_version,
            base.root,
            counter,
            state.quarantine,
            state.newest if state.counter == counter else None,
        )
        self._tuf.high_water.raise_counter(base.name, device.counter)
        if not accept(offer, device):
            return Event.NOTHING_NEW
        if offer.root == self._journal.cancelled:
            raise Cancelled(f"{offer.name} {offer.version}: cancelled here; install it on request")
        payloads = read_payloads(self._tuf, offer, base.root, self._journal.refused)
        room = Room(self._storage, self._store, self._directory, self._agent.check_stop)
        payload, in_place = room.choose(offer, payloads, base.root, self._journal, self._error)
        if payload.sha256 != self._journal.payload_sha256:
            self._ledger.check(payload.length + payload.written_bytes, time.time())
            self._clean(keep_refused=True)
            self._journal.failures = 0  # something new, and so a fresh budget
            self._journal.payload_sha256 = payload.sha256
        self._journal.root = offer.root
        self._plan = _Plan(base, offer, payload, release_sha256, in_place)
        self._error = None
        return Event.RELEASE_ACCEPTED

    def _fetch(self) -> Event:
        self._gate(FETCH)
        plan = self._the_plan()
        download = Download(self._source, self._storage, plan.payload, self._payload_path)
        shown = -1.0

        def on_progress(progress: float) -> None:
            nonlocal shown
            self._agent.check_stop()
            if progress - shown >= PROGRESS_STEP or progress >= 1 > shown:
                shown = progress
                self._report_state(progress)

        try:
            download.run(on_progress)
        finally:
            self._fetched_bytes += download.fetched_bytes
            self._kept_bytes += download.kept_bytes
        return Event.PAYLOAD_VERIFIED

    def _stage(self) -> Event:
        self._gate(STAGE)
        plan = self._the_plan()
        self._ledger.check(_bytes_to_write(plan), time.time())
        stager = Stager(self._store, self._storage, self._agent.check_stop)
        if plan.in_place:
            self._store.forget_previous()  # its files may be the ones that change
            stager.stage_patch(plan.payload, self._payload_path, plan.release_sha256)
        else:
            stager.stage(plan.payload, self._payload_path, plan.release_sha256)
        return Event.SLOT_VERIFIED

    def _try(self) -> Event:
        plan = self._the_plan()
        if self._journal.trials >= MAX_TRIALS:
            said = f"no verdict in {MAX_TRIALS} trials"
            self._verdict = Verdict(False, said, "health_no_verdict")
            return Event.TRIAL_FAILED
        self._gate(TRIAL)
        self._journal.trials += 1
        self._save()
        if plan.in_place:
            return self._try_in_place(plan)
        self._verdict = self._offer_slot(plan)
        return Event.TRIAL_PASSED if self._verdict.is_good else Event.TRIAL_FAILED

    def _try_in_place(self, plan: _Plan) -> Event:
        """Write over the active slot, and take it back unless it is found good."""
        self._agent.quiesce()
        try:
            slot = self._store.patch_in_place(plan.offer.root)
            verify_directory(slot)
            self._verdict = self._offer_slot(plan)
        except UpdateError:
            self._store.recover()
            raise
        if self._verdict.is_good:
            return Event.TRIAL_PASSED
        self._store.recover()
        return Event.TRIAL_FAILED

    def _offer_slot(self, plan: _Plan) -> Verdict:
        self._agent.report(
            {
                "event": "staged",
                "in_place": plan.in_place,
                "slot": str(self._store.slot(plan.offer.root)),
                "from": plan.base.version,
                "to": plan.offer.version,
                "root": plan.offer.root,
                "payload": "full" if plan.payload.base is None else "delta",
                "delta_bytes": plan.payload.length,
                "full_bytes": plan.offer.full_bytes,
                "fetched_bytes": self._fetched_bytes,
                "seconds": round(time.monotonic() - self._started_s, 3),
            }
        )
        return self._agent.verdict()

    def _gate(self, stage: str) -> None:
        """Raise ``Gated`` if a condition holds ``stage`` back."""
        hold = decide(stage, self._agent.samples(), self._board.limits)
        if hold is not None:
            gate = {"stage": stage, "reason": hold.reason, "detail": hold.detail}
            said = f"{stage} waits for {hold.reason}: {hold.detail}"
            raise Gated(said, hold.retry_after_s, gate)

    def _commit(self) -> None:
        plan = self._the_plan()
        slot = self._store.slot(plan.offer.root)
        self._store.commit(read_release(slot))
        with suppress(StorageError):  # or the next refresh does it
            self._tuf.high_water.raise_counter(plan.base.name, plan.offer.counter)
        self._report_end(
            {
                "event": "committed",
                "version": plan.offer.version,
                "from": plan.base.version,
                "root": plan.offer.root,
                "slot": str(slot),
            }
        )

    def _roll_back(self) -> None:
        plan, verdict = self._the_plan(), self._verdict
        self._store.quarantine(
            plan.offer.root,
            GivenUp(
                plan.base.root,
                plan.offer.version,
                plan.offer.counter,
                verdict.code,
                verdict.reason[:MAX_REASON_CHARS],
                round(time.time()),
            ),
        )
        self._report_end(
            {
                "event": "rolled_back",
                "version": plan.offer.version,
                "reason": verdict.reason,
                "code": verdict.code,
                "from": plan.base.version,
            }
        )

    def _report_end(self, event: dict[str, Any]) -> None:
        """Report what the store has decided for good; only then clear up."""
        self._agent.report(event | {"written_bytes": self._ledger.update_bytes})
        with suppress(StorageError):  # it is decided; the next worker clears up
            self._clean()

    def _give_up(self) -> None:
        """Remember what was cancelled; a trial that was stopped by hand is none."""
        self._journal.cancelled = self._journal.root
        if self._machine.state is State.TRIAL:
            self._journal.trials = max(0, self._journal.trials - 1)

    def _discard(self) -> None:
        failures = self._journal.failures  # or a failure that lasts would be a first one each time
        self._clean(keep_refused=True)  # or the next look would fetch it all again
        self._journal.failures = failures
        self._keep()

    def _finish(self) -> None:
        self._clean()
        if self._board.shrink_after_s is not None:
            with suppress(StorageError):
                self._store.shrink_previous(self._board.shrink_after_s, self._agent.check_stop)
        self._agent.report({"event": "up_to_date", "version": self._store.installed_version()})

    def _keep(self) -> None:
        error = self._error
        if error is None:
            raise RuntimeError("stopped without a reason: the table of ota.machine is wrong")
        wait_s = self._wait_s(error)
        self._agent.report(
            {
                "event": "failed",
                "code": error.code,
                "message": str(error),
                "retry_after_s": wait_s,
                "written_bytes": self._ledger.update_bytes,
                **({"gate": error.gate} if isinstance(error, Gated) else {}),
            }
        )

    def _wait_s(self, error: UpdateError) -> float | None:
        """Return when to try again, and count the try; what brought something is a new first."""
        journal = self._journal
        is_same = journal.failed_as == error.code and not self._kept_bytes
        journal.failures = journal.failures + 1 if is_same else 1
        journal.failed_as = error.code
        try:
            self._save()
        except StorageError:
            return uncounted_after_s(error.code, random.random())
        wait_s = retry_after_s(error.code, journal.failures, random.random())
        if isinstance(error, FlashBudget):
            return error.retry_after_s
        if wait_s is None or error.retry_after_s is None:
            return wait_s
        return max(wait_s, error.retry_after_s) if isinstance(error, Gated) else wait_s

    def _the_plan(self) -> _Plan:
        if self._plan is None:
            raise RuntimeError("an action before REFRESH: the table of ota.machine is wrong")
        return self._plan

    # What stays on the disk.

    def _clean(self, *, keep_refused: bool = False) -> None:
        """Forget the update; slots that nothing points to go too."""
        self._storage.remove(self._payload_path)
        self._store.collect()
        self._journal.payload_sha256 = None
        self._journal.trials = 0
        self._ledger.begin(0)
        if not keep_refused:
            self._journal.failures = 0
        if not keep_refused:
            self._journal.refused.clear()
        self._save()

    def _save(self) -> None:
        self._journal.written_bytes = self._ledger.update_bytes
        save_journal(self._storage, self._journal_path, self._journal)

    def _report_state(self, progress: float | None = None) -> None:
        detail = ""
        if self._plan is not None:
            detail = f"{self._plan.base.version} to {self._plan.offer.version}"
        self._agent.report(
            {
                "event": "state",
                "state": self._machine.state.value,
                "progress": None if progress is None else round(progress, 4),
                "detail": detail,
                "clock_untrusted": not self._tuf.is_clock_trusted,
            }
        )


def _bytes_to_write(plan: _Plan) -> int:
    """Return about how much staging and applying will write."""
    if plan.in_place:
        return plan.payload.length * PATCH_SHARE
    return plan.payload.written_bytes
