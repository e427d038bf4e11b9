import json

import pytest

from edgeagent.model.generation import LoadedModel, Params
from ota.errors import ExampleFailed
from ota.fleet.cli import main
from ota.fleet.examples import check_examples
from ota.storage import read_release
from tests.tiny import make_model


def with_example(path, expected):
    text = json.loads((path / "release.json").read_text())
    text["health"]["examples"] = [{"prompt": "hello", "contains": expected, "max_tokens": 4}]
    (path / "release.json").write_text(json.dumps(text))
    return read_release(path)


def answer_of(path):
    model = LoadedModel(path)
    steps = model.generate(
        model.encode(None, [{"role": "user", "content": "hello"}]), Params(max_tokens=4)
    )
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value.text


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model")


def test_a_release_without_examples_asks_no_engine(model):
    assert check_examples(model, read_release(model)) is False


def test_right_examples_are_released_and_wrong_ones_are_not(model, tmp_path, capsys):
    repo = str(tmp_path / "repo")
    assert main(["init", repo, "--name", "r"]) == 0
    with_example(model, "no such answer")
    assert main(["release", repo, str(model), "--json"]) == ExampleFailed.exit_code
    assert '"health_example"' in capsys.readouterr().out
    with_example(model, answer_of(model))
    assert main(["release", repo, str(model)]) == 0


def test_a_model_that_does_not_load_is_no_release(model):
    release = with_example(model, "x")
    (model / "config.json").write_text("{}")
    with pytest.raises(ExampleFailed, match="expected a model that loads"):
        check_examples(model, release)
