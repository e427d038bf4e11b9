import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.errors import ReleaseFormatError
from ota.release import FileEntry, Health, make_release, parse_examples, parse_release

FILES = {"b.json": FileEntry(2, "ab" * 32), "a.bin": FileEntry(1, "cd" * 32)}
GOOD = make_release("edge-tiny", "1.0.0", 1, FILES, Health(((0, 5),), ("ef" * 32,)))


def test_it_survives_its_own_text():
    assert parse_release(GOOD.text) == GOOD


def test_the_root_is_the_hash_that_the_document_defines():
    lines = f"{'cd' * 32} 1 a.bin\n{'ab' * 32} 2 b.json\n"
    assert GOOD.root == hashlib.sha256(lines.encode()).hexdigest()


def changed(**fields):
    return json.dumps(json.loads(GOOD.text) | fields).encode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"nope", "JSON"),
        (b"[" * 99999, "JSON"),
        (b"[]", "an object"),
        (b" " * (1 << 21), "at most"),
        (changed(format=2), "format.: 1"),
        (changed(name="../x"), "a name"),
        (changed(version=""), "a version"),
        (changed(counter=-1), "a counter"),
        (changed(counter=True), "a counter"),
        (changed(files={}), "files"),
        (changed(files={"../etc/passwd": {"bytes": 1, "sha256": "ab" * 32}}), "plain file name"),
        (changed(files={"a/b": {"bytes": 1, "sha256": "ab" * 32}}), "plain file name"),
        (changed(files={"release.json": {"bytes": 1, "sha256": "ab" * 32}}), "plain file name"),
        (changed(files={"a": {"bytes": -1, "sha256": "ab" * 32}}), "the length"),
        (changed(files={"a": {"bytes": 1, "sha256": "zz"}}), "sha256"),
        (changed(root="00" * 32), "root"),
        (changed(health={"prompts": [[1]], "logits_sha256": []}), "a hash for each"),
        (changed(health={"prompts": [["x"]], "logits_sha256": ["ab" * 32]}), "token ids"),
    ],
)
def test_anything_else_is_refused_by_field(text, says):
    with pytest.raises(ReleaseFormatError, match=says) as err:
        parse_release(text)
    assert "\n" not in str(err.value)


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["format", "name", "files", "root", "health", "bytes"]),
                inner,
                max_size=4,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_bytes_get_anything_but_a_format_error(text):
    with pytest.raises(ReleaseFormatError):
        parse_release(text)


@pytest.mark.parametrize(
    "examples",
    [
        {},
        [{}] * 17,
        [7],
        [{"prompt": "a"}],
        [{"prompt": "a", "equals": "b", "contains": "b"}],
        [{"prompt": "a", "equals": "b", "pattern": ".*"}],
        [{"prompt": "", "equals": "b"}],
        [{"prompt": "a", "equals": "b" * 2049}],
        [{"prompt": "a", "json": "{"}],
        [{"prompt": "a", "equals": "b", "max_tokens": 0}],
        [{"prompt": "a", "equals": "b", "max_tokens": 129}],
    ],
)
def test_examples_are_bounded_and_say_one_thing(examples):
    with pytest.raises(ReleaseFormatError):
        parse_examples(examples)


@pytest.mark.parametrize(
    ("kind", "expected", "answer", "is_met"),
    [
        ("equals", "on", " on\n", True),
        ("equals", "on", "on it", False),
        ("contains", "on", "it is on.", True),
        ("contains", "on", "off", False),
        ("json", '{"a": 1, "b": [2]}', ' {"b":[2],"a":1}', True),
        ("json", '{"a": 1}', '{"a": 2}', False),
        ("json", '{"a": 1}', '{"a": 1', False),
        ("json", "[1]", "[" * 100_000, False),
    ],
)
def test_an_answer_is_compared_by_the_rule_of_its_example(kind, expected, answer, is_met):
    (example,) = parse_examples([{"prompt": "p", kind: expected}])
    assert example.is_met_by(answer) is is_met


def test_examples_survive_being_written_and_read():
    examples = parse_examples([{"prompt": "p", "json": "{}", "max_tokens": 5}])
    files = {"a": FileEntry(1, "ab" * 32)}
    made = make_release("m", "1", 1, files, Health(examples=examples))
    assert parse_release(made.text).health.examples == examples
