"""From raw corpora to flat batches.

``--data`` layout::

    DIR/stories/tinystories_train_merged.txt.zst, tinystories_heldout.txt.zst, gutenberg/*.txt.zst
    DIR/commands/snips/train_*_full.json.zst, nlu_home_train.tar.zst,
                 home_assistant_intents_en.tar.zst, clinc150_train_val.json.zst

A batch always has ``BATCH_TOKENS`` tokens: story rows of ``STORY_LENGTH`` first, then command rows
of one length, then padding that belongs to no row. A story row is a window of one endless stream
of stories; a command row is exactly one sample, so commands never see each other.
"""

from __future__ import annotations

import random
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeagent.train import corpus_clinc, corpus_home, corpus_nlu, corpus_snips, corpus_stories
from edgeagent.train.config import ASSISTANT, BOS, END, USER
from edgeagent.train.samples import CommandSample, augment, drop_contradictions, split
from edgeagent.train.tokenizer import encode_all

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_TOKENS = 4096
STORY_LENGTH = 512
MAX_COMMAND_TOKENS = 128
UNKNOWN_PER_EPOCH = 3000
CLINC_DEV_UNKNOWN = 300
SNIPS_PER_EPOCH = 9000
_POOL = 4096

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """Everything that training and evaluation read.

    Attributes:
        stories: training stories.
        heldout_stories: stories for evaluation.
        home_files: sentence templates, expanded anew for each epoch.
        train: the fixed command sets by source.
        dev: held-out commands by source, the expanded templates among them.
        home_tests: hand-written sentences of the template project, with intents only.
    """

    stories: list[str]
    heldout_stories: list[str]
    home_files: dict[str, str]
    train: dict[str, list[CommandSample]]
    dev: dict[str, list[CommandSample]]
    home_tests: list[CommandSample]

    def taken(self) -> set[str]:
        """Lower-cased utterances that an expanded template must not repeat."""
        parts = (*self.train.values(), *self.dev.values())
        return {sample.utterance.lower() for part in parts for sample in part}


class Batch(NamedTuple):
    """A flat batch; ``rows`` are (start, count, length) groups.

    ``tokens`` and ``positions`` are ``(BATCH_TOKENS,)``; ``scored`` lists the flat indices whose
    prediction counts and ``targets`` the token each of them must predict.
    """

    tokens: Ints
    positions: Ints
    rows: list[tuple[int, int, int]]
    scored: Ints
    targets: Ints


class Row(NamedTuple):
    """One tokenised command: all ids, and how many of them are the prompt."""

    ids: list[int]
    n_prompt: int


def load_corpus(data: Path, seed: int) -> Corpus:
    """Read every corpus under ``data`` and split off the dev sets."""
    rng = random.Random(seed)
    home_files = corpus_home.read_files(data)
    clinc_train, clinc_val = corpus_clinc.load(data)
    parts = {
        "nlu": split(corpus_nlu.load(data)),
        "snips": split(corpus_snips.load(data)),
        "clinc": (clinc_train, corpus_clinc.thin_unknown(clinc_val, CLINC_DEV_UNKNOWN, rng)),
    }
    dev = {name: part[1] for name, part in parts.items()}
    dev["home"] = split(corpus_home.draw(home_files, rng))[1]
    dev_texts = {sample.utterance.lower() for part in dev.values() for sample in part}
    ordered = drop_contradictions(sample for train, _ in parts.values() for sample in train)
    kept = {id(sample) for sample in ordered if sample.utterance.lower() not in dev_texts}
    train = {name: [s for s in part[0] if id(s) in kept] for name, part in parts.items()}
    stories = corpus_stories.load(data)
    heldout = corpus_stories.load_heldout(data)
    return Corpus(stories, heldout, home_files, train, dev, corpus_home.read_tests(data))


def epoch_samples(
    corpus: Corpus, rng: random.Random, taken: Container[str] = ()
) -> list[CommandSample]:
    """One epoch of commands: a balanced draw, freshly augmented, in random order.

    Args:
        corpus: where to draw from.
        rng: the source of chance.
        taken: lower-cased utterances that expanded templates must not repeat.
    """
    home = split(corpus_home.draw(corpus.home_files, rng))[0]
    snips = corpus.train["snips"]
    drawn = [
        *(sample for sample in home if sample.utterance.lower() not in taken),
        *corpus.train["nlu"],
        *rng.sample(snips, min(SNIPS_PER_EPOCH, len(snips))),
        *corpus_clinc.thin_unknown(corpus.train["clinc"], UNKNOWN_PER_EPOCH, rng),
    ]
    rng.shuffle(drawn)
    return [augment(sample, rng) for sample in drawn]


