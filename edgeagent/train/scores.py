"""Scores for command answers: valid JSON, intent, exact match, slot F1."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgeagent.train.samples import CommandSample


def parse_answer(text: str) -> tuple[str, dict[str, str]] | None:
    """Return intent and slots of a valid answer, else nothing."""
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not isinstance(answer, dict) or set(answer) != {"intent", "slots"}:
        return None
    intent, slots = answer["intent"], answer["slots"]
    if not isinstance(intent, str) or not isinstance(slots, dict):
        return None
    if not all(isinstance(value, str) for value in slots.values()):
        return None
    return intent, slots


@dataclass
class Score:
    """Running counts."""

    n: int = 0
    valid: int = 0
    intent: int = 0
    exact: int = 0
    slots_right: int = 0
    slots_said: int = 0
    slots_wanted: int = 0

    def add(self, wanted: CommandSample, answer: str) -> None:
        """Count one answer."""
        parsed = parse_answer(answer)
        said_intent, said = parsed or ("", {})
        self.n += 1
        self.valid += parsed is not None
        self.intent += said_intent == wanted.intent
        self.exact += parsed == (wanted.intent, wanted.slots)
        self.slots_right += len(said.items() & wanted.slots.items())
        self.slots_said += len(said)
        self.slots_wanted += len(wanted.slots)

    def rates(self) -> dict[str, float]:
        """The counts as shares."""
        n = max(1, self.n)
        both = max(1, self.slots_said + self.slots_wanted)
        return {
            "n": self.n,
            "valid_json": round(self.valid / n, 4),
            "intent_accuracy": round(self.intent / n, 4),
            "exact_match": round(self.exact / n, 4),
            "slot_f1": round(2 * self.slots_right / both, 4),
        }


def score(pairs: Iterable[tuple[CommandSample, str]]) -> Mapping[str, float]:
    """Score (wanted, answer) pairs."""
    total = Score()
    for wanted, answer in pairs:
        total.add(wanted, answer)
    return total.rates()
