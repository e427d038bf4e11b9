"""Cached model directories: they load as any model does, and have the zeros that were asked for."""

import pytest

from edgeagent.bench.model_dir import Wanted, ensure_model
from edgeagent.bench.shapes import SHAPES
from edgeagent.model.generation import LoadedModel, Params

TINY = SHAPES["tiny"]


@pytest.mark.parametrize(("zero_act", "closed_gates"), [(0.8, 0.7), (0.9, 0.7), (0.6, 0.5)])
def test_the_engines_counters_see_the_zeros_asked_for(tmp_path, zero_act, closed_gates):
    model = LoadedModel(
        ensure_model(Wanted(TINY, zero_act, closed_gates), tmp_path, lambda _: None)
    )
    tokens = [(7 * i + 3) % TINY.vocab for i in range(128)]
    for token in tokens:
        model.session.eval([token])
    layers = model.session.counters()
    total = {key: sum(layer[key] for layer in layers) for key in layers[0]}
    assert total["closed_gates"] / total["gates"] == pytest.approx(closed_gates, abs=0.03)
    assert total["zero_down_inputs"] / total["down_inputs"] == pytest.approx(zero_act, abs=0.03)


def test_weights_are_shared_and_a_second_call_makes_nothing(tmp_path):
    said = []
    first = ensure_model(Wanted(TINY, 0.8, 0.7), tmp_path, said.append)
    second = ensure_model(Wanted(TINY, 0.85, 0.7), tmp_path, said.append)
    shard = "model-00001-of-00004.safetensors"
    assert (first / shard).stat().st_ino == (second / shard).stat().st_ino
    said.clear()
    assert ensure_model(Wanted(TINY, 0.8, 0.7), tmp_path, said.append) == first
    assert said == []
    assert not list(tmp_path.glob("*.partial-*"))


def test_the_tokenizer_fills_the_vocabulary_and_the_model_speaks(tmp_path):
    model = LoadedModel(ensure_model(Wanted(TINY, 0.8, 0.7), tmp_path, lambda _: None))
    assert model.tokenizer.size == TINY.vocab
    steps = model.generate(model.encode("Once", None), Params(max_tokens=12))
    try:
        while True:
            next(steps)
    except StopIteration as end:
        assert end.value.completion_tokens >= 1
    assert len({*_greedy(model, 16)}) > 2, "a tied head must not answer every token with itself"


def _greedy(model, n):
    from edgeagent.bench.subject import greedy

    model.session.truncate(0)
    model.session.eval([5, 6, 7])
    steps = greedy(model.session)
    return [next(steps) for _ in range(n)]
