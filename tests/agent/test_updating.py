"""Updates as incidents: what the updater says, and what the agent does."""

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from edgeagent.adapters.engine_process import EngineSettings
from edgeagent.engines import Engines, WayBack
from edgeagent.errors import AdapterError
from edgeagent.progress import Progress
from edgeagent.protocol.messages import Incoming
from edgeagent.updating import Updating
from ota.reasons import advice_on
from tests.fakes import ENGINE_COMMAND, FakeModels

SETTINGS = EngineSettings(command=ENGINE_COMMAND, start_timeout_s=10, hang_timeout_s=10)
TIMEOUT_S = 10
DIES = object()
CANCELLED = {"event": "failed", "code": "cancelled", "message": "stop", "retry_after_s": None}


class FakeSurroundings:
    """Surroundings that a test changes."""

    def __init__(self):
        self.limits = {"max_temperature_c": 80.0}
        self.is_clear = False

    async def take(self):
        return {"temperature_c": 40.0 if self.is_clear else 90.0}

    async def may_resume(self, stage):
        assert stage == "stage"
        return self.is_clear


class FakeUpdater:
    """Plays a list of messages; ``staged`` waits for the verdict, functions are called."""

    def __init__(self, script):
        self.script = list(script)
        self.verdicts = []
        self.judged = asyncio.Event()
        self.ended = False
        self.is_quiet = False
        self.told = []

    def quiet(self):
        self.is_quiet = True

    async def receive(self):
        if self.verdicts == [] and self.waits:
            await self.judged.wait()
        message = self.script.pop(0) if self.script else None
        while callable(message):
            message()
            message = self.script.pop(0) if self.script else None
        if message is DIES:
            raise AdapterError("updater: expected a JSON line")
        self.waits = message is not None and message["event"] == "staged"
        return message

    waits = False

    def judge(self, *, ok, reason="", code=""):
        self.verdicts.append((ok, reason, code))
        self.judged.set()

    def tell(self, conditions):
        self.told.append(conditions)

    def cancel(self):
        self.script.append(CANCELLED)
        self.judged.set()

    async def end(self):
        self.ended = True

    def kill(self):
        self.ended = True


class FakeOutlet:
    def __init__(self):
        self.states, self.responses, self.events = [], [], []
        self.history = None
        self.changed = asyncio.Event()

    def publish_state(self, state):
        self.states.append(json.loads(state.encode()))
        self.changed.set()

    def respond(self, payload):
        self.responses.append(json.loads(payload))

    def event(self, kind, data):
        self.events.append((kind, data))
        self.changed.set()


class Site:
    """A device on version 1.0.0 whose updater plays one script a run."""

    def __init__(self, scripts, *, is_enabled=True, models=(Path("good-1.0.0"),)):
        self.models = FakeModels(*models)
        self.outlet = FakeOutlet()
        progress = Progress(1.0)
        self.updating = None
        self.engines = Engines(
            SETTINGS, self.models, progress, crashes_to_revert=3, on_change=self._on_engine
        )
        self.updaters = []
        self.starts = []
        self.surroundings = FakeSurroundings()
        self.scripts = list(scripts)
        self.updating = Updating(
            lambda action: {"action": action},
            self.engines,
            self.models,
            self.outlet,
            progress,
            is_enabled=is_enabled,
            poll_interval_s=1000,
            trial_timeout_s=5,
            surroundings=self.surroundings,
            start=self._start,
        )

    def _on_engine(self, _kind, _data):
        self.updating.engine_changed()

    async def _start(self, message):
        self.starts.append(message)
        self.updaters.append(FakeUpdater(self.scripts.pop(0)))
        return self.updaters[-1]

    def notice(self, payload=b"1"):
        self.updating.on_notice(Incoming("notice", payload, len(payload), is_retained=True))

    def request(self, **fields):
        payload = json.dumps(fields).encode()
        self.updating.on_request(Incoming("update", payload, len(payload)))

    async def until(self, condition):
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self.outlet.changed.clear()
                await self.outlet.changed.wait()

    async def event(self, kind):
        await self.until(lambda: any(k == kind for k, _ in self.outlet.events))
        return next(data for k, data in self.outlet.events if k == kind)

    async def phase(self, phase):
        await self.until(lambda: self.outlet.states and self.outlet.states[-1]["phase"] == phase)
        return self.outlet.states[-1]


