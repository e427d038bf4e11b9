import itertools

import pytest

from ota.errors import UpdateError
from ota.machine import TRANSITIONS, Action, Event, State, UpdateMachine

GOOD_WAY = [
    (Event.STARTED, Action.REFRESH),
    (Event.RELEASE_ACCEPTED, Action.FETCH),
    (Event.PAYLOAD_VERIFIED, Action.STAGE),
    (Event.SLOT_VERIFIED, Action.TRY),
    (Event.TRIAL_PASSED, Action.COMMIT),
]


def test_a_good_update_visits_every_state_and_ends_idle():
    machine = UpdateMachine()
    visited = {machine.state}
    for event, action in GOOD_WAY:
        assert machine.handle(event) is action
        visited.add(machine.state)
    assert visited == set(State)
    assert machine.state is State.IDLE


@pytest.mark.parametrize("state", State)
def test_a_restart_in_any_state_asks_what_is_signed_today(state):
    machine = UpdateMachine(state)
    assert machine.handle(Event.STARTED) is Action.REFRESH
    assert machine.state is State.CHECKING


@pytest.mark.parametrize("state", set(State) - {State.IDLE})
def test_a_failure_in_any_busy_state_discards_and_leads_home(state):
    machine = UpdateMachine(state)
    assert machine.handle(Event.FAILED) is Action.DISCARD
    assert machine.state is State.IDLE


@pytest.mark.parametrize("state", set(State) - {State.IDLE})
def test_an_interruption_in_any_busy_state_keeps_what_was_done(state):
    assert UpdateMachine(state).handle(Event.INTERRUPTED) is Action.KEEP


def test_a_failed_trial_is_rolled_back():
    assert UpdateMachine(State.TRIAL).handle(Event.TRIAL_FAILED) is Action.ROLL_BACK


def test_every_event_and_every_action_has_a_row():
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert {action for _, action in TRANSITIONS.values()} == set(Action)


ILLEGAL = sorted(set(itertools.product(State, Event)) - set(TRANSITIONS), key=str)


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_every_other_pair_is_refused_and_changes_nothing(state, event):
    machine = UpdateMachine(state)
    with pytest.raises(UpdateError, match="not legal"):
        machine.handle(event)
    assert machine.state is state
