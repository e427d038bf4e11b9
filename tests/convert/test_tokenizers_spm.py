"""A SentencePiece vocabulary in the tokenizers library gives the ids of the algorithm itself."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edgeagent.convert.sentencepiece import parse_spm
from edgeagent.convert.tokenizers_spm import MAX_PIECE_CHARS, merges, spm_tokenizer
from edgeagent.errors import ModelError
from tests.convert import spm
from tests.lines import lines

TEXTS = [
    "\u2581t", "he", "\u2581the", "aa", "aaaa", "aba", "ab", "abab", "\u2581\u2581",
    "\u2581\u2581\u2581\u2581", "\u2581a", "the", "ing", "in", "00", "\u65e5\u672c",
    *"\u2581abcdefghijklmnopqrstuvwxyzT0.,\u65e5\u672c\U0001f600",
]  # fmt: skip


def tokenizer_of(pieces, normaliser=None, *, add_bos=True):
    parsed = parse_spm(spm.model(pieces, None, {3: 1, 4: 0} | (normaliser or {})), "m")
    tokenizer = Tokenizer.from_str(json.dumps(spm_tokenizer(parsed, "m", add_bos=add_bos)))
    tokenizer.encode_special_tokens = True
    return tokenizer


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


PIECES = spm.vocabulary(TEXTS)
TOKENIZER = tokenizer_of(PIECES)


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="ab the\u2581 0\u65e5\U0001f600\n\x00<s>", max_size=60))
def test_ids_are_those_of_the_algorithm(text):
    assert ids(TOKENIZER, text) == spm.ids_of(text, PIECES)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(alphabet="ab\u2581", min_size=2, max_size=4), unique=True, max_size=8),
    st.text(alphabet="ab ", max_size=14),
)
def test_any_vocabulary_whose_pieces_do_not_overlap_themselves(texts, text):
    texts = [t for t in texts if not any(t[:n] == t[-n:] for n in range(1, len(t)))]
    pieces = spm.vocabulary([*texts, "a", "b", "\u2581"])
    assert ids(tokenizer_of(pieces), text) == spm.ids_of(text, pieces)


def test_made_lines_give_the_same_ids():
    for line in lines(150, seed=5):
        assert ids(TOKENIZER, line) == spm.ids_of(line, PIECES)


def test_where_two_pairs_make_one_piece_the_left_one_wins():
    pieces = spm.vocabulary(["ab", "cab", "abcab", *"abc"])  # abcab = ab + cab; only one cut
    tokenizer = tokenizer_of(pieces, {3: 0})
    for text in ("abcabcab", "cababcab", "ababcabab"):
        assert ids(tokenizer, text) == spm.ids_of(text, pieces, prefix=False)


def test_text_comes_back_and_bos_stands_before_it():
    assert TOKENIZER.decode(ids(TOKENIZER, "the  ab \u65e5x\n")) == "the  ab \u65e5x\n"
    assert TOKENIZER.encode("ab").ids[0] == 1
    assert tokenizer_of(PIECES, add_bos=False).encode("ab").ids[0] != 1


def test_spaces_collapse_where_the_model_says_so():
    tokenizer = tokenizer_of(PIECES, {4: 1})
    assert ids(tokenizer, "  the   ab  ") == ids(TOKENIZER, "the ab")
    assert ids(tokenizer, "the\t") == ids(TOKENIZER, "the\t")


def test_no_prefix_where_the_model_has_none():
    assert ids(tokenizer_of(PIECES, {3: 0}), "the") == spm.ids_of("the", PIECES, prefix=False)


def test_user_defined_pieces_are_found_first():
    pieces = [*PIECES, ("<tool>", 0.0, 4)]
    assert ids(tokenizer_of(pieces, {3: 0}), "a<tool>a").count(len(pieces) - 1) == 1


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([*PIECES, ("ab", -99.0, 1)], "is there twice"),
        ([*spm.SPECIAL, *spm.BYTES[:-1], ("a", 0.0, 1)], "expected 256 byte tokens or none"),
        ([*PIECES, ("a" * (MAX_PIECE_CHARS + 1), -99.0, 1)], "characters"),
        ([*PIECES, ("q", float("nan"), 1)], "not a number"),
        (spm.vocabulary(["a" * n for n in range(1, 200)]), "cuts a piece"),
    ],
)
def test_vocabularies_that_disagree_with_themselves_are_refused(pieces, reason):
    parsed = parse_spm(spm.model(pieces), "m")
    with pytest.raises(ModelError, match=reason):
        spm_tokenizer(parsed, "m", add_bos=True)


def test_a_compiled_normalisation_is_refused():
    data = spm.model(PIECES) + spm.block(3, spm.block(2, b"\x04\0\0\0map"))
    with pytest.raises(ModelError, match="compiled normalisation"):
        spm_tokenizer(parse_spm(data, "m"), "m", add_bos=True)


def test_control_tokens_and_bytes_are_never_merged_into():
    pieces = [*PIECES, ("<", -90.0, 1), ("s", -91.0, 1), (">", -92.0, 1), ("<s", -93.0, 1)]
    parsed = parse_spm(spm.model([p for p in pieces if p[0] not in ("s",)] + [pieces[-3]]), "m")
    assert all("".join(pair) != "<s>" for pair in merges(parsed, "m"))
