"""Measure an exported directory: ``python -m edgeagent.train.evaluate --data D --model M``.

Story loss is the mean over held-out stories, each from its own ``<|bos|>`` through ``<|end|>``.
Commands are answered greedily; the dev splits are described in ``data``. The result lands in
``quality.json`` beside the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch.nn import functional

from edgeagent.train import data as batches
from edgeagent.train import tokenizer as tokenizers
from edgeagent.train.config import ASSISTANT, BOS, END, USER, ModelConfig
from edgeagent.train.generate import generate
from edgeagent.train.model import BitNet, Rows
from edgeagent.train.samples import CommandSample
from edgeagent.train.scores import score

if TYPE_CHECKING:
    from tokenizers import Tokenizer

COMMON_COMMANDS = (
    "turn on the kitchen lights",
    "Turn on the kitchen lights.",
    "turn off the fan in the living room",
    "set the bedroom temperature to 21 degrees",
    "dim the lights in the bedroom",
    "set the living room lights to 40 percent",
    "make the office lights blue",
    "what's the weather in Paris tomorrow",
    "will it rain today?",
    "play some jazz",
    "add milk to my shopping list",
    "set a timer for ten minutes",
    "set an alarm for seven am",
    "lock the front door",
    "open the garage door",
    "what time is it",
    "turn the volume up",
    "next song",
    "flip a coin",
    "tell me a joke",
    "what is the meaning of life",
    "transfer 100 dollars to my savings account",
)
STORY_STARTS = (
    "Once upon a time, there was a little girl named Lily.",
    "One day, a small dog named Max",
    "Tom and his mom went to the park.",
)
_ANSWER_LIMIT = 96
_INTENT_RATES = ("n", "valid_json", "intent_accuracy")
_STORY_LIMIT = 200


def load_model(folder: Path) -> BitNet:
    """Load an exported directory."""
    model = BitNet(ModelConfig())
    model.load_state_dict(load_file(str(folder / "model.safetensors")))
    return model.eval()


def story_loss(model: BitNet, stories: Sequence[Sequence[int]]) -> tuple[float, int]:
    """Return the mean loss a token, and how many tokens were scored."""
    total, n_tokens = 0.0, 0
    limit = model.config.max_positions
    with torch.no_grad():
        for story in stories:
            ids = torch.tensor([BOS, *story, END][: limit + 1])
            n = len(ids) - 1
            hidden = model(ids[:-1], torch.arange(n), [Rows(0, 1, n)])
            loss = functional.cross_entropy(model.logits(hidden), ids[1:], reduction="sum")
            total += loss.item()
            n_tokens += n
    return total / max(1, n_tokens), n_tokens


def answer_commands(model: BitNet, tokenizer: Tokenizer, utterances: Sequence[str]) -> list[str]:
    """Answer utterances greedily."""
    encoded = tokenizers.encode_all(tokenizer, utterances)
    prompts = [[BOS, USER, *ids, END, ASSISTANT] for ids in encoded]
    return [str(tokenizer.decode(ids)) for ids in generate(model, prompts, _ANSWER_LIMIT)]


def tell_stories(model: BitNet, tokenizer: Tokenizer, temperature: float) -> list[str]:
    """Continue the story starts."""
    encoded = tokenizers.encode_all(tokenizer, STORY_STARTS)
    prompts = [[BOS, *ids] for ids in encoded]
    told = generate(model, prompts, _STORY_LIMIT, temperature)
    return [a + str(tokenizer.decode(ids)) for a, ids in zip(STORY_STARTS, told, strict=True)]


def _bytes_of(stories: Sequence[str]) -> int:
    """UTF-8 length of all stories."""
    return sum(len(story.encode()) for story in stories)


def evaluate(folder: Path, corpus: batches.Corpus, limit: int) -> dict[str, Any]:
    """Measure one exported directory on at most ``limit`` examples a set."""
    model = load_model(folder)
    tokenizer = tokenizers.load(folder / "tokenizer.json")
    stories = corpus.heldout_stories[:limit]
    loss, n_tokens = story_loss(model, tokenizers.encode_all(tokenizer, stories))
    result: dict[str, Any] = {
        "story": {
            "n": len(stories),
            "n_tokens": n_tokens,
            "loss": round(loss, 4),
            "perplexity": round(math.exp(loss), 3),
            "bits_per_byte": round(loss * n_tokens / math.log(2) / _bytes_of(stories), 4),
        },
        "commands": {
            name: _score_set(model, tokenizer, dev, limit) for name, dev in corpus.dev.items()
        },
        "zero_share": zero_share(model),
    }
    tests = _score_set(model, tokenizer, corpus.home_tests, limit)
    result["commands"]["home_tests"] = {name: tests[name] for name in _INTENT_RATES}
    answers = answer_commands(model, tokenizer, COMMON_COMMANDS)
    result["samples"] = dict(zip(COMMON_COMMANDS, answers, strict=True))
    result["stories_greedy"] = tell_stories(model, tokenizer, 0.0)
    result["stories_sampled_0.7"] = tell_stories(model, tokenizer, 0.7)
    return result


def zero_share(model: BitNet) -> float:
    """The share of zero trits over all planes."""
    zeros, n = 0, 0
    for weight in model.projections():
        scale = weight.detach().abs().mean()
        zeros += int((weight.detach().abs() <= 0.5 * scale).sum())
        n += weight.numel()
    return round(zeros / n, 4)


def _score_set(
    model: BitNet, tokenizer: Tokenizer, dev: Sequence[CommandSample], limit: int
) -> Mapping[str, float]:
    """Score a fixed random subset of one dev set."""
    chosen = random.Random(0).sample(list(dev), min(limit, len(dev)))
    answers = answer_commands(model, tokenizer, [sample.utterance for sample in chosen])
    return score(zip(chosen, answers, strict=True))


def main(argv: list[str]) -> int:
    """Write ``quality.json`` beside the weights and show it."""
    parser = argparse.ArgumentParser(prog="edgeagent-evaluate")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    corpus = batches.load_corpus(arguments.data, arguments.seed)
    result = evaluate(arguments.model, corpus, arguments.limit)
    text = json.dumps(result, indent=2, ensure_ascii=False)
    (arguments.model / "quality.json").write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
