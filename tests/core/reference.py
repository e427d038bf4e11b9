"""A W1.58A8 transformer in numpy, written from the definition of the model and not from the C code.

It computes in float64, so its own rounding errors do not matter.  Its one trap is the int8
rounding of activations: where ``x * a`` lies within float32 error of a tie, a correct float32
engine may take the neighbour, and the logits then differ by more than rounding.  ``Run.margin`` is
the smallest distance from a tie that was met; tests choose seeds that keep away from ties instead
of loosening their bound.
"""

import dataclasses

import numpy as np

from tests.core.toy import Shape, Toy, make_toy

F32_EFFECT = 3e-5  # activations reach 127 and carry a relative error of some 2e-7 in float32


@dataclasses.dataclass
class Run:
    """The last position's logits, and how close a rounding came to a tie."""

    logits: np.ndarray
    margin: float


class Reference:
    """One forward pass over a whole sequence."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy
        self.shape = toy.shape
        self.weights = {
            name: array.astype(np.int64 if array.dtype == np.int8 else np.float64)
            for name, array in toy.weights.items()
        }
        self.margin = 0.5

    def run(self, tokens: list[int]) -> Run:
        w = self.weights
        x = w["model.embed_tokens.weight"][tokens]
        for i in range(self.shape.layers):
            x = x + self.attention(self.norm(x, f"model.layers.{i}.input_layernorm"), i)
            x = x + self.ffn(self.norm(x, f"model.layers.{i}.post_attention_layernorm"), i)
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        logits = self.norm(x, "model.norm")[-1] @ head.T
        return Run(logits, self.margin)

    def norm(self, x, name):
        mean_square = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + 1e-5) * self.weights[f"{name}.weight"]

    def linear(self, x, name):
        """BitLinear: int8 absmax activations a token, exact integer product, the plane's scale."""
        a = 127.0 / np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5)
        scaled = x * a
        away = np.abs(scaled - np.floor(scaled) - 0.5)
        self.margin = min(self.margin, float(away.min()))
        q = np.clip(np.rint(scaled), -128, 127).astype(np.int64)
        z = q @ self.weights[f"{name}.weight"].T
        return z * self.weights[f"{name}.weight_scale"] / a

    def rotate(self, x):
        """Rotate-half RoPE over (positions, heads, head_dim)."""
        half = self.shape.head_dim // 2
        frequency = self.shape.theta ** (-np.arange(half) / half)
        angle = np.arange(x.shape[0])[:, None, None] * frequency
        first, second = x[..., :half], x[..., half:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def attention(self, h, layer):
        s, at = self.shape, f"model.layers.{layer}.self_attn"
        n = h.shape[0]
        q = self.rotate(self.linear(h, f"{at}.q_proj").reshape(n, s.heads, s.head_dim))
        k = self.rotate(self.linear(h, f"{at}.k_proj").reshape(n, s.kv_heads, s.head_dim))
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
