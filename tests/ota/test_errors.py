import inspect
import re

from ota import errors
from ota.errors import MAX_LINE_CHARS, UpdateError

TREE = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, UpdateError) and kind.__module__ == errors.__name__
]


def test_every_error_has_a_code_of_its_own():
    codes = [kind.code for kind in TREE]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


def test_every_error_has_an_exit_code_from_sysexits():
    assert all(64 <= kind.exit_code <= 78 for kind in TREE)


def test_the_tree_in_the_docstring_names_every_error():
    assert all(re.search(rf"\b{kind.__name__}\b", errors.__doc__) for kind in TREE)


def test_the_document_for_operators_explains_every_code():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "updates.md").read_text()
    missing = [kind.code for kind in TREE if f"`{kind.code}`" not in text]
    assert not missing


def test_a_message_is_one_line_whatever_it_quotes():
    assert str(UpdateError("café: expected a, got 'b'")) == "café: expected a, got 'b'"
    assert str(UpdateError("a\nb\x1b[1m\ud800")) == "a\ufffdb\ufffd[1m\ufffd"
    long = str(UpdateError("first " + "x" * 10**6 + " what to do"))
    assert len(long) == MAX_LINE_CHARS
    assert long.startswith("first ")
    assert long.endswith(" what to do")
