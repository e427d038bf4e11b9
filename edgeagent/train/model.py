"""A BitNet b1.58 decoder with float masters, quantised in the forward pass.

Laws:

* Weights: ``s = max(mean|w|, 1e-5)``, ``t = clamp(round(w / s), -1, 1)``, effective ``t * s``.
* Activations, per token: ``a = 127 / max(max|x|, 1e-5)``, ``q = clamp(round(x * a), -128, 127)``.
* Rounding is half to even; gradients pass both quantisers unchanged (straight-through).
* Activations are quantised once per shared input: q, k, v share one, gate and up share one.

A batch is *flat*: all tokens of all rows lie behind each other, ``(tokens, hidden)``, so each
projection is one matrix product. Only attention looks at rows; ``Rows`` says where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeagent.train.config import ModelConfig

SCALE_FLOOR = 1e-5


class Rows(NamedTuple):
    """``n_rows`` rows of ``length`` tokens, the first at flat index ``start``."""

    start: int
    n_rows: int
    length: int


def ternarise(weight: Tensor) -> Tensor:
    """Return ``t * s`` with the gradient of the identity."""
    scale = weight.detach().abs().mean().clamp_min(SCALE_FLOOR)
    snapped = torch.clamp(torch.round(weight.detach() / scale), -1, 1) * scale
    return weight + (snapped - weight).detach()


def quantise_rows(x: Tensor) -> Tensor:
    """Return ``q / a`` per row of ``x`` with the gradient of the identity."""
    factor = 127.0 / x.detach().abs().amax(dim=-1, keepdim=True).clamp_min(SCALE_FLOOR)
    snapped = torch.clamp(torch.round(x.detach() * factor), -128, 127) / factor
    return x + (snapped - x).detach()


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Scale each row to unit mean square, then by ``gain``."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * gain


def rope_table(config: ModelConfig) -> Tensor:
    """Return cosines and sines, ``(2, max_positions, head_dim)`` float32."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(
        torch.arange(config.max_positions, dtype=torch.float32), config.rope_theta**-half
    )
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotate-half RoPE to ``x``, ``(tokens, heads, head_dim)``."""
    low, high = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-high, low), dim=-1) * sin[:, None]


def before_attention(
    x: Tensor, gain: Tensor, weights: Sequence[Tensor], table: Tensor, config: ModelConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rotated queries, rotated keys and values, each ``(tokens, heads, head_dim)``."""
    hidden = quantise_rows(rms_norm(x, gain, config.rms_eps))
    fused = functional.linear(hidden, torch.cat([ternarise(w) for w in weights]))
    query, key, value = fused.split((config.hidden_size, config.kv_size, config.kv_size), dim=-1)
    cos, sin = table.unbind(0)
    query = rotate(query.reshape(len(x), config.n_heads, config.head_dim), cos, sin)
    key = rotate(key.reshape(len(x), config.n_kv_heads, config.head_dim), cos, sin)
    return query, key, value.reshape(len(x), config.n_kv_heads, config.head_dim)


def after_attention(
    x: Tensor, mixed: Tensor, gains: Sequence[Tensor], weights: Sequence[Tensor], eps: float
) -> Tensor:
    """Run the output projection and the feed-forward half of a layer, with both residuals.

    Args:
        x: the layer's input, ``(tokens, hidden)``.
        mixed: the attention's output, same shape.
        gains: attn_sub_norm, post_attention_layernorm, ffn_sub_norm.
        weights: o, gate, up and down projections.
        eps: the norms' epsilon.
    """
    sub, post, ffn_sub = gains
    out, gate, up, down = weights
    x = x + functional.linear(quantise_rows(rms_norm(mixed, sub, eps)), ternarise(out))
    hidden = quantise_rows(rms_norm(x, post, eps))
    fused = functional.linear(hidden, torch.cat((ternarise(gate), ternarise(up))))
    gated, raised = fused.chunk(2, dim=-1)
    product = functional.relu(gated).square() * raised
    hidden = quantise_rows(rms_norm(product, ffn_sub, eps))
    return x + functional.linear(hidden, ternarise(down))


