"""Engine processes over their life, with an engine that does what its model's name says."""

import asyncio
import contextlib
from pathlib import Path

from edgeagent.adapters.engine_process import EngineProcess, EngineSettings
from edgeagent.engines import Engines
from edgeagent.errors import EngineError, ModelError
from edgeagent.progress import Progress
from tests.fakes import ENGINE_COMMAND, FakeModels

SETTINGS = EngineSettings(command=ENGINE_COMMAND, start_timeout_s=10, hang_timeout_s=10)
TIMEOUT_S = 10


class Garage:
    """Running `Engines` and what they told."""

    def __init__(self, models):
        self.told = []
        self.changed = asyncio.Event()
        self.engines = Engines(
            SETTINGS, models, Progress(1.0), crashes_to_revert=3, on_change=self._on_change
        )

    def _on_change(self, kind, data):
        self.told.append((kind, data))
        self.changed.set()

    def kinds(self):
        return [kind for kind, _ in self.told]

    async def until(self, condition):
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def ready(self):
        await self.until(lambda: self.engines.current is not None)
        return self.engines.current


def with_garage(models, body):
    async def main():
        garage = Garage(models)
        task = asyncio.create_task(garage.engines.run())
        try:
            await body(garage)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def good(version="1.0.0"):
    return Path(f"good-{version}")


async def answer(engine, prompt="say 1"):
    request = {"op": "generate", "id": "q", "prompt": prompt, "params": {}}
    return [message async for message in engine.generate(request)][-1]


def test_a_crashed_engine_is_replaced():
    async def body(garage):
        first = await garage.ready()
        with contextlib.suppress(EngineError):
            await answer(first, "crash 1")
        await garage.until(lambda: garage.engines.current not in {None, first})
        assert (await answer(garage.engines.current))["event"] == "done"
        assert garage.engines.restarts == 1
        assert garage.kinds() == ["engine_ready", "engine_failed", "engine_ready"]

    with_garage(FakeModels(good()), body)


def test_a_wrong_model_with_none_before_it_is_hopeless():
    async def body(garage):
        await garage.until(lambda: garage.kinds().count("engine_failed") >= 4)
        assert garage.engines.is_hopeless
        assert isinstance(garage.engines.failure, ModelError)
        assert garage.engines.tried.is_set()

    models = FakeModels(Path("broken-1.0.0"))
    with_garage(models, body)
    assert models.reverted == []


def test_an_installed_model_that_was_damaged_gives_way_at_once_however_old_it_is():
    async def body(garage):
        engine = await garage.ready()
        assert engine.ready.version == "1.0.0"
        assert garage.kinds() == ["engine_failed", "rolled_back", "engine_ready"]
        assert garage.told[1][1]["code"] == "model_damaged"

    models = FakeModels(good(), Path("broken-1.1.0"))
    with_garage(models, body)
    assert len(models.reverted) == 1


def test_a_fresh_model_that_fails_three_times_in_a_row_is_taken_back():
    async def body(garage):
        engine = await garage.ready()
        assert engine.ready.version == "1.0.0"
        assert garage.kinds() == ["engine_failed"] * 3 + ["rolled_back", "engine_ready"]
        assert garage.told[3][1]["code"] == "soak_crashes"

    models = FakeModels(good(), Path("dies-1.1.0"), fresh=True)
    with_garage(models, body)
    assert len(models.reverted) == 1
    assert models.reverted[0].startswith("3 failures: the engine ended")


def test_a_good_answer_between_crashes_keeps_a_fresh_model():
    async def body(garage):
        for _ in range(3):
            engine = await garage.ready()
            await answer(engine)
            garage.engines.answered_well()
            with contextlib.suppress(EngineError):
                await answer(engine, "crash 1")
            await garage.until(lambda engine=engine: garage.engines.current is not engine)

    models = FakeModels(good(), good("1.1.0"), fresh=True)
    with_garage(models, body)
    assert models.reverted == []


def test_a_replaced_engine_finishes_its_query_and_leaves():
    async def body(garage):
        old = await garage.ready()
        running = asyncio.create_task(answer(old, "slow 20 0.02"))
        await asyncio.sleep(0.05)
        new = await EngineProcess.start(good("1.1.0"), SETTINGS)
        garage.engines.replace(new)
        assert garage.engines.current is new
        assert not old.ended.done()
        done = await running
        assert done["usage"]["completion_tokens"] == 20
        assert await asyncio.wait_for(asyncio.shield(old.ended), TIMEOUT_S) == "exit code 0"
        assert garage.engines.restarts == 0
        assert ("model_changed", {"name": "fake", "version": "1.1.0"}) in garage.told

    with_garage(FakeModels(good()), body)


def test_no_engine_outlives_the_agent():
    seen = []

    async def body(garage):
        seen.append(await garage.ready())
        new = await EngineProcess.start(good("1.1.0"), SETTINGS)
        seen.append(new)
        running = asyncio.create_task(answer(seen[0], "slow 1000 0.02"))
        await asyncio.sleep(0.05)
        garage.engines.replace(new)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    with_garage(FakeModels(good()), body)
    assert all(engine.ended.done() for engine in seen)


def test_crashes_in_the_soak_count_even_with_good_answers_between():
    async def body(garage):
        for _ in range(3):
            engine = await garage.ready()
            assert engine.ready.version == "1.1.0"
            assert (await answer(engine))["event"] == "done"
            garage.engines.answered_well()
            with contextlib.suppress(EngineError):
                await answer(engine, "crash 1")
            await garage.until(lambda engine=engine: garage.engines.current is not engine)
        await garage.until(lambda: "rolled_back" in garage.kinds())
        assert (await garage.ready()).ready.version == "1.0.0"

    models = FakeModels(good(), good("1.1.0"), fresh=True)
    with_garage(models, body)
    assert len(models.reverted) == 1


def test_no_engine_runs_while_they_are_held_and_one_does_afterwards():
    async def body(garage):
        first = await garage.ready()
        running = asyncio.ensure_future(answer(first, "say 3"))
        await asyncio.sleep(0)
        await garage.engines.hold()
        assert (await running)["event"] == "done"  # the query in flight was finished
        assert first.ended.done()
        assert garage.engines.current is None
        assert not garage.engines.is_hopeless
        garage.engines.release()
        assert (await garage.ready()) is not first
        assert garage.engines.restarts == 0

    with_garage(FakeModels(good()), body)
