"""A W1.58A8 transformer in numpy, written from the definition of the model and not from the C code.

It computes in float64, so its own rounding errors do not matter.  Its one trap is the int8
rounding of activations: where ``x * a`` lies within float32 error of a tie, a correct float32
engine may take the neighbour, and the logits then differ by more than rounding.  ``Run.margin`` is
the smallest distance from a tie that was met; tests choose seeds that keep away from ties instead
of loosening their bound.
"""

import dataclasses

import numpy as np

from tests.core.toy import Lora, Shape, Toy, make_toy

F32_EFFECT = 3e-5  # activations reach 127 and carry a relative error of some 2e-7 in float32


@dataclasses.dataclass
class Run:
    """The last position's logits, and how close a rounding came to a tie."""

    logits: np.ndarray
    margin: float


def frequencies(shape: Shape, context: int) -> tuple[np.ndarray, float]:
    """Return (head_dim / 2,) angles a position and the factor of cosines and sines.

    Sources: LongRoPE (arXiv 2402.13753) and Llama 3.1 as Hugging Face configs describe them.
    """
    half, rope = shape.head_dim // 2, shape.rope or {"rope_type": "default"}
    plain = shape.theta ** (-np.arange(half) / half)
    match rope["rope_type"]:
        case "linear":
            return plain / rope["factor"], 1.0
        case "llama3":
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            turns = rope["original_max_position_embeddings"] * plain / (2 * np.pi)
            keep = np.clip((turns - low) / (high - low), 0, 1)
            return plain * (keep + (1 - keep) / rope["factor"]), 1.0
        case "longrope":
            original = rope["original_max_position_embeddings"]
            stretch = rope.get("factor", shape.context / original)
            default = np.sqrt(1 + np.log(stretch) / np.log(original)) if stretch > 1 else 1.0
            chosen = rope["long_factor" if context > original else "short_factor"]
            return plain / np.array(chosen), rope.get("attention_factor", default)
    return plain, 1.0


class Reference:
    """One forward pass over a whole sequence."""

    def __init__(self, toy: Toy, context: int = 64, adapter: Lora | None = None) -> None:
        self.toy = toy
        self.adapter = adapter or {}
        self.context = context  # of the session: it decides which factors longrope takes
        self.shape = toy.shape
        self.weights = {
            name: array.astype(np.int64 if array.dtype == np.int8 else np.float64)
            for name, array in toy.weights.items()
        }
        self.margin = 0.5

    def run(self, tokens: list[int]) -> Run:
        w = self.weights
        embed, depth, base = self.shape.minicpm or (1.0, np.sqrt(self.shape.layers), None)
        add = depth / np.sqrt(self.shape.layers)
        x = w["model.embed_tokens.weight"][tokens] * embed
        for i in range(self.shape.layers):
            x = x + add * self.attention(self.norm(x, f"model.layers.{i}.input_layernorm"), i)
            x = x + add * self.ffn(self.norm(x, f"model.layers.{i}.post_attention_layernorm"), i)
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        logits = self.norm(x, "model.norm")[-1] @ head.T / (self.shape.hidden / base if base else 1)
        return Run(logits, self.margin)

    def norm(self, x, name):
        mean_square = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + 1e-5) * self.weights[f"{name}.weight"]

    def linear(self, x, name):
        """The product with a ternary matrix; in W1.58A8 of int8 absmax activations a token."""
        weights, scales = self.weights[f"{name}.weight"], self.weights[f"{name}.weight_scale"]
        if scales.ndim == 2:
            weights = weights * np.repeat(scales.T, weights.shape[1] // len(scales), axis=1)
            scales = 1.0
        extra = 0.0
        if name in self.adapter:
            scale, a, b = self.adapter[name]
            extra = scale * (x @ a.T.astype(np.float64)) @ b.T.astype(np.float64)
        if self.shape.activation_bits == 16:
            return x @ weights.T * scales + extra
        a = 127.0 / np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5)
        scaled = x * a
        away = np.abs(scaled - np.floor(scaled) - 0.5)
        self.margin = min(self.margin, float(away.min()))
        q = np.clip(np.rint(scaled), -128, 127).astype(np.int64)
        return q @ weights.T * scales / a + extra

    def rotate(self, x):
        """Rotate-half RoPE over (positions, heads, head_dim)."""
        half = self.shape.head_dim // 2
        frequency, attention = frequencies(self.shape, self.context)
        angle = np.arange(x.shape[0])[:, None, None] * frequency
        first, second = x[..., :half], x[..., half:]
        cos, sin = np.cos(angle) * attention, np.sin(angle) * attention
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def attention(self, h, layer):
        s, at = self.shape, f"model.layers.{layer}.self_attn"
        n = h.shape[0]
        q = self.linear(h, f"{at}.q_proj").reshape(n, s.heads, s.head_dim)
        k = self.linear(h, f"{at}.k_proj").reshape(n, s.kv_heads, s.head_dim)
        if s.head_norms:
            q, k = self.norm(q, f"{at}.q_norm"), self.norm(k, f"{at}.k_norm")
        q, k = self.rotate(q), self.rotate(k)
        v = self.linear(h, f"{at}.v_proj").reshape(n, s.kv_heads, s.head_dim)
        k, v = (np.repeat(t, s.heads // s.kv_heads, axis=1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(s.head_dim)
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        out = np.einsum("hqk,khd->qhd", p, v).reshape(n, -1)
        if s.sub_norms:
            out = self.norm(out, f"{at}.attn_sub_norm")
        return self.linear(out, f"{at}.o_proj")

    def ffn(self, h, layer):
        at = f"model.layers.{layer}.mlp"
        gate = self.linear(h, f"{at}.gate_proj")
        up = self.linear(h, f"{at}.up_proj")
        relu2, silu = np.maximum(gate, 0) ** 2, gate / (1 + np.exp(-gate))
        h = (relu2 if self.shape.act == "relu2" else silu) * up
        if self.shape.sub_norms:
            h = self.norm(h, f"{at}.ffn_sub_norm")
        return self.linear(h, f"{at}.down_proj")


def toy_away_from_ties(shape: Shape, tokens: list[int]) -> tuple[Toy, Run]:
    """Return the first random model whose every rounding is safe from float32 error."""
    for seed in range(100):
        toy = make_toy(shape, seed)
        run = Reference(toy).run(tokens)
        if run.margin > F32_EFFECT:
            return toy, run
    raise AssertionError(f"no seed keeps {shape} away from rounding ties")