def on_site(scripts, body, **more):
    async def main():
        site = Site(scripts, **more)
        tasks = [asyncio.create_task(c) for c in (site.engines.run(), site.updating.run())]
        try:
            await site.until(lambda: site.engines.current is not None)
            await body(site)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(r, asyncio.CancelledError) for r in results), results

    asyncio.run(main())


FETCHING = {"event": "state", "state": "fetching", "progress": 0.4, "detail": "1.0.0 to 1.1.0"}
COMMITTED = {"event": "committed", "version": "1.1.0"}


def staged(slot="good-1.1.0"):
    return {"event": "staged", "slot": slot, "from": "1.0.0", "to": "1.1.0", "root": "00"}


async def ask(engine, prompt):
    request = {"op": "generate", "id": "q", "prompt": prompt, "params": {}}
    return [message async for message in engine.generate(request)][-1]


def test_a_staged_model_is_tried_committed_and_switched_to_while_a_query_runs():
    async def body(site):
        old = site.engines.current
        running = asyncio.create_task(ask(old, "slow 100 0.01"))
        site.notice()
        assert await site.event("update_committed") == {"version": "1.1.0"}
        assert site.engines.current.ready.version == "1.1.0"
        assert site.updaters[0].verdicts == [(True, "", "")]
        assert (await running)["usage"]["completion_tokens"] == 100
        state = site.outlet.states[-1]
        assert (state["installed_version"], state["latest_version"]) == ("1.1.0", "1.1.0")
        assert (state["phase"], state["in_progress"]) == ("idle", False)
        phases = [s["phase"] for s in site.outlet.states]
        assert phases.index("fetching") < phases.index("trial")
        assert {"in_progress": True, "update_percentage": 40}.items() <= next(
            s for s in site.outlet.states if s["phase"] == "fetching"
        ).items()

    on_site([[FETCHING, staged(), COMMITTED]], body)


@pytest.mark.parametrize(
    ("slot", "reason", "code"),
    [
        ("sick-1.1.0", "logits: hash differs", "health_logits"),
        ("wrong-1.1.0", "example 1/1: said no", "health_example"),
        ("big-1.1.0", "memory: expected at most 2 MiB", "health_memory"),
        ("falls-1.1.0", "the engine ended", "health_crash"),
        ("numb-1.1.0", "no verdict on its health", "health_timeout"),
        ("broken-1.1.0", "layer 3 is wrong", "health_load"),
        ("dies-1.1.0", "ended before it was ready", "health_start"),
    ],
)
def test_a_model_that_fails_its_trial_changes_nothing(slot, reason, code):
    async def body(site):
        old = site.engines.current
        site.notice()
        data = await site.event("rolled_back")
        assert data["reason"] == "told"
        assert data["advice"] == advice_on(code)
        ((ok, why, verdict),) = site.updaters[0].verdicts
        assert not ok
        assert reason in why
        assert verdict == code
        assert site.engines.current is old
        assert (await ask(old, "say 1"))["event"] == "done"
        state = site.outlet.states[-1]
        assert (state["installed_version"], state["phase"]) == ("1.0.0", "rolled_back")

    rolled_back = {"event": "rolled_back", "version": "1.1.0", "reason": "told", "code": code}
    on_site([[staged(slot), rolled_back]], body)


def test_a_commit_whose_message_was_lost_is_found_in_the_store():
    async def body(site):
        commit = site.updaters  # filled when the run starts
        site.scripts[0].insert(1, lambda: site.models.paths.append(Path("good-1.1.0")))
        site.notice()
        await site.event("update_committed")
        assert site.engines.current.ready.version == "1.1.0"
        assert commit[0].ended

    on_site([[staged()]], body)


def test_an_updater_that_dies_after_the_trial_leaves_the_old_model():
    async def body(site):
        old = site.engines.current
        site.notice()
        data = await site.event("update_failed")
        assert data["reason"] == "the updater ended without a result"
        assert site.engines.current is old
        assert site.updaters[0].ended

    on_site([[staged()]], body)


def test_an_updater_that_talks_nonsense_leaves_the_old_model():
    async def body(site):
        site.notice()
        assert "expected a JSON line" in (await site.event("update_failed"))["reason"]
        assert (await ask(site.engines.current, "say 1"))["event"] == "done"

    on_site([[FETCHING, DIES]], body)


