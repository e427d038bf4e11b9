"""Parsing of the Snips requests."""

from __future__ import annotations

from edgeagent.train.corpus_snips import parse_file, parse_query


def test_pieces_become_an_utterance_with_slots():
    pieces = [
        {"text": "play "},
        {"text": "Yo Ho", "entity": "track"},
        {"text": " from "},
        {"text": "Bill", "entity": "artist"},
    ]
    sample = parse_query("PlayMusic", pieces)
    assert sample is not None
    assert sample.utterance == "play Yo Ho from Bill"
    assert sample.slots == {"track": "Yo Ho", "artist": "Bill"}


def test_a_slot_that_occurs_twice_drops_the_query():
    pieces = [{"text": "a", "entity": "x"}, {"text": " b", "entity": "x"}]
    assert parse_query("X", pieces) is None


def test_values_are_verbatim_parts_of_the_utterance():
    pieces = [{"text": "see "}, {"text": " the  moon ", "entity": "movie_name"}]
    sample = parse_query("X", pieces)
    assert sample is not None
    assert sample.slots["movie_name"] in sample.utterance


def test_a_file_yields_every_query_of_every_intent():
    content = {"A": [{"data": [{"text": "one"}]}, {"data": [{"text": "two"}]}]}
    assert [s.utterance for s in parse_file(content)] == ["one", "two"]
