"""The command line as a person or a script meets it: real processes, the bundled model."""

import json
import os
import subprocess
import sys

import pytest

from edgeagent import __version__, _core

GENERATE = ["generate", "--prompt", "Once upon a time", "--seed", "7", "--temperature", "0.8"]
TOKENS = ["--max-tokens", "60"]


def edgeagent(*words, stdin="", **environment):
    return subprocess.run(
        [sys.executable, "-m", "edgeagent.cli", *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )


@pytest.fixture(scope="module")
def text():
    return edgeagent(*GENERATE, *TOKENS).stdout


def test_generate_prints_the_text_alone(text):
    done = edgeagent(*GENERATE, *TOKENS, "--json")
    document = json.loads(done.stdout)
    assert text == document["text"] + "\n"
    assert document["model"]["name"] == "edge-tiny"
    assert done.stderr == ""


@pytest.mark.parametrize("kernel", _core.supported_variants())
@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("zero_skip", ["--zero-skip", "--no-zero-skip"])
def test_the_bytes_do_not_depend_on_threads_zero_skip_or_kernel(text, kernel, threads, zero_skip):
    words = (*GENERATE, *TOKENS, "--threads", threads, zero_skip)
    assert edgeagent(*words, EDGEAGENT_KERNEL=kernel).stdout == text


def test_the_bundled_model_turns_a_command_into_one_json_object():
    done = edgeagent("generate", "--user", "turn on the kitchen lights")
    answer = json.loads(done.stdout)
    assert set(answer) == {"intent", "slots"}
    assert answer["intent"] == "HassTurnOn"
    assert answer["slots"]["area"] == "kitchen"


def test_chat_answers_line_by_line_and_forgets_rather_than_fails():
    lines = ["turn on the kitchen lights"] * 30 + ["/clear", "turn off the fan", "/bye", "never"]
    done = edgeagent("chat", "--json", "--max-tokens", "40", stdin="\n".join(lines))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 31
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("words", "environment", "code", "says"),
    [
        (["generate", "--prompt", "x " * 2000], {}, 65, "prompt: expected 1 to 511 tokens"),
        (["generate", "--prompt", "x"], {"EDGEAGENT_KERNEL": "avx9000"}, 78, "avx9000"),
        (["generate", "--prompt", "x", "--kernel", "avx9000"], {}, 78, "scalar"),
        (["generate", "--prompt", "x", "--temperature", "-3"], {}, 78, "temperature"),
        (["generate", "--prompt", "x", "--threads", "1000"], {}, 78, "threads"),
        (["generate", "--prompt", "x", "--model", "/nowhere"], {}, 65, "release.json"),
        (["run", "--config", "/nowhere.toml"], {}, 78, "nowhere.toml"),
        (["ask", "x", "--mqtt", "127.0.0.1:1"], {}, 69, "127.0.0.1:1"),
        (["ask", "x", "--mqtt", "host:port"], {}, 78, "HOST:PORT"),
        (["status", "--mqtt", "127.0.0.1:1"], {}, 69, "is it running"),
        (["convert", "/nowhere", "/nowhere2", "--name", "x", "--release", "1", "--counter", "1"],
         {}, 65, "config.json"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_and_an_exit_code(words, environment, code, says):
    done = edgeagent(*words, **environment)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("edgeagent: ")
    assert says in done.stderr
    assert done.stdout == ""


def test_wrong_words_are_usage_errors():
    assert edgeagent("generate").returncode == 64
    assert edgeagent("frobnicate").returncode == 64
    assert edgeagent("--version").stdout == f"edgeagent {__version__}\n"