def test_a_failure_is_reported_with_its_code():
    async def body(site):
        site.notice()
        data = await site.event("update_failed")
        assert data == {"code": "untrusted", "reason": "signature"}
        assert site.outlet.states[-1]["release_summary"] == "signature"

    failed = {"event": "failed", "code": "untrusted", "message": "signature", "retry_after_s": None}
    on_site([[failed]], body)


def test_a_notice_that_is_settled_starts_nothing_and_a_new_one_does():
    async def body(site):
        site.notice(b"1")
        await site.until(lambda: len(site.updaters) == 1 and site.updaters[0].ended)
        site.notice(b"1")
        await asyncio.sleep(0.05)
        assert len(site.updaters) == 1
        site.notice(b"2")
        await site.until(lambda: len(site.updaters) == 2 and site.updaters[1].ended)

    up_to_date = {"event": "up_to_date", "version": "1.0.0"}
    on_site([[FETCHING, up_to_date], [FETCHING, up_to_date]], body)


def test_requests_are_answered_and_start_the_updater():
    async def body(site):
        site.request(action="check", transaction="t")
        assert site.outlet.responses == [
            {"status": "ok", "data": {"action": "check"}, "transaction": "t"}
        ]
        await site.until(lambda: [start["action"] for start in site.starts] == ["check"])
        site.request(action="explode")
        assert site.outlet.responses[1]["status"] == "error"

    on_site([[FETCHING, {"event": "up_to_date", "version": "1.0.0"}]], body)


def test_without_a_root_of_trust_nothing_is_ever_started():
    async def body(site):
        site.request(action="install")
        site.notice()
        await asyncio.sleep(0.05)
        assert site.outlet.responses[0]["error"] == "updates are not enabled here"
        assert site.starts == []

    on_site([], body, is_enabled=False)


def test_an_update_in_place_stops_the_engine_first_and_keeps_the_queue():
    seen = []

    async def body(site):
        old = site.engines.current
        site.scripts.append(
            [
                {"event": "quiesce"},
                lambda: seen.append((site.engines.current, old.ended.done())),
                {"event": "staged", "slot": "good-1.1.0", "to": "1.1.0", "in_place": True},
                lambda: site.models.paths.append(Path("good-1.1.0")),
                {"event": "committed", "version": "1.1.0"},
            ]
        )
        site.notice()
        await site.event("update_committed")
        assert seen == [(None, True)]
        assert site.updaters[-1].is_quiet
        assert site.engines.current.ready.version == "1.1.0"

    on_site([], body)


def test_a_failed_update_in_place_brings_the_old_engine_back():
    async def body(site):
        site.scripts.append(
            [{"event": "quiesce"}, {"event": "failed", "code": "storage_failed", "message": "EIO"}]
        )
        site.notice()
        await site.event("update_failed")
        await site.until(lambda: site.engines.current is not None)
        assert site.engines.current.ready.version == "1.0.0"

    on_site([], body)


@pytest.mark.parametrize("is_enabled", [True, False])
def test_a_committed_release_is_rolled_back_on_request_without_an_updater(is_enabled):
    async def body(site):
        site.request(action="rollback", transaction="t")
        assert site.outlet.responses[-1]["status"] == "ok"
        event = await site.event("rolled_back")
        assert (event["version"], event["code"]) == ("1.1.0", "rollback_requested")
        await site.until(
            lambda: site.engines.current and site.engines.current.ready.version == "1.0.0"
        )
        assert site.models.reverted == ["rolled back on request"]
        assert site.starts == []

    on_site([], body, is_enabled=is_enabled, models=[Path("good-1.0.0"), Path("good-1.1.0")])


def test_a_rollback_with_nothing_to_return_to_is_refused():
    async def body(site):
        site.request(action="rollback")
        assert site.outlet.responses[-1]["status"] == "error"

    on_site([], body)


