import asyncio
import os
import time
from pathlib import Path

import pytest

from edgeagent.adapters.engine_process import EngineProcess, EngineSettings
from edgeagent.errors import EngineError, ModelError
from tests.fakes import ENGINE_COMMAND
from tests.model.test_adapter import write_adapter
from tests.tiny import make_model

SETTINGS = EngineSettings(command=ENGINE_COMMAND, start_timeout_s=10, hang_timeout_s=10)


def request(prompt, query_id="q"):
    return {"op": "generate", "id": query_id, "prompt": prompt, "params": {}}


def with_engine(body, model="good-1.0.0", settings=SETTINGS):
    async def main():
        engine = await EngineProcess.start(Path(model), settings)
        try:
            return await body(engine)
        finally:
            await engine.leave()

    return asyncio.run(main())


async def collect(engine, prompt):
    return [message async for message in engine.generate(request(prompt))]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_query_yields_tokens_and_then_done():
    async def body(engine):
        messages = await collect(engine, "say 3")
        assert [m["event"] for m in messages] == ["token"] * 3 + ["done"]
        assert messages[-1]["text"] == "0 1 2 "
        assert engine.idle.is_set()

    with_engine(body)


def test_ready_tells_what_runs():
    async def body(engine):
        ready = engine.ready
        assert (ready.version, ready.kernel, ready.context) == ("1.0.0", "scalar", 128)

    with_engine(body)


def test_a_refusal_of_the_engine_is_a_message():
    async def body(engine):
        messages = await collect(engine, "full")
        assert messages[-1]["error"]["code"] == "context_full"
        assert (await collect(engine, "say 1"))[-1]["event"] == "done"

    with_engine(body)


def test_a_cancelled_query_ends_with_the_reason():
    async def body(engine):
        asyncio.get_running_loop().call_later(0.1, engine.cancel, "q", "deadline")
        started_s = time.monotonic()
        messages = await collect(engine, "slow 1000 0.02")
        assert messages[-1]["finish_reason"] == "deadline"
        assert time.monotonic() - started_s < 2

    with_engine(body)


def test_a_crash_in_mid_answer_is_an_engine_error_for_this_query_and_the_next():
    async def body(engine):
        with pytest.raises(EngineError, match="the engine ended: killed by SIGKILL"):
            await collect(engine, "crash 3")
        assert engine.ended.result() == "killed by SIGKILL"
        with pytest.raises(EngineError, match="has ended: killed by SIGKILL"):
            await collect(engine, "say 1")
        with pytest.raises(EngineError, match="has ended"):
            await engine.check_health(1)

    with_engine(body)


def test_an_engine_that_hangs_is_killed():
    async def body(engine):
        started_s = time.monotonic()
        with pytest.raises(EngineError, match="killed by SIGKILL"):
            await collect(engine, "hang")
        assert 0.4 < time.monotonic() - started_s < 5

    with_engine(body, settings=EngineSettings(command=ENGINE_COMMAND, hang_timeout_s=0.4))


def test_a_busy_engine_that_answers_pings_is_left_alone():
    async def body(engine):
        assert (await collect(engine, "slow 3 0.5"))[-1]["event"] == "done"

    with_engine(body, settings=EngineSettings(command=ENGINE_COMMAND, hang_timeout_s=0.8))


def test_an_engine_that_talks_nonsense_is_killed():
    async def body(engine):
        with pytest.raises(EngineError, match="expected a JSON line"):
            await collect(engine, "garbage")

    with_engine(body)


def test_health_is_the_engines_verdict():
    async def body(engine):
        return await engine.check_health(5)

    assert with_engine(body).ok
    verdict = with_engine(body, model="sick-1.1.0")
    assert not verdict.ok
    assert verdict.failed == ("logits: hash differs",)


def test_a_wrong_model_is_a_model_error():
    with pytest.raises(ModelError, match="layer 3 is wrong"):
        asyncio.run(EngineProcess.start(Path("broken-1"), SETTINGS))


def test_an_engine_that_dies_at_start_is_an_engine_error():
    with pytest.raises(EngineError, match="ended before it was ready: exit code 3"):
        asyncio.run(EngineProcess.start(Path("dies-1"), SETTINGS))


def test_an_engine_that_never_gets_ready_is_killed():
    settings = EngineSettings(command=ENGINE_COMMAND, start_timeout_s=0.3)
    with pytest.raises(EngineError, match=r"not ready within 0.3 s"):
        asyncio.run(EngineProcess.start(Path("mute-1"), settings))


def test_an_engine_that_cannot_be_started_is_an_engine_error():
    settings = EngineSettings(command=("/nonexistent/engine",))
    with pytest.raises(EngineError, match="cannot be started"):
        asyncio.run(EngineProcess.start(Path("good-1"), settings))


def test_no_engine_outlives_its_owner():
    async def body(engine):
        return engine.pid

    assert not is_alive(with_engine(body))


def test_arguments_follow_the_contract():
    settings = EngineSettings(threads=3, kernel="avx2", zero_skip=False, command=("engine",))
    expected = ["engine", "--model", "m", "--threads", "3", "--kernel", "avx2", "--no-zero-skip"]
    assert settings.arguments(Path("m")) == [
        *expected,
        "--kv-bits",
        "16",
        "--kv-group-size",
        "64",
    ]
    assert EngineSettings(cpus="0-1").arguments(Path("m"))[-2:] == ["--cpus", "0-1"]
    assert EngineSettings(command=("e",), kv_bits=4, kv_group_size=32).arguments(Path("m")) == [
        "e",
        "--model",
        "m",
        "--threads",
        "1",
        "--kv-bits",
        "4",
        "--kv-group-size",
        "32",
    ]


def test_an_adapter_is_swapped_and_a_wrong_one_refused(tmp_path):
    model, lora = make_model(tmp_path / "model"), tmp_path / "lora"
    write_adapter(lora)
    settings = EngineSettings(start_timeout_s=60, hang_timeout_s=60)

    async def text(engine):
        query = {"op": "generate", "id": "q", "prompt": "hello", "params": {"max_tokens": 8}}
        return [m async for m in engine.generate(query)][-1]["text"]

    async def body(engine):
        plain = await text(engine)
        await engine.set_adapter(lora, 60)
        adapted = await text(engine)
        with pytest.raises(ModelError, match="cannot be read"):
            await engine.set_adapter(tmp_path, 60)
        assert await text(engine) == adapted != plain
        await engine.set_adapter(None, 60)
        assert await text(engine) == plain
        await engine.kill()
        with pytest.raises(EngineError, match="has ended"):
            await engine.set_adapter(lora, 60)

    with_engine(body, model, settings)


def test_an_engine_that_does_not_know_adapters_is_not_waited_for():
    async def body(engine):
        with pytest.raises(EngineError, match=r"no word of its adapter within 0\.2 s"):
            await engine.set_adapter(None, 0.2)

    with_engine(body)