def attend(query: Tensor, key: Tensor, value: Tensor, groups: Sequence[Rows]) -> Tensor:
    """Mix values causally within each row; tokens outside all rows get zeros."""
    n_tokens, n_heads, head_dim = query.shape
    repeat = n_heads // key.shape[1]
    mixed = []
    end = 0
    for group in groups:
        end = group.start + group.n_rows * group.length
        heads = [
            part[group.start : end].unflatten(0, (group.n_rows, group.length)).transpose(1, 2)
            for part in (query, key, value)
        ]
        heads[1:] = [part.repeat_interleave(repeat, dim=1) for part in heads[1:]]
        rows = functional.scaled_dot_product_attention(*heads, is_causal=True)
        mixed.append(rows.transpose(1, 2).reshape(end - group.start, -1))
    if end < n_tokens:
        mixed.append(query.new_zeros(n_tokens - end, n_heads * head_dim))
    return torch.cat(mixed) if len(mixed) > 1 else mixed[0]


class Layer(nn.Module):
    """One decoder layer; holds masters and gains under their Hugging Face names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, ffn = config.hidden_size, config.ffn_size
        self.input_layernorm = nn.RMSNorm(hidden)
        self.post_attention_layernorm = nn.RMSNorm(hidden)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(hidden, hidden, bias=False),
                "k_proj": nn.Linear(hidden, config.kv_size, bias=False),
                "v_proj": nn.Linear(hidden, config.kv_size, bias=False),
                "o_proj": nn.Linear(hidden, hidden, bias=False),
                "attn_sub_norm": nn.RMSNorm(hidden),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(hidden, ffn, bias=False),
                "up_proj": nn.Linear(hidden, ffn, bias=False),
                "down_proj": nn.Linear(ffn, hidden, bias=False),
                "ffn_sub_norm": nn.RMSNorm(ffn),
            }
        )

    def attention_weights(self) -> tuple[Tensor, ...]:
        """The masters of q, k and v."""
        return tuple(self.self_attn[f"{name}_proj"].weight for name in "qkv")

    def other_weights(self) -> tuple[Tensor, ...]:
        """The masters of o, gate, up and down."""
        feed = (self.mlp[f"{name}_proj"].weight for name in ("gate", "up", "down"))
        return (self.self_attn["o_proj"].weight, *feed)

    def other_gains(self) -> tuple[Tensor, ...]:
        """The gains of attn_sub_norm, post_attention_layernorm and ffn_sub_norm."""
        return (
            self.self_attn["attn_sub_norm"].weight,
            self.post_attention_layernorm.weight,
            self.mlp["ffn_sub_norm"].weight,
        )


class Body(nn.Module):
    """Embedding, layers and final norm: the ``model.`` prefix of the tensor names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.hidden_size)


class BitNet(nn.Module):
    """The whole model; its ``state_dict`` has Hugging Face tensor names."""

    def __init__(self, config: ModelConfig, compiled: bool = False) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.register_buffer("rope", rope_table(config), persistent=False)
        self._before = torch.compile(before_attention) if compiled else before_attention
        self._after = torch.compile(after_attention) if compiled else after_attention
        for parameter in self.projections():
            nn.init.normal_(parameter, std=config.hidden_size**-0.5)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.04)

    def projections(self) -> Iterator[nn.Parameter]:
        """The float masters of every ternary plane."""
        return (p for name, p in self.named_parameters() if name.endswith("_proj.weight"))

    def others(self) -> Iterator[nn.Parameter]:
        """The embedding and every norm gain."""
        return (p for name, p in self.named_parameters() if not name.endswith("_proj.weight"))

    @contextmanager
    def eager(self) -> Iterator[BitNet]:
        """Run uncompiled inside the block, for shapes that are not worth a compilation."""
        compiled = self._before, self._after
        self._before, self._after = before_attention, after_attention
        try:
            yield self
        finally:
            self._before, self._after = compiled

    def forward(self, tokens: Tensor, positions: Tensor, groups: Sequence[Rows]) -> Tensor:
        """Return the final hidden states of a flat batch, ``(tokens, hidden)``."""
        x = self.model.embed_tokens(tokens)
        table = self.rope[:, positions]
        eps = self.config.rms_eps
        for layer in self.model.layers:
            assert isinstance(layer, Layer)  # noqa: S101  (nn.ModuleList loses the type)
            query, key, value = self._before(
                x, layer.input_layernorm.weight, layer.attention_weights(), table, self.config
            )
            mixed = attend(query, key, value, groups)
            x = self._after(x, mixed, layer.other_gains(), layer.other_weights(), eps)
        return rms_norm(x, self.model.norm.weight, eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every vocabulary entry for each row of ``hidden``."""
        return functional.linear(hidden, self.model.embed_tokens.weight)
