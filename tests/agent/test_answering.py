"""Queries from the inbox to their last message, with a real engine process that is a fake."""

import asyncio
import json
from pathlib import Path

import pytest

from edgeagent import answering
from edgeagent.adapters.engine_process import EngineSettings
from edgeagent.answering import Answering
from edgeagent.engines import Engines
from edgeagent.intake import Intake
from edgeagent.progress import Progress
from edgeagent.protocol.inbox import Inbox
from edgeagent.protocol.messages import Bounds, Incoming
from edgeagent.protocol.topics import REPLY_PREFIXES, Topics
from edgeagent.sensing import Sensing
from tests.fakes import ENGINE_COMMAND, FakeModels, FakePublisher, FakeSensors

TOPICS = Topics("n1")
SETTINGS = EngineSettings(command=ENGINE_COMMAND, start_timeout_s=10, hang_timeout_s=10)


class Office:
    """Everything between the broker and the engine."""

    def __init__(self, models, sensors, settings=SETTINGS):
        self.publisher = FakePublisher()
        progress = Progress(1.0)
        self.intake = Intake(self.publisher, TOPICS, REPLY_PREFIXES, Bounds(), Inbox(8))
        self.engines = Engines(
            settings, models, progress, crashes_to_revert=3, on_change=self._on_engine
        )
        self.sensing = Sensing(sensors, progress, 10.0)
        self.answering = Answering(
            self.intake, self.publisher, self.engines, self.sensing, progress
        )

    def _on_engine(self, _kind, _data):
        self.answering.engine_changed()

    def ask(self, prompt, query_id="q", **fields):
        payload = json.dumps({"id": query_id, "prompt": prompt, **fields}).encode()
        self.intake.on_request(
            Incoming(TOPICS.query_request, payload, len(payload), delivery=(1, query_id))
        )

    def cancel(self, query_id):
        payload = json.dumps({"id": query_id}).encode()
        self.intake.on_cancel(Incoming(TOPICS.query_cancel, payload, len(payload)))

    async def finals(self, count=1):
        await self.publisher.until(lambda: len(self.publisher.finals()) >= count)
        return self.publisher.finals()

    async def warm(self):
        """Have the engine up, so that a short deadline is not spent on its start."""
        self.ask("say 1", "warm")
        await self.finals()
        self.publisher.messages.clear()

    async def tokens(self, count=1):
        await self.publisher.until(lambda: len(self.publisher.messages) >= count)


def with_office(body, *, models=None, sensors=None, settings=SETTINGS):
    async def main():
        office = Office(
            models or FakeModels(Path("good-1.0.0")), sensors or FakeSensors(), settings
        )
        loops = [office.engines.run(), office.answering.run(), office.answering.run_deadlines()]
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            await body(office)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(r, asyncio.CancelledError) for r in results), results

    asyncio.run(main())


def test_an_answer_streams_in_batches_numbered_without_gaps():
    async def body(office):
        office.ask("slow 30 0.01")
        (final,) = await office.finals()
        batches = [m for _, m, qos in office.publisher.messages if qos == 0]
        assert [m["seq"] for m in batches] == list(range(len(batches)))
        assert final["seq"] == len(batches)
        assert "".join(m["text"] for m in batches) == final["text"]
        assert 3 <= len(batches) <= 8  # 0.3 s in batches of 0.08 s, not one a token
        assert final["usage"] == {"prompt_tokens": 3, "completion_tokens": 30}
        assert final["timings"]["queue_ms"] >= 0
        assert final["model"] == {"name": "fake", "version": "1.0.0"}
        await asyncio.sleep(0)
        assert office.publisher.acknowledged == [(1, "q")]

    with_office(body)


def test_a_slow_token_is_not_held_back_for_the_next_one():
    async def body(office):
        office.ask("slow 3 0.4")
        await office.tokens(2)
        texts = [m["text"] for _, m, _ in office.publisher.messages]
        assert texts == ["0 ", "1 "]
        await office.finals()

    with_office(body)


def test_without_streaming_there_is_only_the_last_message():
    async def body(office):
        office.ask("say 30", stream=False)
        (final,) = await office.finals()
        assert len(office.publisher.messages) == 1
        assert final["seq"] == 0

    with_office(body)


def test_queries_are_answered_one_after_the_other():
    async def body(office):
        for i in range(5):
            office.ask("say 3", f"q{i}")
        finals = await office.finals(5)
        assert [f["id"] for f in finals] == [f"q{i}" for i in range(5)]
        assert office.answering.totals.answered == 5
        assert office.answering.totals.completion_tokens == 15

    with_office(body)


