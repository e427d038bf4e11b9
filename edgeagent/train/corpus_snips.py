"""Snips custom-intent requests: seven intents with annotated slots (CC0-1.0).

Source: ``commands/snips/train_<Intent>_full.json.zst``; a query is a list of text pieces, some
with an ``entity`` name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeagent.train.archive import read_text
from edgeagent.train.samples import CommandSample, drop_contradictions, tidy

FOLDER = "commands/snips"


def parse_query(intent: str, pieces: Sequence[Mapping[str, str]]) -> CommandSample | None:
    """Build a sample, or nothing if one slot occurs twice or is lost in tidying."""
    utterance = tidy("".join(piece["text"] for piece in pieces))
    slots: dict[str, str] = {}
    for piece in pieces:
        name = piece.get("entity")
        if name is None:
            continue
        value = tidy(piece["text"])
        if name in slots or value not in utterance or not value:
            return None
        slots[name] = value
    return CommandSample(utterance, intent, slots)


def parse_file(content: Mapping[str, Any]) -> Iterator[CommandSample]:
    """Yield the samples of one file's JSON."""
    for intent, queries in content.items():
        for query in queries:
            sample = parse_query(intent, query["data"])
            if sample is not None:
                yield sample


def load(data: Path) -> list[CommandSample]:
    """Return the samples of all seven files."""
    samples: list[CommandSample] = []
    for path in sorted((data / FOLDER).glob("train_*_full.json.zst")):
        samples.extend(parse_file(json.loads(read_text(path))))
    return drop_contradictions(samples)
