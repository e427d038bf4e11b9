"""Stories: TinyStories and the simplest children's books.

Sources: ``stories/tinystories_train_merged.txt.zst`` and ``..._heldout.txt.zst`` (CDLA-Sharing
1.0, stories separated by ``<|endoftext|>``) and a few books of ``stories/gutenberg`` (public
domain in the US; header and licence are cut off).
"""

from __future__ import annotations

import re
from pathlib import Path

from edgeagent.train.archive import read_text
from edgeagent.train.samples import tidy

TRAIN_FILE = "stories/tinystories_train_merged.txt.zst"
HELDOUT_FILE = "stories/tinystories_heldout.txt.zst"
BOOKS = (
    "mcguffey_s_second_eclectic_reader",
    "old_mother_west_wind",
    "the_adventures_of_buster_bear",
    "the_velveteen_rabbit",
)
EXCERPT_CHARS = 1200

_START = re.compile(r"\*\*\* ?START OF.*?\*\*\*", re.DOTALL)
_END = re.compile(r"\*\*\* ?END OF")
_MIN_STORY_CHARS = 80


def split_stories(text: str) -> list[str]:
    """Split at the separator; keep line breaks, drop fragments and broken characters."""
    stories = []
    for raw in text.split("<|endoftext|>"):
        lines = [tidy(line) for line in raw.strip().splitlines()]
        story = "\n".join(line for line in lines if line)
        if len(story) >= _MIN_STORY_CHARS and story.isascii():
            stories.append(story)
    return stories


def strip_licence(text: str) -> str:
    """Return the part of a Project Gutenberg text between its START and END marks."""
    start = _START.search(text)
    body = text[start.end() :] if start else text
    end = _END.search(body)
    return body[: end.start()] if end else body


def excerpts(text: str, size: int = EXCERPT_CHARS) -> list[str]:
    """Cut a book into runs of whole paragraphs of about ``size`` characters."""
    pieces: list[str] = []
    current: list[str] = []
    for raw in re.split(r"\n\s*\n", text.replace("_", "").replace("--", " - ")):
        paragraph = tidy(raw)
        if not paragraph.isascii() or len(paragraph) < 40 or paragraph.isupper():
            continue
        current.append(paragraph)
        if sum(map(len, current)) >= size:
            pieces.append("\n".join(current))
            current = []
    return pieces


def load(data: Path) -> list[str]:
    """Return the training stories and book excerpts."""
    texts = split_stories(read_text(data / TRAIN_FILE))
    for book in BOOKS:
        path = data / "stories" / "gutenberg" / f"{book}.txt.zst"
        texts.extend(excerpts(strip_licence(read_text(path).replace("\r", ""))))
    return texts


def load_heldout(data: Path) -> list[str]:
    """Return the held-out stories."""
    return split_stories(read_text(data / HELDOUT_FILE))
