"""Connections of the real worker, cut in the middle of a pull; the long run is ``make faults``."""

import random

import pytest

from bench.slow_link import Cut
from ota.fleet.responder import Responder
from ota.mqtt import Broker
from tests.ota.cuts import (
    AGAIN_BYTES,
    Outcome,
    Planned,
    check,
    make_big_fleet,
    plan_cuts,
    update_through_cuts,
)
from tests.ota.models import Shape

PLANS = {
    "reset, MQTT 5": ("5", [Planned(300_000, Cut.RESET)]),
    "close, then down for a second, MQTT 3.1.1": ("3.1.1", [Planned(500_000, Cut.CLOSE, 1.0)]),
    "three resets in a row, MQTT 5": (
        "5",
        [Planned(200_000 + 1000 * k, Cut.RESET) for k in range(3)],
    ),
}


@pytest.fixture(scope="module")
def big_fleet(tmp_path_factory):
    return make_big_fleet(tmp_path_factory.mktemp("big"), Shape(4, 32 * 2000))


@pytest.mark.system
@pytest.mark.parametrize("name", sorted(PLANS))
def test_a_cut_costs_little_and_the_update_ends_committed(tmp_path, big_fleet, mosquitto, name):
    protocol, plan = PLANS[name]
    responder = Responder(Broker(mosquitto.host, mosquitto.port), "tests", big_fleet.repo.path)
    responder.open()
    try:
        outcome = update_through_cuts(tmp_path / "device", big_fleet, mosquitto, plan, protocol)
    finally:
        responder.close()
    check(outcome)
    assert outcome.n_cuts == len(plan)
    assert outcome.ends == ["committed"]  # one worker outlives them all


def test_plans_are_drawn_within_the_payload():
    plans = [plan_cuts(random.Random(seed), 1_000_000, 5) for seed in range(30)]
    assert all(0 < each.after_bytes < 1_010_000 for plan in plans for each in plan)
    assert {each.how for plan in plans for each in plan} == set(Cut)


def test_an_update_that_fetches_too_much_again_is_found_out():
    good = Outcome(["committed"], 2, 2 * AGAIN_BYTES, 100)
    check(good)
    with pytest.raises(AssertionError):
        check(Outcome(["committed"], 1, 2 * AGAIN_BYTES, 100))
    with pytest.raises(AssertionError):
        check(Outcome(["transport_failed"], 1, 100, 100))
