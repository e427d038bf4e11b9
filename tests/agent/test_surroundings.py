import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from edgeagent.config import Update, parse
from edgeagent.errors import ConfigError
from edgeagent.power.samples import Sample
from edgeagent.surroundings import Surroundings, limits_of, minute_of_day
from ota.clock import BUILD_TIME
from ota.conditions import DAY_MIN, Limits, parse_limits, parse_samples


class Board:
    def __init__(self, sample):
        self.last = sample
        self.n_samples = 0

    async def sample(self):
        self.n_samples += 1
        return self.last


class Link:
    def __init__(self, answer=None):
        self.answer = answer

    async def read(self):
        return self.answer


HOT = Sample(
    1.0,
    temperature_c=85.0,
    throttled=True,
    battery_percent=20.0,
    battery_status="Discharging",
)


def surroundings(sample=HOT, limits=None, link=None, is_busy=False):
    return Surroundings(limits or Limits(), Board(sample), link or Link(), lambda: is_busy)


def test_what_the_agent_sends_is_what_the_updater_reads():
    around = surroundings(link=Link(True), is_busy=True)
    samples = parse_samples(asyncio.run(around.take()))
    assert (samples.battery, samples.is_charging) == (0.2, False)
    assert (samples.temperature_c, samples.is_throttled) == (85.0, True)
    assert (samples.is_metered, samples.is_busy) == (True, True)
    assert samples.minute is None or 0 <= samples.minute < DAY_MIN
    assert parse_limits(around.limits) == Limits()


def test_a_board_without_sensors_knows_nothing():
    samples = parse_samples(asyncio.run(surroundings(Sample(0.0)).take()))
    assert samples == replace(parse_samples({}), is_busy=False, minute=samples.minute)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging"])
def test_a_battery_that_is_not_used_up_holds_nothing_back(status):
    around = surroundings(replace(HOT, temperature_c=40.0, battery_status=status))
    assert asyncio.run(around.may_resume("stage"))


def test_a_stage_goes_on_only_when_the_board_is_clear_of_the_limit():
    around = surroundings(replace(HOT, battery_percent=None), Limits(max_temperature_c=80))
    answers = []
    for temperature_c in (85.0, 79.0, 76.9):
        around._board.last = replace(HOT, battery_percent=None, temperature_c=temperature_c)
        answers.append(asyncio.run(around.may_resume("stage")))
    assert answers == [False, False, True]


def test_the_minute_is_local_and_unknown_while_the_clock_is_wrong(monkeypatch):
    monkeypatch.setenv("TZ", "UTC-2")  # two hours east
    time.tzset()
    try:
        noon = BUILD_TIME.timestamp() + 12 * 3600
        assert minute_of_day(noon) == 14 * 60
    finally:
        monkeypatch.undo()
        time.tzset()
    assert minute_of_day(0.0) is None
    assert minute_of_day(datetime(2099, 1, 1, tzinfo=UTC).timestamp()) is None


def test_the_configuration_sets_the_limits():
    text = (
        "[update]\nmin_battery_percent = 50\nmax_temperature_c = 70\nwhen_metered = false\n"
        'when_busy = false\nwhen_throttled = false\nwindow = "22:00-05:00"\n'
    )
    assert limits_of(parse(text, "t").update) == Limits(0.5, 70, False, False, 1320, 300, False)
    assert limits_of(Update()) == Limits()


def test_a_window_that_is_none_is_a_mistake_in_the_configuration():
    with pytest.raises(ConfigError, match=r"t: update\.window: expected two times"):
        parse('[update]\nwindow = "soon"\n', "t")
