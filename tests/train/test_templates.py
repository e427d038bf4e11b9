"""The template language of Home Assistant's sentences."""

from __future__ import annotations

import random

import pytest

from edgeagent.train.templates import Grammar, TemplateError

LISTS = {"area": [("kitchen", "kitchen")], "half": [("half", "30")]}
RULES = {"turn": "(turn|switch)", "the": "[the|my]", "deep": "<turn> it"}


def draw_all(template: str, n: int = 300) -> set[str]:
    grammar = Grammar(RULES, LISTS, random.Random(0))
    return {grammar.sample(template)[0] for _ in range(n)}


def test_plain_words_are_returned():
    assert draw_all("hello there") == {"hello there"}


def test_an_optional_part_comes_and_goes():
    assert draw_all("light[s] on") == {"light on", "lights on"}


def test_a_choice_takes_one():
    assert draw_all("(a|b c)") == {"a", "b c"}


def test_an_optional_choice_may_be_nothing():
    assert draw_all("[the|my] x") == {"the x", "my x", "x"}


def test_a_permutation_takes_all_in_any_order():
    assert draw_all("(a;b)") == {"a b", "b a"}


def test_a_rule_may_use_rules():
    assert draw_all("<deep>") == {"turn it", "switch it"}


def test_a_list_fills_its_own_slot_or_the_named_one():
    grammar = Grammar(RULES, LISTS, random.Random(0))
    assert grammar.sample("in {area}") == ("in kitchen", {"area": "kitchen"})
    assert grammar.sample("{half:minutes} an hour") == ("half an hour", {"minutes": "30"})


def test_a_skipped_option_fills_no_slot():
    grammar = Grammar(RULES, LISTS, random.Random(0))
    for _ in range(50):
        text, slots = grammar.sample("go [in {area}]")
        assert ("area" in slots) == (text != "go")


@pytest.mark.parametrize("template", ["(a", "[a", "a)", "{area", "<turn", "(a|b;c)"])
def test_a_malformed_template_is_an_error(template):
    with pytest.raises(TemplateError):
        draw_all(template)


@pytest.mark.parametrize(("template", "name"), [("<nope>", "nope"), ("{nope}", "nope")])
def test_an_unknown_reference_is_named(template, name):
    with pytest.raises(TemplateError, match=name):
        draw_all(template)
