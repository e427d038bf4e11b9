"""The float model in numpy, layer by layer, to see what ternarising a matrix does to its output.

Text becomes sequences; their hidden states are all that is kept from one layer to the next, and of
the weights one matrix at a time is in memory.  A visitor is shown every matrix with its inputs, so
that the error of a candidate is measured where it matters, || X W' - X (s T)' ||, not on weights.

Arithmetic: RMSNorm, rotate-half RoPE, grouped attention, SwiGLU or squared ReLU, as in
docs/models.md; activations are not quantised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert.checkpoint import Checkpoint
from edgeagent.convert.gguf import dequantise
from edgeagent.convert.pack import MIN_SCALE
from edgeagent.convert.ternarise import Calibrated, Floats, Ternarised, by_head
from edgeagent.errors import ConfigError, ModelError

#: Tokens of a calibration text that are used, in sequences of SEQUENCE_TOKENS.
MAX_TOKENS = 2048
SEQUENCE_TOKENS = 128
#: Rows of inputs that a matrix's candidates are tried on.
MAX_ROWS = 512
#: Candidates: below 0 nothing changes, from 1.5 on most weights of a normal distribution are 0.
COARSE = tuple(float(a) for a in np.round(np.arange(0, 1.5, 0.125), 4))
FINE_STEP = 0.03125
#: Rows of the head at a time, when the loss is taken.
_HEAD_ROWS = 8192

Visit = Callable[[str, Floats, Floats], None]
Report = Callable[[int, int, str], None]


def sequences(tokens: list[int], context: int) -> NDArray[np.int64]:
    """Cut a text into (sequences, length); at least one.

    Raises:
        ConfigError: it is too short to say anything.
    """
    length = min(SEQUENCE_TOKENS, context)
    if len(tokens) < length:
        raise ConfigError(
            f"--calibrate: expected a text of at least {length} tokens, got {len(tokens)}"
        )
    n = min(len(tokens), MAX_TOKENS) // length
    return np.array(tokens[: n * length], np.int64).reshape(n, length)


def _weights(source: Checkpoint, name: str) -> Floats:
    """Return the matrix that the model multiplies by."""
    if not source.is_ternary(name):
        return source.floats(name)
    return dequantise(source.trits(name))


def _silu(x: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp of a large number is infinity, and x / infinity is 0
        out: Floats = x / (1 + np.exp(-x))
    return out.astype(np.float32)


def _relu2(x: Floats) -> Floats:
    return np.square(np.maximum(x, np.float32(0))).astype(np.float32)


def _frequencies(config: Mapping[str, Any], width: int) -> NDArray[np.float64]:
    base = float(config["rope_theta"])
    found = base ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    scaling = config.get("rope_scaling")
    if not scaling:
        return found
    if scaling["rope_type"] == "linear":
        return np.asarray(found / float(scaling["factor"]))
    if scaling["rope_type"] != "llama3":
        raise ConfigError(f"--calibrate: not with rope scaling {scaling['rope_type']!r}: leave out")
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original = float(scaling["original_max_position_embeddings"])
    turns = original * found / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(found * (share + (1 - share) / float(scaling["factor"])))


class FloatModel:
    """The float forward pass of a checkpoint over some sequences."""

    def __init__(self, source: Checkpoint, ids: NDArray[np.int64]) -> None:
        """Take the sequences (n, length).

        Raises:
            ConfigError: a model whose arithmetic is not here.
        """
        self._source, self._ids = source, ids
        config = source.config
        if config["architectures"][0] == "MiniCPMForCausalLM":
            raise ConfigError("--calibrate: not for MiniCPM models: leave it out")
        self._heads = int(config["num_attention_heads"])
        self._kv_heads = int(config.get("num_key_value_heads") or self._heads)
        self._width = int(config.get("head_dim") or config["hidden_size"] // self._heads)
        self._eps = float(config["rms_norm_eps"])
        self._gate = _relu2 if config.get("hidden_act") == "relu2" else _silu
        angles = np.outer(np.arange(ids.shape[1]), _frequencies(config, self._width))
        self._cos, self._sin = (f(angles).astype("f4")[:, None] for f in (np.cos, np.sin))
        self._hidden = self._embed()

    def _embed(self) -> Floats:
        wanted = np.unique(self._ids)
        table = np.concatenate(
            [self._source.floats("model.embed_tokens.weight", i, i + 1) for i in wanted.tolist()]
        )
        rows: Floats = table[np.searchsorted(wanted, self._ids.ravel())]
        return rows

    def _norm(self, x: Floats, name: str) -> Floats:
        if name not in self._source.shapes():
            return x
        gain = self._source.floats(name)
        wide = np.square(x.astype(np.float64)).mean(axis=-1, keepdims=True) + self._eps
        scaled: NDArray[np.float64] = x / np.sqrt(wide) * gain
        return scaled.astype(np.float32)

    def _multiply(self, name: str, x: Floats, visit: Visit) -> Floats:
        weights = _weights(self._source, name)
        visit(name, x, weights)
        return x @ weights.T

    def _rotate(self, x: Floats) -> Floats:
        left, right = np.split(x, 2, axis=-1)
        return np.concatenate(
            [left * self._cos - right * self._sin, right * self._cos + left * self._sin], axis=-1
        )

    def _by_head(self, x: Floats, heads: int) -> Floats:
        return x.reshape(*self._ids.shape, heads, self._width)

    def _attention(self, at: str, x: Floats, visit: Visit) -> Floats:
        q, k, v = (self._multiply(f"{at}.{m}_proj.weight", x, visit) for m in "qkv")
        queries = self._rotate(self._norm(self._by_head(q, self._heads), f"{at}.q_norm.weight"))
        keys = self._rotate(self._norm(self._by_head(k, self._kv_heads), f"{at}.k_norm.weight"))
        values = self._by_head(v, self._kv_heads)
        length = self._ids.shape[1]
        future = np.triu(np.full((length, length), -np.inf, np.float32), 1)
        mixed = np.empty_like(queries)
        group = self._heads // self._kv_heads
        for n, head in np.ndindex(len(self._ids), self._heads):
            scores = queries[n, :, head] @ keys[n, :, head // group].T
            scores = scores / np.float32(math.sqrt(self._width)) + future
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            shares = powers / powers.sum(axis=1, keepdims=True)
            mixed[n, :, head] = shares @ values[n, :, head // group]
        joined = self._norm(mixed.reshape(len(x), -1), f"{at}.attn_sub_norm.weight")
        return self._multiply(f"{at}.o_proj.weight", joined, visit)

    def _ffn(self, at: str, x: Floats, visit: Visit) -> Floats:
        gate = self._gate(self._multiply(f"{at}.gate_proj.weight", x, visit))
        gate *= self._multiply(f"{at}.up_proj.weight", x, visit)
        product = self._norm(gate, f"{at}.ffn_sub_norm.weight")
        return self._multiply(f"{at}.down_proj.weight", product, visit)

    def run(self, visit: Visit, report: Report = lambda done, total, what: None) -> None:
        """Pass through all layers; `visit` is shown each matrix: name, inputs, weights."""
        total = int(self._source.config["num_hidden_layers"])
        for n in range(total):
            report(n, total, f"layer {n}")
            at = f"model.layers.{n}"
            x = self._norm(self._hidden, f"{at}.input_layernorm.weight")
            self._hidden = self._hidden + self._attention(f"{at}.self_attn", x, visit)
            x = self._norm(self._hidden, f"{at}.post_attention_layernorm.weight")
            self._hidden = self._hidden + self._ffn(f"{at}.mlp", x, visit)
        report(total, total, "")

    def loss(self) -> float:
        """Return the mean negative log likelihood of every token but the first of a sequence.

        Raises:
            ModelError: the model's numbers are not finite.
        """
        x = self._norm(self._hidden, "model.norm.weight")
        x = x.reshape(*self._ids.shape, -1)[:, :-1].reshape(-1, x.shape[-1])
        targets = self._ids[:, 1:].ravel()
        tied = "lm_head.weight" not in self._source.shapes()
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        vocab = self._source.shapes()[name][0]
        largest = np.full(len(x), -np.inf)
        total, wanted = np.zeros(len(x)), np.zeros(len(x))
        for begin in range(0, vocab, _HEAD_ROWS):
            logits = (x @ self._source.floats(name, begin, begin + _HEAD_ROWS).T).astype("f8")
            higher = np.maximum(largest, logits.max(axis=1))
            total = total * np.exp(largest - higher) + np.exp(logits - higher[:, None]).sum(axis=1)
            largest = higher
            here = np.flatnonzero((targets >= begin) & (targets < begin + logits.shape[1]))
            wanted[here] = logits[here, targets[here] - begin]
        loss = float((largest + np.log(total) - wanted).mean())
        if not math.isfinite(loss):
            raise ModelError("--calibrate: the float model's numbers are not finite")
        return loss


def _error(x: Floats, y: Floats, trits: Floats) -> tuple[float, float]:
    """Return the scale that leaves least of y = x W', and what it leaves, as a share of y."""
    z = x @ trits.T
    power = float(np.square(y, dtype=np.float64).sum())
    zz = float(np.square(z, dtype=np.float64).sum())
    yz = float((y.astype(np.float64) * z).sum())
    if zz <= 0 or yz <= 0 or power <= 0:
        return MIN_SCALE, 1.0 if power > 0 else 0.0
    return max(yz / zz, MIN_SCALE), max(0.0, 1 - yz * yz / zz / power)