def test_a_crash_in_mid_answer_ends_that_query_and_the_next_is_answered():
    async def body(office):
        office.ask("crash 3", "bad")
        office.ask("say 2", "good")
        bad, good = await office.finals(2)
        assert (bad["id"], bad["error"]["code"]) == ("bad", "engine_failed")
        assert "killed by SIGKILL" in bad["error"]["message"]
        assert (good["id"], good["status"]) == ("good", "ok")
        assert office.engines.restarts == 1
        assert office.answering.totals.failed == 1

    with_office(body)


def test_a_hang_ends_that_query_and_the_next_is_answered():
    async def body(office):
        office.ask("hang", "bad")
        office.ask("say 2", "good")
        bad, good = await office.finals(2)
        assert (bad["id"], bad["error"]["code"]) == ("bad", "engine_failed")
        assert (good["id"], good["status"]) == ("good", "ok")

    with_office(body, settings=EngineSettings(command=ENGINE_COMMAND, hang_timeout_s=0.5))


def test_an_error_of_the_engine_reaches_the_requester():
    async def body(office):
        office.ask("full")
        (final,) = await office.finals()
        assert final["error"] == {"code": "context_full", "message": "129 tokens, 128 fit"}

    with_office(body)


def test_a_running_query_is_cancelled_and_keeps_what_it_has():
    async def body(office):
        office.ask("slow 1000 0.02")
        await office.tokens(2)
        office.cancel("q")
        (final,) = await office.finals()
        assert (final["status"], final["finish_reason"]) == ("ok", "cancelled")
        assert final["text"].startswith("0 1 ")

    with_office(body)


def test_a_running_query_ends_at_its_deadline():
    async def body(office):
        await office.warm()
        office.ask("slow 1000 0.02", deadline_s=0.5)
        (final,) = await office.finals()
        assert final["finish_reason"] == "deadline"
        assert 1 <= final["usage"]["completion_tokens"] <= 40

    with_office(body)


def test_an_engine_that_ignores_the_deadline_is_killed(monkeypatch):
    monkeypatch.setattr(answering, "LATE_S", 0.3)

    async def body(office):
        await office.warm()
        office.ask("hang", deadline_s=0.5)
        (final,) = await office.finals()
        assert final["error"]["code"] == "engine_failed"
        assert "did not stop within" in final["error"]["message"]

    with_office(body)


def test_a_queued_query_expires_while_another_runs():
    async def body(office):
        await office.warm()
        office.ask("slow 100 0.02", "long")
        office.ask("say 1", "short", deadline_s=0.2)
        (first, *_) = await office.finals(1)
        assert (first["id"], first["error"]["code"]) == ("short", "expired")
        office.cancel("long")
        await office.finals(2)

    with_office(body)


def test_a_wrong_model_answers_every_query_with_engine_failed():
    async def body(office):
        office.ask("say 1")
        (final,) = await office.finals()
        assert final["error"]["code"] == "engine_failed"
        assert "layer 3 is wrong" in final["error"]["message"]

    with_office(body, models=FakeModels(Path("broken-1.0.0")))


@pytest.mark.parametrize("power_w", [None, 2.0])
def test_energy_is_measured_or_null_with_a_reason(power_w):
    async def body(office):
        office.ask("slow 10 0.02")
        (final,) = await office.finals()
        energy, thermal = final["energy"], final["thermal"]
        if power_w is None:
            assert energy["joules"] is None
            assert energy["reason"]
            assert thermal == {"temperature_c": None, "reason": "none here"}
        else:
            assert energy["joules"] == pytest.approx(0.4, abs=0.35)
            assert energy["j_per_token"] == pytest.approx(energy["joules"] / 10, abs=1e-4)
            assert energy["source"] == "measured: fake"
            assert thermal == {"temperature_c": 50.0}

    temperature_c = None if power_w is None else 50.0
    with_office(body, sensors=FakeSensors(power_w, temperature_c))


def test_draining_lets_a_short_query_finish_and_starts_no_other():
    async def body(office):
        office.ask("slow 5 0.02", "running")
        office.ask("say 1", "waiting")
        await office.tokens(1)
        await office.answering.drain(5.0, 5.0)
        assert [f["id"] for f in office.publisher.finals()] == ["running"]
        assert office.publisher.acknowledged == [(1, "running")]

    with_office(body)


def test_draining_cancels_a_long_query():
    async def body(office):
        office.ask("slow 1000 0.02")
        await office.tokens(1)
        await office.answering.drain(0.1, 5.0)
        (final,) = office.publisher.finals()
        assert final["finish_reason"] == "cancelled"

    with_office(body)
