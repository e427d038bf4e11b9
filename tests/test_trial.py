import asyncio

import pytest

from edgeagent.errors import EngineError
from edgeagent.trial import MAX_ROUNDS, SPEED_ROUNDS, _compare_speed


class Engine:
    """What `_compare_speed` needs of an engine process; speeds are played in turn."""

    def __init__(self, *speeds):
        self.speeds, self.asked = speeds, 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.n_started = 0
        self.on_asked = lambda: None

    async def generate(self, request):
        self.n_started += 1
        self.asked += 1
        self.on_asked()
        speed = self.speeds[min(self.asked, len(self.speeds)) - 1]
        yield {"event": "done", "timings": {"tokens_per_s": speed}}


def compare(new, old):
    asyncio.run(_compare_speed(new, old))


def test_a_model_as_fast_passes_at_once():
    new, old = Engine(91.0), Engine(100.0)
    compare(new, old)
    assert new.asked == 1


def test_one_clear_round_is_enough():
    new = Engine(*[20.0] * (SPEED_ROUNDS - 1), 95.0)
    compare(new, Engine(100.0))
    assert new.asked == SPEED_ROUNDS


def test_a_slower_model_fails_after_enough_clear_rounds():
    new = Engine(80.0)
    with pytest.raises(EngineError, match=r"speed: expected at least 90\.0 tokens/s, .* got 80\.0"):
        compare(new, Engine(100.0))
    assert new.asked == SPEED_ROUNDS


def test_one_clear_moment_of_the_old_engine_proves_nothing():
    new = Engine(50.0)
    compare(new, Engine(100.0, 52.0))
    assert new.asked == SPEED_ROUNDS


def test_rounds_that_queries_disturb_do_not_count(caplog):
    new, old = Engine(20.0), Engine(100.0)

    def query():
        old.n_started += 1

    new.on_asked = query
    compare(new, old)
    assert new.asked == MAX_ROUNDS
    assert "update.speed_unknown" in caplog.text


def test_an_old_engine_that_ended_is_no_measure():
    class Ended(Engine):
        async def generate(self, request):
            raise EngineError("gone")
            yield {}

    new = Engine(1.0)
    compare(new, Ended())
    assert new.asked == 0
