"""Prompts on which a comparison in float32 is well posed, chosen by the reference alone.

A model with int8 activations rounds tens of thousands of numbers a prompt.  Where one of them lies
on the edge between two codes, the last bit of a float32 sum decides, and the logits move by
hundredths: two right implementations differ there, and so does one from itself on another machine.
So the rule, one for every case: of random prompts, the first on which the reference in float64

- has no activation within EDGE of the edge between two codes, and
- decides every one of its greedy tokens by at least GAP of the largest logit.

The engine that is to be compared has no say in it.
"""

from __future__ import annotations

from typing import Any

import torch

PROMPT_TOKENS, GREEDY_TOKENS = 16, 64
#: In codes, of an activation of code u: EDGE[0] |u| + EDGE[1].  The reference's own float32 is off
#: by up to 1e-6 |u|, so that an implementation as exact as it is on the same side of every edge.
EDGE = (1e-6, 5e-6)
#: Behind the prompt edges are met again; one moves the logits by up to a thousandth of the largest.
GAP = 0.004
BATCH, BATCHES = 64, 1024
CANDIDATES = 16  # prompts whose greedy tokens are looked at together
QUANTISED = ("BitLinear", "AutoBitLinear")


def _near_edge(values: torch.Tensor) -> torch.Tensor:
    """Say of each prompt (batch, tokens, inputs) whether a code of it could go either way."""
    largest = values.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    codes = values * (127 / largest)
    away = (codes - codes.floor() - 0.5).abs()
    return (away < EDGE[0] * codes.abs() + EDGE[1]).flatten(1).any(1)


def _clear(model: Any, prompts: torch.Tensor) -> torch.Tensor:
    """Return those prompts on which no activation is near an edge."""
    near = torch.zeros(len(prompts), dtype=torch.bool)

    def look(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal near
        near |= _near_edge(inputs[0].double())

    hooks = [
        module.register_forward_pre_hook(look)
        for module in model.modules()
        if type(module).__name__ in QUANTISED
    ]
    model(prompts)
    for hook in hooks:
        hook.remove()
    return prompts[~near]


def greedy(model: Any, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Continue prompts; return the tokens, and how closely the closest of each was decided."""
    ids = prompts
    gaps = torch.full((len(prompts),), torch.inf, dtype=torch.float64)
    for _ in range(GREEDY_TOKENS):
        logits = model(ids).logits[:, -1].double()
        best = logits.topk(2)
        gap = (best.values[:, 0] - best.values[:, 1]) / logits.abs().amax(1)
        gaps = torch.minimum(gaps, gap)
        ids = torch.cat([ids, best.indices[:, :1]], 1)
    return ids[:, PROMPT_TOKENS:], gaps


def choose(model: Any, seed: int) -> torch.Tensor:
    """Return the first prompt (1, PROMPT_TOKENS) of a seed that keeps the rule.

    Args:
        model: the reference, in float64.
        seed: of the prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    vocab = model.config.vocab_size
    waiting: list[torch.Tensor] = []
    for _ in range(BATCHES):
        prompts = torch.randint(2, vocab, (BATCH, PROMPT_TOKENS), generator=generator)
        waiting += _clear(model, prompts).split(1)
        while len(waiting) >= CANDIDATES:
            group, waiting = torch.cat(waiting[:CANDIDATES]), waiting[CANDIDATES:]
            _, gaps = greedy(model, group)
            if (gaps >= GAP).any():
                return group[gaps >= GAP][:1]
    raise SystemExit(f"none of {BATCH * BATCHES} prompts keeps the rule of {__name__}")


def answers(float32: Any, float64: Any, ids: torch.Tensor) -> dict[str, Any]:
    """Run a prompt: in float32 at once and position by position, in float64, and 64 tokens.

    Returns:
        logits: (3, positions, vocabulary) in this order.
        greedy: the tokens, the same in float32 and float64.
    """
    alone = [float32(ids[:, : n + 1]).logits[0, -1:] for n in range(ids.shape[1])]
    runs = [float32(ids).logits[0], torch.cat(alone), float64(ids).logits[0].float()]
    tokens, _ = greedy(float32, ids)
    same, _ = greedy(float64, ids)
    if not torch.equal(tokens, same):
        raise SystemExit("float32 and float64 give other tokens: GAP is too small for this model")
    return {"ids": ids[0], "logits": torch.stack(runs), "greedy": tokens[0]}
