"""Flat batches."""

from __future__ import annotations

import random

import numpy as np

from edgeagent.train import tokenizer as tokenizers
from edgeagent.train.config import ASSISTANT, BOS, END, USER
from edgeagent.train.data import (
    BATCH_TOKENS,
    STORY_LENGTH,
    Row,
    command_chunks,
    command_rows,
    make_batch,
    story_stream,
)
from edgeagent.train.samples import CommandSample

SAMPLE = CommandSample("hi", "Greet")


def test_only_the_answer_of_a_command_is_scored():
    tokenizer = tokenizers.train(["hi", SAMPLE.answer()] * 5, 280)
    (row,) = command_rows(tokenizer, [SAMPLE])
    assert row.ids[:2] == [BOS, USER]
    assert row.ids[row.n_prompt - 2 : row.n_prompt] == [END, ASSISTANT]
    batch = make_batch([], [row])
    assert batch.targets.tolist() == row.ids[row.n_prompt :]
    assert batch.tokens[batch.scored[0]] == ASSISTANT
    assert tokenizer.decode(batch.targets.tolist()) == SAMPLE.answer()


def test_a_batch_has_a_fixed_size_and_disjoint_rows():
    window = np.arange(STORY_LENGTH + 1)
    batch = make_batch([window, window], [Row([0, 2, 9, 1, 3, 7, 1], 5), Row([0, 2, 1, 3, 1], 4)])
    assert batch.tokens.shape == batch.positions.shape == (BATCH_TOKENS,)
    assert batch.rows == [(0, 2, STORY_LENGTH), (2 * STORY_LENGTH, 2, 6)]
    assert len(batch.scored) == 2 * STORY_LENGTH + 2 + 1
    assert batch.positions[2 * STORY_LENGTH + 6] == 0


def test_each_scored_position_predicts_the_next_token():
    window = np.arange(100, 101 + STORY_LENGTH)
    batch = make_batch([window], [])
    assert (batch.tokens[batch.scored] + 1 == batch.targets).all()


def test_story_windows_overlap_by_one_token_and_frame_each_story():
    stream = story_stream([[5] * 700], random.Random(0))
    first, second = next(stream), next(stream)
    assert first[0] == BOS
    assert first[-1] == second[0]
    assert END in second


def test_chunks_hold_every_row_within_the_budget():
    rng = random.Random(0)
    rows = [Row([0] * rng.randint(5, 60), 4) for _ in range(500)]
    chunks = list(command_chunks(rows, 512, rng))
    assert sum(map(len, chunks)) == 500
    assert all(len(c) * (max(len(r.ids) for r in c) - 1) <= 512 for c in chunks)
