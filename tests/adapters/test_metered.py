import asyncio
import sys

import pytest

from edgeagent.adapters import metered
from edgeagent.adapters.metered import Metered


def ask(*words, **more):
    return asyncio.run(Metered("auto", **more, command=words).read())


def python(text):
    return sys.executable, "-c", text


@pytest.mark.parametrize(("setting", "answer"), [("yes", True), ("no", False)])
def test_the_operator_has_the_last_word(setting, answer, tmp_path):
    assert asyncio.run(Metered(setting, tmp_path / "x", python("print('u 3')")).read()) is answer


@pytest.mark.parametrize(
    ("said", "answer"),
    [("u 0", None), ("u 1", True), ("u 2", False), ("u 3", True), ("u 4", False), ("", None)],
)
def test_network_manager_knows_or_guesses(said, answer):
    assert ask(*python(f"print({said!r})")) is answer


@pytest.mark.parametrize(
    "command", [("/nonexistent/busctl",), python("import sys; sys.exit('no such service')")]
)
def test_without_network_manager_nobody_knows(command):
    assert ask(*command) is None


def test_a_bus_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(metered, "TIMEOUT_S", 0.2)
    assert ask(*python("import time; time.sleep(60)")) is None


def test_an_answer_is_kept_for_a_while(tmp_path):
    tally = tmp_path / "asked"
    link = Metered("auto", command=python(f"open({str(tally)!r}, 'a').write('x'); print('u 1')"))

    async def twice():
        return [await link.read(), await link.read()]

    assert asyncio.run(twice()) == [True, True]
    assert tally.read_text() == "x"


@pytest.mark.parametrize(
    ("text", "answer"),
    [("yes\n", True), ("1", True), ("No", False), ("0\n", False), ("maybe", None), (b"\xff", None)],
)
def test_a_file_says_it_in_place_of_network_manager(text, answer, tmp_path):
    path = tmp_path / "metered"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert ask(*python("print('u 3')"), file=path) is answer


def test_a_file_that_is_not_there_says_nothing(tmp_path):
    assert ask(*python("print('u 3')"), file=tmp_path / "none") is None
