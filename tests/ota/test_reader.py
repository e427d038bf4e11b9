"""The reader in the documentation shares no code with the product, and must agree with it."""

import ast
import base64
import importlib.util
import json
from pathlib import Path

import pytest

from tests.ota.codec import release_of

ROOT = Path(__file__).parents[2]
READER = ROOT / "docs" / "etd_reader.py"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "delta.json").read_text())


@pytest.fixture(scope="module")
def reader():
    spec = importlib.util.spec_from_file_location("etd_reader", READER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model(coded):
    return {name: base64.b64decode(text) for name, text in (coded or {}).items()}


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda v: v["name"])
def test_it_decodes_the_golden_vectors(reader, vector):
    base = (vector["base_release"] or "").encode()
    made, text = reader.read(base64.b64decode(vector["delta"]), base, model(vector["old"]))
    assert made == model(vector["new"])
    assert text == release_of(made, "1.1.0", 2).text


def code_lines(text):
    """Lines that code stands on: no comments, blank lines or docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            del node.body[0]
    return len({node.lineno for node in ast.walk(tree) if hasattr(node, "lineno")})


def test_it_is_short_and_imports_nothing_of_ours():
    text = READER.read_text()
    assert code_lines(text) < 200
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module)
    assert names == {"hashlib", "json", "re", "zstandard"}
