"""Mapping of CLINC150."""

from __future__ import annotations

import random

import pytest

from edgeagent.train.corpus_clinc import KEPT, LEFT_OUT, map_pairs, map_sample, thin_unknown


@pytest.mark.parametrize(
    ("utterance", "source", "intent"),
    [
        ("flip a coin", "flip_coin", "FlipCoin"),
        ("what time is it", "time", "HassGetCurrentTime"),
        ("what is my balance", "balance", "unknown"),
        ("who won the war", "oos", "unknown"),
    ],
)
def test_intents_are_mapped(utterance, source, intent):
    sample = map_sample(utterance, source)
    assert sample is not None
    assert (sample.intent, sample.slots) == (intent, {})


@pytest.mark.parametrize(
    ("utterance", "source"), [("set a timer", "timer"), ("what time is it in rome", "time")]
)
def test_requests_with_values_are_left_out(utterance, source):
    assert map_sample(utterance, source) is None


def test_no_intent_is_both_kept_and_left_out():
    assert not set(KEPT) & LEFT_OUT


def test_thinning_keeps_all_known_samples():
    samples = list(map_pairs([("hi", "greeting"), *((f"x {i}", "oos") for i in range(50))]))
    kept = thin_unknown(samples, 10, random.Random(0))
    assert len(kept) == 11
    assert kept[0].intent == "Greet"