def test_what_was_given_up_is_listed_and_forgiven_and_nothing_begins_by_itself():
    async def body(site):
        site.request(action="rollback")
        await site.event("rolled_back")
        await site.phase("rolled_back")
        site.request(action="status")
        [entry] = site.outlet.responses[-1]["data"]["quarantine"]
        assert (entry["version"], entry["code"]) == ("good-1.1.0", "rollback_requested")
        site.request(action="forgive", model="9.9.9", transaction="t")
        refused = site.outlet.responses[-1]
        assert (refused["status"], refused["transaction"]) == ("error", "t")
        assert refused["error"] == "9.9.9: nothing is in quarantine here"
        site.request(action="forgive", model="good-1.1.0", transaction="u")
        assert site.outlet.responses[-1] == {
            "status": "ok",
            "data": {"forgiven": [entry]},
            "transaction": "u",
        }
        assert await site.event("update_forgiven") == entry
        site.request(action="forgive", model="all")
        assert site.outlet.responses[-1]["status"] == "error"
        assert site.starts == []

    on_site([], body, is_enabled=False, models=[Path("good-1.0.0"), Path("good-1.1.0")])


def test_nothing_is_forgiven_while_an_update_is_under_way():
    """The worker may hold the store for as long as it writes a model over."""

    async def body(site):
        site.models.given_up.append({"root": "00", "version": "1.1.0", "code": "", "reason": ""})
        ask = partial(site.request, action="forgive", model="all")
        site.scripts.append([FETCHING, ask, {"event": "up_to_date", "version": "1.0.0"}])
        site.request(action="install")
        await site.until(lambda: len(site.outlet.responses) == 2)
        assert "an update is under way" in site.outlet.responses[-1]["error"]
        assert len(site.models.given_up) == 1

    on_site([], body)


def test_a_model_that_is_much_slower_than_the_old_one_is_rolled_back():
    async def body(site):
        site.scripts.append(
            [
                {"event": "staged", "slot": "slow-1.1.0", "to": "1.1.0"},
                {"event": "rolled_back", "version": "1.1.0", "reason": "speed"},
            ]
        )
        site.notice()
        await site.event("rolled_back")
        [(ok, reason, code)] = site.updaters[-1].verdicts
        assert not ok
        assert code == "health_speed"
        assert reason == (
            "speed: expected at least 855.0 tokens/s, 0.9 of the old model's, got 500.0"
        )

    on_site([], body)


def test_an_engine_that_loads_another_model_than_was_staged_is_not_believed():
    async def body(site):
        site.scripts.append(
            [staged() | {"root": "11"}, {"event": "rolled_back", "version": "1.1.0"}]
        )
        site.notice()
        await site.event("rolled_back")
        [(ok, reason, code)] = site.updaters[-1].verdicts
        assert (ok, reason, code) == (False, "expected root 11, got 00", "health_root")

    on_site([], body)


GATED = {
    "event": "failed",
    "code": "gated",
    "message": "stage waits for temperature: expected up to 80 C, got 90",
    "retry_after_s": 300,
    "gate": {"stage": "stage", "reason": "temperature", "detail": "expected up to 80 C, got 90"},
}
UP_TO_DATE = {"event": "up_to_date", "version": "1.0.0"}


@pytest.fixture
def quick_gates(monkeypatch):
    """A condition that is over is believed at once."""
    monkeypatch.setattr("edgeagent.update_rest.GATE_FIRST_S", 0.0)
    monkeypatch.setattr("edgeagent.updating.GATE_STEP_S", 0.01)


def gates(site):
    return [data for kind, data in site.outlet.events if kind == "update_gated"]


def test_the_updater_is_told_the_surroundings_at_its_start_and_when_it_asks():
    async def body(site):
        site.request(action="check")
        await site.until(lambda: site.updaters and site.updaters[0].ended)
        start = site.starts[0]
        assert start["limits"] == {"max_temperature_c": 80.0}
        assert start["conditions"] == {"temperature_c": 90.0}
        assert site.updaters[0].told == [{"temperature_c": 90.0}]

    on_site([[FETCHING, {"event": "conditions"}, UP_TO_DATE]], body)


def test_a_stage_that_is_held_back_is_told_and_goes_on_when_the_condition_is_over(quick_gates):
    async def body(site):
        site.notice()
        state = await site.phase("gated")
        assert state["gated"]["reason"] == "temperature"
        assert state["gated"]["again_at_s"] > 0
        assert (state["in_progress"], state["code"]) == (False, "")
        assert "got 90" in state["release_summary"]
        await asyncio.sleep(0.1)
        assert len(site.starts) == 1  # no updater runs while it is hot
        site.surroundings.is_clear = True
        await site.event("update_committed")
        assert site.starts[1]["action"] == "poll"
        assert site.outlet.states[-1]["gated"] is None
        assert len(gates(site)) == 1

    on_site([[FETCHING, GATED], [FETCHING, staged(), COMMITTED]], body)


