"""CLINC150: requests without slots (CC BY 3.0).

Source: ``commands/clinc150_train_val.json.zst``: splits ``train``, ``val``, ``oos_train`` and
``oos_val`` of (utterance, intent) pairs.

A home assistant's small talk keeps an intent; requests that other corpora label with slots are
left out; all the rest (banking, travel, out of scope) is ``unknown``.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from edgeagent.train.archive import read_text
from edgeagent.train.samples import UNKNOWN_INTENT, CommandSample, drop_contradictions, tidy

FILE = "commands/clinc150_train_val.json.zst"

KEPT = {
    "are_you_a_bot": "AreYouABot",
    "cancel": "HassNevermind",
    "date": "HassGetCurrentDate",
    "find_phone": "FindPhone",
    "flip_coin": "FlipCoin",
    "fun_fact": "TellFunFact",
    "goodbye": "Goodbye",
    "greeting": "Greet",
    "how_old_are_you": "GetAssistantAge",
    "meaning_of_life": "MeaningOfLife",
    "next_holiday": "GetNextHoliday",
    "next_song": "HassMediaNext",
    "no": "Deny",
    "repeat": "Repeat",
    "roll_dice": "RollDice",
    "tell_joke": "TellJoke",
    "thank_you": "ThankYou",
    "time": "HassGetCurrentTime",
    "what_can_i_ask_you": "GetCapabilities",
    "what_is_your_name": "GetAssistantName",
    "what_song": "GetCurrentSong",
    "where_are_you_from": "GetAssistantOrigin",
    "whisper_mode": "WhisperMode",
    "who_made_you": "GetAssistantMaker",
    "yes": "Affirm",
}

LEFT_OUT = frozenset(
    [
        "alarm",
        "calculator",
        "calendar",
        "calendar_update",
        "change_volume",
        "cook_time",
        "definition",
        "distance",
        "directions",
        "exchange_rate",
        "income",
        "ingredients_list",
        "make_call",
        "measurement_conversion",
        "meeting_schedule",
        "order",
        "play_music",
        "recipe",
        "reminder",
        "reminder_update",
        "restaurant_reservation",
        "restaurant_suggestion",
        "schedule_meeting",
        "shopping_list",
        "shopping_list_update",
        "smart_home",
        "spelling",
        "text",
        "timer",
        "timezone",
        "todo_list",
        "todo_list_update",
        "traffic",
        "translate",
        "uber",
        "update_playlist",
        "weather",
        "book_flight",
        "current_location",
    ]
)
"""Intents whose requests carry values, or that another corpus labels its own way."""

_ELSEWHERE = re.compile(r"\b(in|at|for|timezone|zone)\b")


def map_sample(utterance: str, source: str) -> CommandSample | None:
    """Translate one request, or drop it."""
    if source in LEFT_OUT:
        return None
    if source in ("time", "date") and _ELSEWHERE.search(utterance):
        return None
    return CommandSample(tidy(utterance), KEPT.get(source, UNKNOWN_INTENT))


def map_pairs(pairs: Iterable[Sequence[str]]) -> Iterator[CommandSample]:
    """Translate (utterance, intent) pairs."""
    for utterance, source in pairs:
        sample = map_sample(utterance, source)
        if sample is not None:
            yield sample


def thin_unknown(
    samples: Iterable[CommandSample], keep: int, rng: random.Random
) -> list[CommandSample]:
    """Keep all known samples and ``keep`` unknown ones."""
    known: list[CommandSample] = []
    unknown: list[CommandSample] = []
    for sample in samples:
        (unknown if sample.intent == UNKNOWN_INTENT else known).append(sample)
    return known + rng.sample(unknown, min(keep, len(unknown)))


def load(data: Path) -> tuple[list[CommandSample], list[CommandSample]]:
    """Return the train and the val samples, unknown ones not yet thinned."""
    content = json.loads(read_text(data / FILE))
    train = drop_contradictions(map_pairs([*content["train"], *content["oos_train"]]))
    return train, drop_contradictions(map_pairs([*content["val"], *content["oos_val"]]))
