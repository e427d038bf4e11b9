"""One table of reasons: complete, in step with the page, and without a code that nobody raises."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from ota import errors
from ota.errors import PayloadError, UpdateError
from ota.fleet.cli import ExpiresSoon
from ota.reasons import REASONS, advice_on, table

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "ota").rglob("*.py"), *(ROOT / "edgeagent").rglob("*.py")]
TESTS = [p for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__)]
KINDS = {
    kind.code: kind.__name__
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, UpdateError) and kind is not PayloadError  # what its kinds have in common
} | {ExpiresSoon.code: ExpiresSoon.__name__}


def names_and_texts(paths):
    """Return every name and every string that the code (not its comments) of ``paths`` uses."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.Name):
                found.add(node.id)
    return found


def raised():
    """Return the names of every error that is made somewhere, and every string of the sources."""
    paths = [p for p in SOURCES if p.name not in {"reasons.py", "errors.py"}]
    return names_and_texts(paths)


RAISED, TESTED = raised(), names_and_texts(TESTS)


def test_every_error_has_a_row_and_there_are_enough_to_tell_them_apart():
    assert set(KINDS) <= set(REASONS)
    assert len(REASONS) >= 40


@pytest.mark.parametrize("code", sorted(REASONS))
def test_a_code_is_raised_somewhere_and_by_a_test(code):
    assert {code, KINDS.get(code, code)} & RAISED, "nothing raises it"
    assert {code, KINDS.get(code, code)} & TESTED, "no test meets it"


@pytest.mark.parametrize("code", sorted(REASONS))
def test_a_row_is_one_short_line(code):
    assert re.fullmatch(r"[a-z_]+", code)
    assert 20 <= len(advice_on(code)) <= 100
    assert advice_on(code)[-1] != "."


def test_a_code_of_another_version_has_no_advice():
    assert advice_on("from_the_future") == ""


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "updates.md").read_text()
    between = page.split("<!-- reasons: begin -->\n")[1].split("\n<!-- reasons: end -->")[0]
    assert between == table(), "print(ota.reasons.table()) into docs/updates.md"
