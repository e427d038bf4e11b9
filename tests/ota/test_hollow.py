"""Hashes that are left out come back, and only the right ones."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota.errors import DeltaFormatError, PayloadMismatch, ReleaseFormatError
from ota.hollow import UNKNOWN, draft_of, fill, hollow_text
from ota.release import FileEntry, parse_hollow, parse_release
from tests.ota.codec import release_of

OLD = {"a": b"1", "b": b"2", "c": b"3"}
NEW = {"a": b"1", "b": b"changed", "d": b"new"}
BASE, RESULT = release_of(OLD), release_of(NEW, "1.1.0", 2)
MADE = ("b", "d")
HASHES = {name: hashlib.sha256(NEW[name]).hexdigest() for name in MADE}


def test_what_is_hollow_has_the_hashes_of_the_base():
    release = parse_hollow(hollow_text(RESULT, BASE, MADE))
    assert release.files["b"] == FileEntry(7, BASE.files["b"].sha256)
    assert release.files["a"] == RESULT.files["a"]
    assert release.root == BASE.root and release.version == "1.1.0"
    for digest in (*HASHES.values(), RESULT.root):
        assert digest.encode() not in release.text


def test_a_draft_knows_all_but_the_hashes_and_is_filled_to_the_byte():
    draft = draft_of(hollow_text(RESULT, BASE, MADE), RESULT.root, MADE)
    assert {n for n, e in draft.files.items() if e.sha256 == UNKNOWN} == set(MADE)
    assert fill(draft, HASHES) == RESULT


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.binary(max_size=3), min_size=1),
    st.dictionaries(st.sampled_from("abcdef"), st.binary(max_size=3), min_size=1),
)
def test_any_two_releases_survive(old, new):
    base, result = release_of(old), release_of(new, "2.0.0", 9)
    made = [name for name, data in new.items() if data not in old.values()]
    draft = draft_of(hollow_text(result, base, made), result.root, made)
    assert fill(draft, {n: hashlib.sha256(new[n]).hexdigest() for n in made}) == result


def test_another_hash_or_another_root_is_refused():
    draft = draft_of(hollow_text(RESULT, BASE, MADE), RESULT.root, MADE)
    with pytest.raises(PayloadMismatch, match="expected files with the root"):
        fill(draft, {**HASHES, "b": hashlib.sha256(b"else").hexdigest()})
    with pytest.raises(PayloadMismatch, match="expected files with the root"):
        fill(replace(draft, root=BASE.root), HASHES)


def test_a_text_that_could_not_be_filled_is_sent_whole():
    for text in (
        RESULT.text.replace(b'"sha256": "', b'"sha256" : "'),
        b'{"root": "%s", %s' % (RESULT.root.encode(), RESULT.text.lstrip(b"{ \n")),
    ):
        odd = parse_release(text)
        assert hollow_text(odd, BASE, MADE) is None
        with pytest.raises(DeltaFormatError, match="in a hollow release"):
            draft_of(text, RESULT.root, MADE)


def test_a_hollow_text_is_no_release():
    with pytest.raises(ReleaseFormatError, match="the hash of its files"):
        parse_release(hollow_text(RESULT, BASE, MADE))
