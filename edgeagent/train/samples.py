"""The command sample: an utterance and the compact JSON the model must answer.

The answer is canonical: keys in a fixed order, slots sorted by name, no spaces, every slot value
a string. Values are copied from the utterance letter by letter, save for the few that name a
category (``domain``, ``device_class``) or normalise a phrase ("half an hour" gives ``"30"``).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

UNKNOWN_INTENT = "unknown"
DEV_SHARE_PERCENT = 4

_POLITE = ("please {}", "{} please", "can you {}", "could you {}", "{} for me", "hey, {}")
_QUESTION = re.compile(
    r"^(what|who|when|where|which|how|is|are|do|does|can|could|will|would|whats|tell me what)\b"
)


@dataclass(frozen=True)
class CommandSample:
    """One utterance with its intent and slots."""

    utterance: str
    intent: str
    slots: dict[str, str] = field(default_factory=dict)

    def answer(self) -> str:
        """The canonical JSON answer."""
        return canonical_json(self.intent, self.slots)


def canonical_json(intent: str, slots: dict[str, str]) -> str:
    """Return the one spelling of an answer."""
    body = {"intent": intent, "slots": dict(sorted(slots.items()))}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def tidy(text: str) -> str:
    """Collapse white space and straighten quotation marks."""
    text = text.replace("\u2019", "'").replace("\u2018", "'")
    text = text.replace("\u201c", '"').replace("\u201d", '"')
    return " ".join(text.split())


def is_dev(key: str) -> bool:
    """Whether a text belongs to the held-out share; depends on its lower-cased words only."""
    digest = hashlib.sha256(" ".join(key.lower().split()).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < DEV_SHARE_PERCENT


def split(samples: Iterable[CommandSample]) -> tuple[list[CommandSample], list[CommandSample]]:
    """Return (train, dev); the same utterance always falls on the same side."""
    train: list[CommandSample] = []
    dev: list[CommandSample] = []
    for sample in samples:
        (dev if is_dev(sample.utterance) else train).append(sample)
    return train, dev


def drop_contradictions(samples: Iterable[CommandSample]) -> list[CommandSample]:
    """Keep each utterance once, and none that a later sample labels differently."""
    first: dict[str, CommandSample] = {}
    bad: set[str] = set()
    for sample in samples:
        key = sample.utterance.lower()
        kept = first.setdefault(key, sample)
        if kept.answer().lower() != sample.answer().lower():
            bad.add(key)
    return [sample for key, sample in first.items() if key not in bad]


def _recase(sample: CommandSample, utterance: str) -> CommandSample:
    """Give ``sample`` a text that differs in case only, and its values the same case."""
    slots = {}
    for name, value in sample.slots.items():
        at = sample.utterance.find(value)
        slots[name] = utterance[at : at + len(value)] if at >= 0 else value
    return CommandSample(utterance, sample.intent, slots)


def _polite(sample: CommandSample, rng: random.Random) -> CommandSample:
    """Wrap an order in a polite phrase; questions stay as they are."""
    if _QUESTION.match(sample.utterance.lower()) or "please" in sample.utterance.lower():
        return sample
    wrapped = rng.choice(_POLITE).format(sample.utterance)
    return CommandSample(wrapped, sample.intent, sample.slots)


def augment(sample: CommandSample, rng: random.Random, polite_share: float = 0.1) -> CommandSample:
    """Vary politeness, case and end punctuation the way people type and recognisers write."""
    if rng.random() < polite_share:
        sample = _polite(sample, rng)
    text = sample.utterance.rstrip(" .?!")
    sample = CommandSample(text, sample.intent, sample.slots)
    if len(text.lower()) == len(text) and rng.random() < 0.5:
        sample = _recase(sample, text.lower())
    text = sample.utterance
    if rng.random() < 0.4 and text:
        sample = _recase(sample, text[0].upper() + text[1:])
    if rng.random() < 0.4:
        mark = "?" if _QUESTION.match(text.lower()) else rng.choice("..!")
        sample = CommandSample(sample.utterance + mark, sample.intent, sample.slots)
    return sample
