"""Canonical answers, splits and augmentation."""

from __future__ import annotations

import json
import random

from edgeagent.train.samples import (
    CommandSample,
    augment,
    canonical_json,
    drop_contradictions,
    is_dev,
    split,
    tidy,
)

LIGHTS = CommandSample(
    "turn on the kitchen lights", "HassTurnOn", {"domain": "light", "area": "kitchen"}
)


def test_answer_is_compact_with_sorted_slots():
    assert LIGHTS.answer() == (
        '{"intent":"HassTurnOn","slots":{"area":"kitchen","domain":"light"}}'
    )


def test_answer_keeps_letters_outside_ascii():
    assert canonical_json("PlayMusic", {"artist": "Björk"}).endswith('"Björk"}}')


def test_empty_slots_are_an_empty_object():
    assert canonical_json("unknown", {}) == '{"intent":"unknown","slots":{}}'


def test_tidy_straightens_quotes_and_spaces():
    assert tidy("  what\u2019s \n up ") == "what's up"


def test_the_split_ignores_case_and_spaces():
    assert is_dev("Turn  on the LIGHT") == is_dev("turn on the light")


def test_the_split_is_deterministic_and_holds_out_a_small_share():
    samples = [CommandSample(f"say {i}", "Say") for i in range(2000)]
    train, dev = split(samples)
    assert split(samples) == (train, dev)
    assert 40 < len(dev) < 130
    assert not {s.utterance for s in train} & {s.utterance for s in dev}


def test_contradicting_labels_are_dropped_and_repeats_are_kept_once():
    samples = [
        CommandSample("go", "A"),
        CommandSample("Go", "B"),
        CommandSample("stop", "A"),
        CommandSample("stop", "A"),
    ]
    assert [s.utterance for s in drop_contradictions(samples)] == ["stop"]


def test_augmented_values_are_still_copied_from_the_utterance():
    rng = random.Random(1)
    sample = CommandSample("play Yo Ho by Nas", "PlayMusic", {"track": "Yo Ho", "artist": "Nas"})
    for _ in range(200):
        changed = augment(sample, rng)
        assert changed.intent == sample.intent
        assert set(changed.slots) == set(sample.slots)
        for value in changed.slots.values():
            assert value in changed.utterance


def test_a_category_that_is_not_in_the_text_survives_augmentation():
    rng = random.Random(2)
    changed = [augment(LIGHTS, rng) for _ in range(50)]
    assert {sample.slots["domain"] for sample in changed} == {"light"}


def test_questions_end_in_question_marks_and_orders_do_not():
    rng = random.Random(3)
    question = CommandSample("what time is it", "HassGetCurrentTime")
    ends = {augment(question, rng).utterance[-1] for _ in range(100)}
    assert ends == {"t", "?"}
    ends = {augment(LIGHTS, rng, polite_share=0.0).utterance[-1] for _ in range(100)}
    assert ends == {"s", ".", "!"}


def test_every_answer_is_valid_json():
    sample = CommandSample('play "x"', "PlayMusic", {"track": '"x"'})
    assert json.loads(sample.answer())["slots"] == {"track": '"x"'}
