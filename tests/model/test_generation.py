"""The same seed gives the same bytes, however they are computed."""

import itertools

import pytest

from edgeagent import _core
from edgeagent.errors import ContextFull
from edgeagent.model.generation import LoadedModel, Params
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