def test_the_same_condition_again_is_one_event_and_another_one_a_second(quick_gates):
    busy = GATED | {"gate": {"stage": "stage", "reason": "busy", "detail": "x"}}

    async def body(site):
        site.surroundings.is_clear = True
        site.notice()
        await site.until(lambda: len(site.starts) == 4)
        assert [gate["reason"] for gate in gates(site)] == ["temperature", "busy"]

    checking = {"event": "state", "state": "checking", "progress": None}
    on_site([[checking, GATED], [checking, GATED], [checking, busy], [UP_TO_DATE]], body)


def test_a_notice_supersedes_what_is_held_back(quick_gates):
    async def body(site):
        site.notice(b"1")
        await site.phase("gated")
        site.notice(b"2")
        await site.event("update_committed")
        assert len(site.starts) == 2

    on_site([[FETCHING, GATED], [staged(), COMMITTED]], body)


def test_what_is_held_back_is_cancelled_by_an_updater_that_only_remembers_it(quick_gates):
    async def body(site):
        site.notice()
        await site.phase("gated")
        site.request(action="cancel")
        assert (await site.event("update_failed"))["code"] == "cancelled"
        assert site.starts[1]["action"] == "cancel"
        site.surroundings.is_clear = True
        await asyncio.sleep(0.1)
        assert len(site.starts) == 2  # nothing goes on by itself
        assert site.outlet.states[-1]["code"] == "cancelled"

    on_site([[FETCHING, GATED], [CANCELLED]], body)


def test_a_running_update_is_cancelled_in_its_trial_and_no_engine_is_left():
    async def body(site):
        old = site.engines.current
        site.notice()
        await site.phase("trial")
        site.request(action="cancel", transaction="t")
        assert site.outlet.responses[-1]["status"] == "ok"
        assert (await site.event("update_failed"))["code"] == "cancelled"
        assert site.updaters[0].verdicts == []
        assert site.engines.current is old
        assert site.updating._proving is None

    on_site([[staged("slow-1.1.0")]], body)


def test_there_is_nothing_to_cancel_at_rest():
    async def body(site):
        site.request(action="cancel")
        assert site.outlet.responses[-1]["error"] == "nothing is under way"

    on_site([], body)


def test_what_trying_again_cannot_help_is_left_until_something_new_comes():
    failed = {"event": "failed", "code": "no_payload", "message": "x", "retry_after_s": None}

    async def body(site):
        site.notice(b"1")
        await site.event("update_failed")
        assert site.updating._rest.seconds > 43_200
        site.notice(b"1")
        await asyncio.sleep(0.05)
        assert len(site.starts) == 1
        site.request(action="install")
        await site.until(lambda: len(site.starts) == 2)
        assert site.starts[1]["action"] == "install"

    on_site([[failed], [UP_TO_DATE]], body)


class WithDelta(FakeModels):
    """Models whose one before the active is a delta."""

    def way_back(self):
        return WayBack.DELTA if len(self.paths) > 1 else WayBack.NONE


def two_models(site):
    site.models.__class__ = WithDelta
    return site


def test_a_model_that_is_a_delta_is_made_while_the_active_one_answers():
    async def body(site):
        two_models(site)
        old = site.engines.current
        site.scripts.append([lambda: running.append(site.engines.current is old), REBUILT])
        running = []
        site.request(action="rollback")
        assert (await site.event("rolled_back"))["version"] == "1.1.0"
        assert running == [True]
        assert site.starts[0]["action"] == "rebuild"
        assert site.updaters[0].ended
        await site.until(
            lambda: site.engines.current and site.engines.current.ready.version == "1.0.0"
        )

    on_site([], body, models=[Path("good-1.0.0"), Path("good-1.1.0")])


def test_a_way_back_that_is_lost_changes_nothing():
    async def body(site):
        two_models(site)
        old = site.engines.current
        site.request(action="rollback")
        event = await site.event("update_failed")
        assert event["code"] == "patch_damaged"
        assert site.models.reverted == []
        assert site.engines.current is old

    failed = {"event": "failed", "code": "patch_damaged", "message": "lost", "retry_after_s": None}
    on_site([[failed]], body, models=[Path("good-1.0.0"), Path("good-1.1.0")])


REBUILT = {"event": "rebuilt", "seconds": 0.1, "written_bytes": 10}
