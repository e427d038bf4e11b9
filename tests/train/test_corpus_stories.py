"""Splitting stories and books."""

from __future__ import annotations

from edgeagent.train.corpus_stories import excerpts, split_stories, strip_licence

LONG = "Once upon a time there was a cat. " * 4


def test_stories_are_split_and_fragments_dropped():
    text = f"{LONG}\n<|endoftext|>\nshort\n<|endoftext|>\n  {LONG}\n\n{LONG}"
    stories = split_stories(text)
    assert len(stories) == 2
    assert stories[1].count("\n") == 1


def test_curly_quotes_are_straightened_and_broken_text_dropped():
    assert split_stories(LONG + "\u201chi\u201d")[0].endswith('"hi"')
    assert split_stories(LONG + "\u00e2") == []


def test_the_licence_is_cut_off():
    text = "head *** START OF THE PROJECT X *** body *** END OF THE PROJECT X *** tail"
    assert strip_licence(text).strip() == "body"


def test_a_text_without_marks_is_kept():
    assert strip_licence("body") == "body"


def test_excerpts_are_whole_paragraphs_of_about_the_size():
    text = "\n\n".join([LONG] * 20) + "\n\nCHAPTER ONE"
    pieces = excerpts(text, size=300)
    assert all(300 <= len(piece) < 700 for piece in pieces)
    assert "CHAPTER" not in "".join(pieces)