def best_alpha(x: Floats, weights: Floats) -> tuple[float, float]:
    """Return the alpha and the scale with the least squared output error for inputs x (n, in)."""
    y = x @ weights.T
    tried: dict[float, tuple[float, float]] = {}

    def left(alpha: float) -> float:
        if alpha not in tried:
            trits, _ = by_head(weights, (alpha,))
            tried[alpha] = _error(x, y, trits.astype(np.float32))
        return tried[alpha][1]

    best = min(COARSE, key=left)
    for step in (2 * FINE_STEP, FINE_STEP):
        best = min((best, max(best - step, 0.0), best + step), key=left)
    return best, tried[best][0]


def _rows(x: Floats) -> Floats:
    pick = np.linspace(0, len(x) - 1, min(len(x), MAX_ROWS)).astype(np.intp)
    return x[pick]


class Calibration:
    """A visitor that chooses alphas, or measures the error of those that are given."""

    def __init__(self, ternarised: Ternarised, *, choose: bool, heads: bool) -> None:
        """Watch the matrices that `ternarised` makes.

        Args:
            ternarised: over the checkpoint that is run.
            choose: look for the best alpha of each matrix.
            heads: and of each head of q, k and v.
        """
        self._ternarised, self._choose, self._heads = ternarised, choose, heads
        self.chosen: dict[str, Calibrated] = {}
        #: Of each matrix: || X W' - X (s T)' || / || X W' ||.
        self.errors: dict[str, float] = {}

    def visit(self, name: str, inputs: Floats, weights: Floats) -> None:
        """Look at one matrix."""
        if not self._ternarised.is_ours(name):
            return
        x = _rows(inputs)
        if self._choose:
            has_heads = self._heads and name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
            parts = np.split(weights, self._ternarised.heads(name) if has_heads else 1)
            found = [best_alpha(x, part) for part in parts]
            alphas = tuple(alpha for alpha, _ in found)
            scales = [np.float32(scale) for _, scale in found]
            trits, _ = by_head(weights, alphas)
            self.chosen[name] = Calibrated(alphas, tuple(float(s) for s in scales))
            rows = np.repeat(np.array(scales, np.float32), len(trits) // len(scales))[:, None]
        else:
            matrix = self._ternarised.trits(name)
            trits, rows = matrix.trits, matrix.scales.T
        y = x @ weights.T
        left = np.linalg.norm(y - x @ (trits * rows).astype(np.float32).T)
        power = np.linalg.norm(y)
        self.errors[name] = float(left / power) if power > 0 else 0.0
