"""Generation with a key/value cache, for evaluation.

Prompts of one call have one length, so no padding and no mask is needed: ``generate`` groups
them. The arithmetic is the training forward's, uncompiled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgeagent.train.config import END
from edgeagent.train.model import BitNet, Layer, after_attention, before_attention, rms_norm

_GROUP = 64


class Cache:
    """Keys and values of every layer, ``(rows, length, kv_heads, head_dim)`` each."""

    def __init__(self, n_layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * n_layers
        self.values: list[Tensor | None] = [None] * n_layers
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new positions of one layer; return all of them."""
        old_key, old_value = self.keys[layer], self.values[layer]
        if old_key is not None and old_value is not None:
            key = torch.cat((old_key, key), dim=1)
            value = torch.cat((old_value, value), dim=1)
        self.keys[layer], self.values[layer] = key, value
        return key, value


def step(model: BitNet, tokens: Tensor, cache: Cache) -> Tensor:
    """Run ``(rows, length)`` new tokens; return the last position's logits, ``(rows, vocab)``."""
    n_rows, length = tokens.shape
    config = model.config
    positions = torch.arange(cache.length, cache.length + length).repeat(n_rows)
    table = model.rope[:, positions]
    x = model.model.embed_tokens(tokens.reshape(-1))
    for index, layer in enumerate(model.model.layers):
        assert isinstance(layer, Layer)  # noqa: S101  (nn.ModuleList loses the type)
        parts = before_attention(
            x, layer.input_layernorm.weight, layer.attention_weights(), table, config
        )
        query, key, value = (part.reshape(n_rows, length, -1, config.head_dim) for part in parts)
        key, value = cache.extend(index, key, value)
        mixed = _attend(query, key, value)
        gains, weights = layer.other_gains(), layer.other_weights()
        x = after_attention(x, mixed.reshape(n_rows * length, -1), gains, weights, config.rms_eps)
    cache.length += length
    last = x.reshape(n_rows, length, -1)[:, -1]
    return model.logits(rms_norm(last, model.model.norm.weight, config.rms_eps))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of a first run (causal) or of one new position over all."""
    repeat = query.shape[2] // key.shape[2]
    heads = [part.transpose(1, 2) for part in (query, key, value)]
    heads[1:] = [part.repeat_interleave(repeat, dim=1) for part in heads[1:]]
    causal = query.shape[1] > 1
    return functional.scaled_dot_product_attention(*heads, is_causal=causal).transpose(1, 2)


def _pick(logits: Tensor, temperature: float, source: torch.Generator) -> Tensor:
    """The best token of each row, or one drawn at ``temperature``."""
    if temperature <= 0:
        return logits.argmax(dim=-1)
    shares = torch.softmax(logits / temperature, dim=-1)
    return torch.multinomial(shares, 1, generator=source)[:, 0]


def _generate_group(
    model: BitNet, prompts: Tensor, limit: int, temperature: float, source: torch.Generator
) -> list[list[int]]:
    """Continue prompts of equal length until each has said ``<|end|>``."""
    cache = Cache(model.config.n_layers)
    tokens = _pick(step(model, prompts, cache), temperature, source)
    produced = [tokens]
    done = tokens == END
    while not bool(done.all()) and len(produced) < limit:
        tokens = _pick(step(model, tokens[:, None], cache), temperature, source)
        produced.append(tokens)
        done |= tokens == END
    rows = torch.stack(produced, dim=1).tolist()
    return [row[: row.index(END)] if END in row else row for row in rows]


def generate(
    model: BitNet,
    prompts: Sequence[Sequence[int]],
    limit: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """Continue each prompt by up to ``limit`` tokens, without the final ``<|end|>``."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    source = torch.Generator().manual_seed(seed)
    answers: list[list[int]] = [[] for _ in prompts]
    with torch.no_grad():
        for indices in by_length.values():
            for start in range(0, len(indices), _GROUP):
                group = indices[start : start + _GROUP]
                tokens = torch.tensor([list(prompts[i]) for i in group])
                for i, row in zip(
                    group, _generate_group(model, tokens, limit, temperature, source), strict=True
                ):
                    answers[i] = row
    return answers
