"""The two-stage schedule."""

from __future__ import annotations

import pytest

from edgeagent.train.schedule import Schedule

SCHEDULE = Schedule()
LATE = 10_000


def test_the_rate_warms_up():
    assert SCHEDULE.rate(0.0, 0) < SCHEDULE.rate(0.0, 50) < SCHEDULE.rate(0.0, 99)
    assert SCHEDULE.rate(0.0, 99) == pytest.approx(SCHEDULE.peak)


def test_stage_two_drops_and_ends_low():
    before = SCHEDULE.rate(SCHEDULE.stage2_start - 1e-9, LATE)
    after = SCHEDULE.rate(SCHEDULE.stage2_start, LATE)
    assert before == pytest.approx(SCHEDULE.stage1_end)
    assert after == pytest.approx(SCHEDULE.stage2_peak)
    assert SCHEDULE.rate(1.0, LATE) == pytest.approx(SCHEDULE.final)


def test_decay_stops_at_half():
    assert SCHEDULE.decay(0.49) > 0 == SCHEDULE.decay(0.5)


def test_stage_two_is_richer_in_commands():
    assert SCHEDULE.story_rows(1.0) < SCHEDULE.story_rows(0.0)


def test_the_first_release_lies_in_stage_two():
    assert SCHEDULE.stage2_start < SCHEDULE.first_release < 1.0
