"""Scores of command answers."""

from __future__ import annotations

import pytest

from edgeagent.train.samples import CommandSample
from edgeagent.train.scores import parse_answer, score

WANTED = CommandSample("x", "A", {"s": "1", "t": "2"})


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"intent":"A"}', '{"intent":1,"slots":{}}', '{"intent":"A","slots":{"s":1}}'],
)
def test_malformed_answers_are_no_answers(text):
    assert parse_answer(text) is None


def test_a_perfect_answer_scores_one():
    rates = score([(WANTED, WANTED.answer())])
    assert rates == {
        "n": 1,
        "valid_json": 1.0,
        "intent_accuracy": 1.0,
        "exact_match": 1.0,
        "slot_f1": 1.0,
    }


def test_a_half_right_answer_counts_its_slots():
    rates = score([(WANTED, '{"intent":"A","slots":{"s":"1","t":"9"}}')])
    assert rates["exact_match"] == 0.0
    assert rates["slot_f1"] == 0.5


def test_garbage_counts_as_wrong_everywhere():
    rates = score([(WANTED, "no"), (WANTED, WANTED.answer())])
    assert rates["valid_json"] == 0.5
    assert rates["intent_accuracy"] == 0.5
