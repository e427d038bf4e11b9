"""The same seed gives the same bytes, however they are computed."""

import itertools
import random

import pytest

from edgeagent import _core
from edgeagent.errors import ContextFull
from edgeagent.model.generation import LoadedModel, Params
from ota.release import Example, Health
from tests.tiny import make_model

PARAMS = Params(max_tokens=24, temperature=0.9, seed=7)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("m") / "model")


@pytest.fixture(scope="module")
def model(path):
    return LoadedModel(path)


def finish(steps, send=lambda n: None):
    pieces = [next(steps)]
    try:
        for n in itertools.count():
            pieces.append(steps.send(send(n)))
    except StopIteration as end:
        return "".join(pieces), end.value
    raise AssertionError


def text_of(model, prompt, params=PARAMS):
    return finish(model.generate(model.tokenizer.encode_prompt(prompt), params))


def test_the_pieces_are_the_text(model):
    text, outcome = text_of(model, "hello")
    assert text == outcome.text
    assert outcome.finish_reason in {"length", "stop"}
    assert outcome.prompt_tokens == 6


@pytest.mark.parametrize("kernel", _core.supported_variants())
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("zero_skip", [True, False])
def test_every_way_of_computing_gives_the_same_text(path, model, kernel, threads, zero_skip):
    other = LoadedModel(path, threads=threads, kernel=kernel, zero_skip=zero_skip)
    assert text_of(other, "the same")[0] == text_of(model, "the same")[0]
    assert [c["ok"] for c in other.check_health()] == [True] * 3


@pytest.mark.parametrize("kv_bits", [32, 16, 8, 4])
def test_the_health_suite_is_that_of_a_float32_cache(path, kv_bits):
    other = LoadedModel(path, kv_bits=kv_bits, kv_group_size=32)
    before = text_of(other, "something to remember")[0]
    assert [c["ok"] for c in other.check_health()] == [True] * 3
    again, outcome = text_of(other, "something to remember")
    assert again == before
    assert outcome.cached_tokens == outcome.prompt_tokens - 1  # the suite left the cache alone


@pytest.mark.parametrize("kv_bits", [32, 16, 8, 4])
def test_a_reused_prefix_does_not_change_a_byte(path, kv_bits):
    """Prompts that share beginnings with each other and with answers, in random order."""
    rng = random.Random(kv_bits)
    model = LoadedModel(path, threads=2, kv_bits=kv_bits)
    fresh = LoadedModel(path, kv_bits=kv_bits)
    prompts, reused = ["turn on the lamp in the kitchen"], 0
    for seed in range(40):
        base = rng.choice(prompts[-3:])
        shared = base[: rng.randrange(len(base) // 2, len(base) + 1)]
        prompts.append((shared + rng.choice("xyz") * rng.randrange(4) or "a")[:60])
        params = Params(max_tokens=rng.randrange(1, 12), temperature=0.9, seed=seed)
        text, outcome = text_of(model, prompts[-1], params)
        fresh.forget()
        want, from_nothing = text_of(fresh, prompts[-1], params)
        assert (text, outcome.finish_reason) == (want, from_nothing.finish_reason)
        assert from_nothing.cached_tokens == 0
        assert outcome.as_messages()["usage"]["cached_tokens"] < outcome.prompt_tokens
        reused += outcome.cached_tokens
        prompts.append((prompts[-1] + text)[:60])
    assert reused > 200


def test_only_the_tail_of_a_known_prompt_is_computed(model):
    model.forget()
    whole = text_of(model, "the same words again")[1]
    tail = text_of(model, "the same words once more")[1]
    assert whole.cached_tokens == 0
    assert tail.cached_tokens == 1 + len("the same words ")  # and the token that begins a text
    assert text_of(model, "other")[1].cached_tokens == 1


def test_a_cancelled_prefill_leaves_a_sound_cache(model):
    ids = model.tokenizer.encode_prompt("x" * 100)
    model.forget()
    want = finish(model.generate(ids, PARAMS))[0]
    model.forget()
    finish(model.generate(ids, PARAMS), lambda n: "cancelled")
    text, outcome = finish(model.generate(ids, PARAMS))
    assert text == want
    assert 0 < outcome.cached_tokens < 100


def test_an_unseeded_difference_shows(model):
    other = Params(max_tokens=24, temperature=0.9, seed=8)
    assert text_of(model, "hello", other)[0] != text_of(model, "hello")[0]


def test_zero_skip_is_counted(model):
    _, outcome = text_of(model, "hello")
    assert 0 < outcome.skipped["multiplications_fraction"] < 1
    off = Params(max_tokens=4, zero_skip=False)
    assert text_of(model, "hello", off)[1].skipped["multiplications_fraction"] == 0


def test_a_prompt_longer_than_the_context_changes_nothing(model):
    want = text_of(model, "hello")[0]
    with pytest.raises(ContextFull, match="expected 1 to 127 tokens, got 201: shorten it"):
        text_of(model, "x" * 200)
    with pytest.raises(ContextFull):
        finish(model.generate([], PARAMS))
    assert text_of(model, "hello")[0] == want


def test_a_full_context_ends_the_answer(model):
    _, outcome = text_of(model, "x" * 120, Params(max_tokens=500, temperature=0.9, seed=3))
    assert outcome.prompt_tokens + outcome.completion_tokens <= 128


def test_a_caller_may_stop_it_between_tokens_and_in_the_prefill(model):
    ids = model.tokenizer.encode_prompt("x" * 100)
    text, outcome = finish(model.generate(ids, PARAMS), lambda n: "cancelled")
    assert (text, outcome.completion_tokens, outcome.finish_reason) == ("", 0, "cancelled")
    ids = model.tokenizer.encode_prompt("hello")
    _, outcome = finish(model.generate(ids, PARAMS), lambda n: "deadline" if n == 5 else None)
    assert outcome.completion_tokens == 5
    assert outcome.finish_reason == "deadline"


def test_a_stop_string_ends_the_answer_before_it(model):
    whole, _ = text_of(model, "hello")
    stop = whole[3:6]
    text, outcome = text_of(
        model, "hello", Params(max_tokens=24, temperature=0.9, seed=7, stop=[stop])
    )
    assert text == outcome.text == whole[: whole.find(stop)]
    assert outcome.finish_reason == "stop"


def test_health_notices_a_changed_weight(path, model):
    prompts = model.release.health.prompts
    broken = type(model.release.health)(prompts, ("00" * 32,) * len(prompts))
    assert [c["ok"] for c in model.check_health(broken)] == [False] * 3


def test_health_asks_the_examples_and_leaves_the_cache_empty(path, model):
    ids = model.encode(None, [{"role": "user", "content": "hello"}])
    answer = finish(model.generate(ids, Params(max_tokens=4)))[1].text
    good = Example("hello", "contains", answer, 4)
    bad = Example("hello", "equals", answer + "!", 4)
    long = Example("x" * 2000, "contains", "y", 4)
    checks = model.check_health(Health(examples=(good, bad, long)))
    assert [check["ok"] for check in checks] == [True, False, False]
    assert checks[1]["detail"].startswith("expected an answer that equals ")
    assert "prompt: expected" in checks[2]["detail"]
    assert finish(model.generate(ids, Params(max_tokens=4)))[1].cached_tokens == 0
