"""Home Assistant intents: sentence templates expanded into labelled utterances.

Source: ``commands/home_assistant_intents_en.tar.zst`` (CC BY 4.0), the folder ``sentences/en``:
one folder an intent, one YAML file a combination of slots.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from edgeagent.train.archive import read_tar
from edgeagent.train.home_words import AREAS, LISTS, NAMES, RULES
from edgeagent.train.samples import CommandSample, drop_contradictions, tidy
from edgeagent.train.templates import Grammar, Value

FILE = "commands/home_assistant_intents_en.tar.zst"

SKIPPED_INTENTS = frozenset({"HassMediaSearchAndPlay", "HassRespond", "HassGetWeather"})
"""Their utterances belong to Snips' PlayMusic and GetWeather and to CLINC's small talk."""

_DOMAIN_INTENTS = frozenset({"HassTurnOn", "HassTurnOff", "HassGetState", "HassSetPosition"})
_OFTEN = frozenset(
    {
        "HassTurnOn",
        "HassTurnOff",
        "HassLightSet",
        "HassClimateSetTemperature",
        "HassShoppingListAddItem",
    }
)
_SELDOM = frozenset({"HassIncreaseTimer", "HassDecreaseTimer"})
_FACTORS = {
    "HassTurnOn/area_domain": 3.0,
    "HassTurnOff/area_domain": 3.0,
    "HassClimateSetTemperature/area_temperature": 2.0,
    "HassShoppingListAddItem/item_only": 3.0,
    "HassListAddItem/name_item": 3.0,
    "HassStartTimer/minutes_only": 8.0,
    "HassStartTimer/hours_only": 3.0,
    "HassStartTimer/seconds_only": 3.0,
    "HassGetCurrentTime/default": 0.3,
    "HassGetCurrentDate/default": 0.3,
}
_BARE_NAME = "[<the>] {name}"
_OWN_FILES = {
    "TellStory/default": """
data:
  - sentences:
      - "(tell|read) [me] a [new] [(short|bedtime|funny|little|good)] story"
      - "(i want|i'd like) [to hear] a [(short|bedtime|funny)] story"
      - "[make up] a [(short|bedtime)] story about {story_topic:topic}"
      - "(tell|read) [me] a [(short|bedtime|funny)] story about {story_topic:topic}"
"""
}
"""Intents of our own, written in the same template language."""


def draws_for(combination: str, base: int) -> int:
    """How many sentences to draw from one file, e.g. ``HassTurnOn/area_domain``."""
    intent = combination.split("/")[0]
    weight = 3.0 if intent in _OFTEN else 0.4 if intent in _SELDOM else 1.0
    return max(1, round(base * weight * _FACTORS.get(combination, 1.0)))


def _names(block: Mapping[str, Any]) -> list[Value]:
    """The device names that a block of sentences accepts."""
    domains = block.get("name_domains", "default")
    known = [domains] if isinstance(domains, str) else list(domains)
    names = [name for domain in known for name in NAMES.get(domain, [])]
    return names or NAMES["default"]


def _lists(block: Mapping[str, Any], template: str) -> dict[str, list[Value]]:
    """The lists for one template: its block's names, and no garage before a cover class."""
    lists = dict(LISTS)
    lists["name"] = _names(block)
    if "cover_classes" in template:
        lists["area"] = [area for area in AREAS if area[0] != "garage"]
    return lists


def _rules(template: str) -> dict[str, str]:
    """The rules for one template: things are "on" a floor and "in" a room."""
    return RULES | {"in": "(on|on|in)"} if "{floor}" in template else dict(RULES)


def _draw(
    intent: str, block: Mapping[str, Any], template: str, rng: random.Random
) -> CommandSample:
    """Draw one sentence of a block."""
    grammar = Grammar(_rules(template), _lists(block, template), rng)
    utterance, slots = grammar.sample(template)
    domain = block.get("inferred_domain")
    if domain and intent in _DOMAIN_INTENTS:
        slots["domain"] = str(domain)
    return CommandSample(utterance, intent, slots)


@cache
def _blocks(text: str) -> list[Mapping[str, Any]]:
    """The usable sentence blocks of one file."""
    import yaml  # type: ignore[import-untyped, unused-ignore]  # of the optional extra

    blocks = yaml.safe_load(text)["data"]
    usable: list[Mapping[str, Any]] = []
    for block in blocks:
        sentences = [s for s in block["sentences"] if s != _BARE_NAME and "media_class" not in s]
        if sentences:
            usable.append({**block, "sentences": sentences})
    return usable


def expand(files: Mapping[str, str], rng: random.Random, base: int) -> Iterator[CommandSample]:
    """Draw sentences from every file.

    Args:
        files: combination (``HassTurnOn/area_domain``) to YAML text.
        rng: the source of chance.
        base: draws from a file of ordinary weight.
    """
    for combination, text in sorted(files.items()):
        intent = combination.split("/")[0]
        blocks = _blocks(text)
        for _ in range(draws_for(combination, base)):
            block = rng.choice(blocks)
            yield _draw(intent, block, rng.choice(block["sentences"]), rng)


def read_files(data: Path) -> dict[str, str]:
    """Return the sentence files of ``data`` by combination."""
    files = dict(_OWN_FILES)
    for name, content in read_tar(data / FILE).items():
        path = PurePosixPath(name)
        intent = path.parent.name
        is_sentences = "sentences" in path.parts and path.suffix == ".yaml" and intent != "en"
        if is_sentences and intent not in SKIPPED_INTENTS:
            files[f"{intent}/{path.stem}"] = content.decode()
    return files


def read_tests(data: Path) -> list[CommandSample]:
    """Return the hand-written test sentences; their slots name entities, so they are left out."""
    import yaml  # type: ignore[import-untyped, unused-ignore]  # of the optional extra

    samples: list[CommandSample] = []
    for name, content in sorted(read_tar(data / FILE).items()):
        path = PurePosixPath(name)
        intent = path.parent.name
        if "tests" in path.parts and intent.startswith("Hass") and intent not in SKIPPED_INTENTS:
            for block in yaml.safe_load(content).get("tests", []):
                samples.extend(CommandSample(tidy(s), intent) for s in block["sentences"])
    return drop_contradictions(samples)


def draw(files: Mapping[str, str], rng: random.Random, base: int = 60) -> list[CommandSample]:
    """Expand ``files`` into unique, consistent samples; a new draw brings new sentences."""
    return drop_contradictions(expand(files, rng, base))
