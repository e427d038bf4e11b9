"""The device side of an update, as a state machine.  Pure.

Rule 1: every legal transition is a row of ``TRANSITIONS``; nothing else changes the state.
Rule 2: events come in, actions go out, and the caller carries them out.
Rule 3: the state is written to disk *before* its action is carried out, and every action can be
        carried out twice.  So a restart, at whatever moment, is just ``STARTED`` again: what was
        done is found done, and the update goes on.

    IDLE --STARTED--> CHECKING --RELEASE_ACCEPTED--> FETCHING --PAYLOAD_VERIFIED--> STAGING
    STAGING --SLOT_VERIFIED--> TRIAL --TRIAL_PASSED | TRIAL_FAILED--> IDLE

A state is what a restarted device must know, no more: *notified*, *verified* and *staged* are
moments between two states and are told by events; *committed*, *rolled back*, *failed* and
*cancelled* are ends, told by the last report.  After each the device is idle, and the store
(``ota.device.store``) says which model counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ota.errors import UpdateError


class State(Enum):
    """Where an update stands; the value is what the journal and the reports say."""

    IDLE = "idle"
    CHECKING = "checking"
    FETCHING = "fetching"
    STAGING = "staging"
    TRIAL = "trial"


class Event(Enum):
    """What happened; past tense."""

    STARTED = "started"
    NOTHING_NEW = "nothing_new"
    RELEASE_ACCEPTED = "release_accepted"
    PAYLOAD_VERIFIED = "payload_verified"
    PAYLOAD_REFUSED = "payload_refused"  # wrong base, wrong hash, broken container
    SLOT_VERIFIED = "slot_verified"
    TRIAL_PASSED = "trial_passed"
    TRIAL_FAILED = "trial_failed"  # the health suite said no, or was never heard of too often
    INTERRUPTED = "interrupted"  # network, disk, cancel: going on later can help
    FAILED = "failed"  # going on later cannot help


class Action(Enum):
    """What the caller must do next; imperative."""

    REFRESH = "refresh"  # fetch signed metadata and decide on a release and a payload
    FETCH = "fetch"  # pull the chunks that are missing
    STAGE = "stage"  # make the slot and verify it
    TRY = "try"  # offer the slot to the agent and wait for its verdict
    COMMIT = "commit"  # make the slot the active one
    ROLL_BACK = "roll_back"  # quarantine the release
    KEEP = "keep"  # stop; what was fetched stays
    DISCARD = "discard"  # stop; what was fetched goes
    FINISH = "finish"  # stop; there is nothing to do


TRANSITIONS: dict[tuple[State, Event], tuple[State, Action]] = {
    (State.IDLE, Event.STARTED): (State.CHECKING, Action.REFRESH),
    # Rule 3: a restart begins by asking what is signed today.
    (State.CHECKING, Event.STARTED): (State.CHECKING, Action.REFRESH),
    (State.FETCHING, Event.STARTED): (State.CHECKING, Action.REFRESH),
    (State.STAGING, Event.STARTED): (State.CHECKING, Action.REFRESH),
    (State.TRIAL, Event.STARTED): (State.CHECKING, Action.REFRESH),
    # The good way.
    (State.CHECKING, Event.NOTHING_NEW): (State.IDLE, Action.FINISH),
    (State.CHECKING, Event.RELEASE_ACCEPTED): (State.FETCHING, Action.FETCH),
    (State.FETCHING, Event.PAYLOAD_VERIFIED): (State.STAGING, Action.STAGE),
    (State.STAGING, Event.SLOT_VERIFIED): (State.TRIAL, Action.TRY),
    (State.TRIAL, Event.TRIAL_PASSED): (State.IDLE, Action.COMMIT),
    (State.TRIAL, Event.TRIAL_FAILED): (State.IDLE, Action.ROLL_BACK),
    # A payload that cannot be used is struck out, and the next best one is chosen.
    (State.FETCHING, Event.PAYLOAD_REFUSED): (State.CHECKING, Action.REFRESH),
    (State.STAGING, Event.PAYLOAD_REFUSED): (State.CHECKING, Action.REFRESH),
    # Stopping.
    (State.CHECKING, Event.INTERRUPTED): (State.IDLE, Action.KEEP),
    (State.FETCHING, Event.INTERRUPTED): (State.FETCHING, Action.KEEP),
    (State.STAGING, Event.INTERRUPTED): (State.STAGING, Action.KEEP),
    (State.TRIAL, Event.INTERRUPTED): (State.TRIAL, Action.KEEP),
    (State.CHECKING, Event.FAILED): (State.IDLE, Action.DISCARD),
    (State.FETCHING, Event.FAILED): (State.IDLE, Action.DISCARD),
    (State.STAGING, Event.FAILED): (State.IDLE, Action.DISCARD),
    (State.TRIAL, Event.FAILED): (State.IDLE, Action.DISCARD),
}


@dataclass(slots=True)
class UpdateMachine:
    """One device's update; persist ``state`` before carrying out the returned action."""

    state: State = State.IDLE

    def handle(self, event: Event) -> Action:
        """Advance by ``event`` and return the one action that follows.

        Raises:
            UpdateError: ``event`` is not legal in this state; the state is unchanged.
        """
        try:
            self.state, action = TRANSITIONS[self.state, event]
        except KeyError:
            raise UpdateError(f"{event.value} is not legal in state {self.state.value}") from None
        return action