def tokenizer_texts(corpus: Corpus, seed: int) -> Iterator[str]:
    """Texts to learn the tokenizer from: commands, slot values and all stories.

    Values come thrice more, so that a common word is one piece after a quotation mark too.
    """
    samples = epoch_samples(corpus, random.Random(seed))
    for sample in samples:
        yield sample.utterance
        yield sample.answer()
        yield from [value for value in sample.slots.values() for _ in range(3)]
    yield from corpus.stories


def command_rows(tokenizer: Tokenizer, samples: Sequence[CommandSample]) -> list[Row]:
    """Tokenise commands; drop the few that are too long."""
    prompts = encode_all(tokenizer, [s.utterance for s in samples])
    answers = encode_all(tokenizer, [s.answer() for s in samples])
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        head = [BOS, USER, *prompt, END, ASSISTANT]
        ids = [*head, *answer, END]
        if len(ids) <= MAX_COMMAND_TOKENS + 1:
            rows.append(Row(ids, len(head)))
    return rows


def story_stream(stories: Sequence[Sequence[int]], rng: random.Random) -> Iterator[Ints]:
    """Yield windows of ``STORY_LENGTH + 1`` tokens of endlessly reshuffled stories."""
    buffer: list[int] = []
    while True:
        order = list(range(len(stories)))
        rng.shuffle(order)
        for index in order:
            buffer += [BOS, *stories[index], END]
            while len(buffer) > STORY_LENGTH:
                yield np.array(buffer[: STORY_LENGTH + 1], dtype=np.int64)
                del buffer[:STORY_LENGTH]


def command_chunks(rows: Sequence[Row], budget: int, rng: random.Random) -> Iterator[list[Row]]:
    """Group rows of similar length so that a padded group holds at most ``budget`` tokens."""
    for start in range(0, len(rows), _POOL):
        pool = sorted(rows[start : start + _POOL], key=lambda row: len(row.ids))
        chunks: list[list[Row]] = [[]]
        for row in pool:
            if (len(chunks[-1]) + 1) * (len(row.ids) - 1) > budget:
                chunks.append([])
            chunks[-1].append(row)
        rng.shuffle(chunks)
        yield from (chunk for chunk in chunks if chunk)


def make_batch(windows: Sequence[Ints], commands: Sequence[Row]) -> Batch:
    """Lay story windows and command rows out flat."""
    tokens = np.full(BATCH_TOKENS, END, dtype=np.int64)
    positions = np.zeros(BATCH_TOKENS, dtype=np.int64)
    n_story = len(windows) * STORY_LENGTH
    rows = [(0, len(windows), STORY_LENGTH)] if windows else []
    scored = [np.arange(n_story)]
    targets = [window[1:] for window in windows]
    for i, window in enumerate(windows):
        tokens[i * STORY_LENGTH : (i + 1) * STORY_LENGTH] = window[:-1]
    positions[:n_story] = np.tile(np.arange(STORY_LENGTH), len(windows))
    length = max((len(row.ids) - 1 for row in commands), default=0)
    for i, row in enumerate(commands):
        start = n_story + i * length
        ids = np.array(row.ids, dtype=np.int64)
        tokens[start : start + len(ids) - 1] = ids[:-1]
        positions[start : start + length] = np.arange(length)
        scored.append(np.arange(start + row.n_prompt - 1, start + len(ids) - 1))
        targets.append(ids[row.n_prompt :])
    if commands:
        rows.append((n_story, len(commands), length))
    return Batch(tokens, positions, rows, np.concatenate(scored), np.concatenate(targets))


class BatchSource:
    """Endless batches with an adjustable share of stories."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, seed: int) -> None:
        self._corpus = corpus
        self._taken = corpus.taken()
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        stories = encode_all(tokenizer, corpus.stories)
        self.story_tokens = sum(map(len, stories))
        self._stories = story_stream(stories, self._rng)
        self.command_epochs = 0
        self._rows: list[Row] = []

    def batches(self, story_rows: int) -> Iterator[Batch]:
        """Yield batches with ``story_rows`` story windows; the rest is commands."""
        budget = BATCH_TOKENS - story_rows * STORY_LENGTH
        while True:
            samples = epoch_samples(self._corpus, self._rng, self._taken)
            self.command_epochs += 1
            rows = command_rows(self._tokenizer, samples)
            for chunk in command_chunks(rows, budget, self._rng):
                yield make_batch([next(self._stories) for _ in range(story_rows)], chunk)
