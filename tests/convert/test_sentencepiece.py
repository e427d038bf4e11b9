"""SentencePiece model files, sound and hostile."""

import contextlib
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.convert.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, parse_spm, read_spm
from edgeagent.errors import ModelError
from tests.convert import spm

GOOD = spm.model(spm.vocabulary(["ab", "a", "b"]), {40: 0, 41: 1, 42: 2}, {3: 1, 4: 0})


def test_pieces_scores_types_and_settings_are_read():
    pieces = parse_spm(GOOD, "m")
    assert pieces.texts[-3:] == ["ab", "a", "b"]
    assert pieces.scores[-3:] == [0.0, -1.0, -2.0]
    assert pieces.types[:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert pieces.types[-1] == NORMAL
    assert (pieces.unk_id, pieces.bos_id, pieces.eos_id) == (0, 1, 2)
    assert pieces.space_prefix
    assert not pieces.collapse_spaces


def test_what_a_file_leaves_out_has_the_defaults_of_the_format():
    pieces = parse_spm(spm.model([("a", 0.0, None)]), "m")
    assert pieces.types == [NORMAL]
    assert (pieces.unk_id, pieces.bos_id, pieces.eos_id) == (0, None, None)
    assert pieces.space_prefix
    assert pieces.collapse_spaces


def test_ids_of_minus_one_are_none():
    pieces = parse_spm(spm.model(spm.vocabulary(["a"]), {41: -1, 42: -1}), "m")
    assert (pieces.bos_id, pieces.eos_id) == (None, None)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no pieces"),
        (spm.model([("a", 0.0, 1)], {3: 1}), "expected a BPE model"),
        (spm.model([("a", 0.0, 1)], {24: 1}), "whitespace"),
        (spm.model([("a", 0.0, 1)], None, {5: 0}), "whitespace"),
        (spm.model([("a", 0.0, 9)]), "expected a type from 1 to 6, got 9"),
        (spm.block(1, spm.block(1, b"\xff")), "not UTF-8"),
        (spm.block(1, spm.number(2, 7)), "expected a float"),
        (spm.block(1, spm.number(1, 7)), "expected bytes"),
        (b"\x0b", "wire type 3"),
        (b"\x0a\xff\xff\xff\x7f", "says 268435455 bytes, 0 are left"),
        (b"\x80" * 11, "cut short or too long"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(data, reason):
    with pytest.raises(ModelError, match=reason) as caught:
        parse_spm(data, "tokenizer.model")
    assert str(caught.value).startswith("tokenizer.model: ")
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused_or_has_fewer_pieces():
    whole = len(parse_spm(GOOD, "m").texts)
    for n in range(0, len(GOOD), 7):
        with contextlib.suppress(ModelError):
            assert len(parse_spm(GOOD[:n], "m").texts) <= whole


def test_a_tiktoken_file_is_recognised(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
    with pytest.raises(ModelError, match="tiktoken"):
        read_spm(tmp_path / "tokenizer.model")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_a_refusal(data):
    with contextlib.suppress(ModelError):
        parse_spm(data, "m")


def test_flipped_bytes_cost_no_more_memory_than_the_file_has():
    r = random.Random(3)
    tracemalloc.start()
    for _ in range(100):
        data = bytearray(GOOD)
        for _ in range(r.randrange(1, 6)):
            data[r.randrange(len(data))] = r.randrange(256)
        with contextlib.suppress(ModelError):
            parse_spm(bytes(data), "m")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * len(GOOD) + (1 << 20)
