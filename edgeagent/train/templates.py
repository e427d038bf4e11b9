"""Random sentences from Home Assistant's template language.

The grammar, as far as the English sentences use it::

    [x]  optional            (a|b)  one of           (a;b)  all, in any order
    <rule>  named rule       {list} or {list:slot}   a value, which becomes a slot

``Grammar.sample`` draws one sentence and the slots it filled.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from edgeagent.train.samples import tidy

Value = tuple[str, str]
"""What is said, and what goes into the slot."""


class TemplateError(ValueError):
    """A template is malformed or names an unknown rule or list."""


@dataclass(frozen=True)
class Node:
    """A piece of a parsed template.

    Attributes:
        kind: ``text``, ``rule``, ``list``, ``sequence``, ``choice``, ``optional`` or ``permute``.
        text: the words, or the name of the rule or list.
        parts: the children.
    """

    kind: str
    text: str = ""
    parts: tuple[Node, ...] = ()


_CLOSER = {"(": ")", "[": "]"}


def _parse_until(template: str, at: int, closer: str) -> tuple[Node, int]:
    """Parse alternatives up to ``closer`` (empty: the end); return the node and the next index."""
    groups: list[list[Node]] = [[]]
    separators: set[str] = set()
    while at < len(template) and template[at] != closer:
        char = template[at]
        if char in "|;":
            separators.add(char)
            groups.append([])
            at += 1
        else:
            node, at = _parse_one(template, at)
            groups[-1].append(node)
    if closer and at >= len(template):
        raise TemplateError(f"template: expected {closer!r} in {template!r}")
    nodes = tuple(Node("sequence", parts=tuple(group)) for group in groups)
    if len(separators) > 1:
        raise TemplateError(f"template: mixed '|' and ';' in {template!r}")
    if len(nodes) == 1:
        return nodes[0], at + len(closer)
    return Node("choice" if "|" in separators else "permute", parts=nodes), at + len(closer)


def _parse_one(template: str, at: int) -> tuple[Node, int]:
    """Parse one bracket, reference or run of words."""
    char = template[at]
    if char in _CLOSER:
        node, at = _parse_until(template, at + 1, _CLOSER[char])
        return (Node("optional", parts=(node,)) if char == "[" else node), at
    if char in "<{":
        end = template.find(">" if char == "<" else "}", at)
        if end < 0:
            raise TemplateError(f"template: unclosed {char!r} in {template!r}")
        return Node("rule" if char == "<" else "list", template[at + 1 : end]), end + 1
    end = at
    while end < len(template) and template[end] not in "()[]<>{}|;":
        end += 1
    if end == at:
        raise TemplateError(f"template: unexpected {char!r} in {template!r}")
    return Node("text", template[at:end]), end


@cache
def parse(template: str) -> Node:
    """Parse a sentence template."""
    return _parse_until(template, 0, "")[0]


class Grammar:
    """Rules and lists, ready to sample from."""

    def __init__(
        self, rules: Mapping[str, str], lists: Mapping[str, Sequence[Value]], rng: random.Random
    ) -> None:
        self._rules = rules
        self._lists = lists
        self._rng = rng

    def sample(self, template: str) -> tuple[str, dict[str, str]]:
        """Draw one sentence; return it with its slots."""
        slots: dict[str, str] = {}
        words = self._draw(parse(template), slots)
        return tidy(words), slots

    def _draw(self, node: Node, slots: dict[str, str]) -> str:
        """Expand one node, filling ``slots`` on the way."""
        if node.kind == "text":
            return node.text
        if node.kind == "rule":
            return self._draw(parse(self._rule(node.text)), slots)
        if node.kind == "list":
            return self._value(node.text, slots)
        if node.kind == "choice":
            return self._draw(self._rng.choice(node.parts), slots)
        if node.kind == "optional":
            return self._draw(node.parts[0], slots) if self._rng.random() < 0.5 else ""
        parts = list(node.parts)
        if node.kind == "permute":
            self._rng.shuffle(parts)
            return " ".join(self._draw(part, slots) for part in parts)
        return "".join(self._draw(part, slots) for part in parts)

    def _rule(self, name: str) -> str:
        """The template of a named rule."""
        if name not in self._rules:
            raise TemplateError(f"template: unknown rule <{name}>")
        return self._rules[name]

    def _value(self, reference: str, slots: dict[str, str]) -> str:
        """Draw a list value and record it under its slot name."""
        name, _, slot = reference.partition(":")
        if name not in self._lists:
            raise TemplateError(f"template: unknown list {{{name}}}")
        said, meant = self._rng.choice(self._lists[name])
        slots[slot or name] = meant
        return said
