"""Float matrices to trits: the schemes, and a checkpoint of floats that looks like one of trits.

    absmean     s = mean|w|, t = round(w / s) within -1..1      BitNet b1.58, arXiv 2402.17764
    threshold   t = sign(w) where |w| > alpha * mean|w|, s = mean of those |w|
    twn         threshold with alpha = 0.7                      TWN, arXiv 1605.04711, section 2.2

For a given set of non-zero trits the mean of their |w| is the scale with the least squared error,
which is why `threshold` has it.  An alpha belongs to a class of matrices, to one layer, to one
matrix, or to one head of q, k or v; the most specific one holds (`Recipe.alpha`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert.checkpoint import Checkpoint, TokenizerFiles, TritMatrix
from edgeagent.convert.pack import MIN_SCALE, Trits, ternarise_absmean
from edgeagent.errors import ConfigError, ModelError

Floats = NDArray[np.float32]

SCHEMES = ("absmean", "threshold", "twn")
ATTENTION, FFN, EMBEDDING = "attention", "ffn", "embedding"
#: Alpha of the threshold scheme by class of matrix.
CLASS_ALPHAS: Mapping[str, float] = {EMBEDDING: 0.05, ATTENTION: 0.08, FFN: 0.06}
TWN_ALPHA = 0.7
#: Above 4 times the mean magnitude lies less than 0.2 % of a normal distribution.
MAX_ALPHA = 4.0
#: Matrices whose rows belong to heads; heads of o are runs of its inputs, and share one alpha.
BY_HEAD = ("q_proj", "k_proj", "v_proj")
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
_PROJECTION = re.compile(
    r"model\.layers\.(?P<layer>\d+)\.(?P<part>self_attn|mlp)\.(?P<matrix>\w+_proj)\.weight"
)
_KEY = re.compile(
    r"\*|embedding|attention|ffn|[a-z]+_proj"
    r"|layers\.\d+(\.(attention|ffn|[a-z]+_proj(\.\d+)?))?"
)
#: Numbers of an embedding that are in memory at a time: 16 MiB of float32.
_BLOCK_NUMBERS = 4 << 20


def ternarise_threshold(weights: Floats, alpha: float) -> tuple[Trits, np.float32]:
    """Return trits and scale: zero where |w| <= alpha * mean|w|; the scale is the mean above."""
    magnitudes = np.abs(weights)
    live = magnitudes > alpha * magnitudes.mean(dtype=np.float64)
    trits = np.where(live, np.sign(weights), 0).astype(np.int8)
    count = int(live.sum())
    total = float(magnitudes.sum(dtype=np.float64, where=live))
    return trits, np.float32(max(total / count, MIN_SCALE) if count else MIN_SCALE)


def class_of(name: str) -> str | None:
    """Return the class of a tensor that has an alpha; None: it stays as it is."""
    match = _PROJECTION.fullmatch(name)
    if match:
        return ATTENTION if match["part"] == "self_attn" else FFN
    return EMBEDDING if name in EMBEDDINGS else None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_ALPHA:
        raise ConfigError(f"--alpha: expected a number from 0 to {MAX_ALPHA:g}, got {text!r}")
    return value


def parse_alpha(text: str) -> dict[str, float]:
    """Read `0.065`, or `attention=0.08,layers.3.ffn=0.06,layers.0.q_proj.2=0.1`.

    Raises:
        ConfigError: a key or a number that means nothing.
    """
    if "=" not in text:
        return {"*": _number(text)}
    out: dict[str, float] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if not _KEY.fullmatch(key):
            raise ConfigError(
                f"--alpha: {key!r}: expected embedding, attention, ffn, q_proj, layers.3, "
                "layers.3.attention, layers.3.q_proj or layers.3.q_proj.2"
            )
        out[key] = _number(value)
    return out


@dataclass(frozen=True, slots=True)
class Recipe:
    """How floats become trits.

    Attributes:
        scheme: one of SCHEMES.
        alphas: of `threshold`, by the keys of `parse_alpha`.
        embedding: ternarise embedding and head too; they are stored as float16 all the same.
    """

    scheme: str = "absmean"
    alphas: Mapping[str, float] = field(default_factory=dict)
    embedding: bool = False

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ConfigError(f"--scheme: expected one of {', '.join(SCHEMES)}, got {self.scheme}")
        if self.alphas and self.scheme != "threshold":
            raise ConfigError(f"--alpha: {self.scheme} has none of its own: --scheme threshold")

    def alpha(self, name: str, head: int | None = None) -> float | None:
        """Return the alpha of a matrix or of one of its heads; None for absmean."""
        if self.scheme == "absmean":
            return None
        kind = class_of(name)
        if self.scheme == "twn" or kind is None:
            return TWN_ALPHA
        match = _PROJECTION.fullmatch(name)
        keys = [kind, "*"]
        if match:
            at, matrix = f"layers.{match['layer']}", match["matrix"]
            keys = [f"{at}.{matrix}", f"{at}.{kind}", at, matrix, *keys]
            keys = [f"{at}.{matrix}.{head}", *keys] if head is not None else keys
        return next((self.alphas[key] for key in keys if key in self.alphas), CLASS_ALPHAS[kind])

    def has_heads(self, name: str) -> bool:
        """Say whether heads of a matrix have alphas of their own."""
        match = _PROJECTION.fullmatch(name)
        if not match or match["matrix"] not in BY_HEAD:
            return False
        at = f"layers.{match['layer']}.{match['matrix']}."
        return any(key.startswith(at) for key in self.alphas)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a calibration chose for one matrix: (heads,) alphas and scales; one for a matrix."""

    alphas: tuple[float, ...]
    scales: tuple[float, ...]


def by_head(weights: Floats, alphas: tuple[float, ...]) -> tuple[Trits, list[np.float32]]:
    """Ternarise equal runs of rows, each by its alpha; return the trits and a scale a run."""
    rows = len(weights) // len(alphas)
    parts = [
        ternarise_threshold(weights[i * rows : (i + 1) * rows], alpha)
        for i, alpha in enumerate(alphas)
    ]
    return np.concatenate([trits for trits, _ in parts]), [scale for _, scale in parts]


def _matrix(trits: Trits, scales: list[np.float32]) -> TritMatrix:
    if len(scales) == 1:
        return TritMatrix(trits, np.full((1, 1), scales[0], np.float32))
    rows = np.repeat(np.array(scales, np.float32), len(trits) // len(scales))
    return TritMatrix(trits, rows[None, :])


class Ternarised:
    """A checkpoint whose float projections are ternarised when they are read.

    What is ternary already, binary matrices among them, passes through as it is.
    """

    def __init__(
        self,
        source: Checkpoint,
        recipe: Recipe,
        calibrated: Mapping[str, Calibrated] | None = None,
    ) -> None:
        """Wrap `source`.

        Args:
            source: floats, wholly or in part.
            recipe: the scheme.
            calibrated: by tensor name, in place of the recipe's alphas and scales.
        """
        self._source, self._recipe = source, recipe
        self._calibrated = dict(calibrated or {})
        self.config: Mapping[str, Any] = source.config
        self.activation_bits = source.activation_bits
        self._embedding_scales: dict[str, tuple[float, np.float32]] = {}

    @property
    def identity(self) -> str | None:
        """Return a hash of source and recipe; None when the source has none."""
        identity = getattr(self._source, "identity", None)
        if not isinstance(identity, str):
            return None
        chosen = {name: [c.alphas, c.scales] for name, c in self._calibrated.items()}
        recipe = [self._recipe.scheme, dict(self._recipe.alphas), self._recipe.embedding, chosen]
        return hashlib.sha256(json.dumps([identity, recipe], sort_keys=True).encode()).hexdigest()

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name every tensor and its logical shape."""
        return self._source.shapes()

    def is_ternary(self, name: str) -> bool:
        """Say whether `trits` answers for this tensor."""
        return class_of(name) in (ATTENTION, FFN) or self._source.is_ternary(name)

    def is_ours(self, name: str) -> bool:
        """Say whether this tensor is ternarised here."""
        return class_of(name) in (ATTENTION, FFN) and not self._source.is_ternary(name)

    def alphas(self, name: str) -> tuple[float, ...]:
        """Return what `trits` uses: one alpha, or one a head; empty for absmean."""
        if name in self._calibrated:
            return self._calibrated[name].alphas
        if self._recipe.has_heads(name):
            found = [self._recipe.alpha(name, head) for head in range(self.heads(name))]
        else:
            found = [self._recipe.alpha(name)]
        return tuple(alpha for alpha in found if alpha is not None)

    def heads(self, name: str) -> int:
        """Return the heads that share the rows of q, k or v."""
        key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
        return int(self.config.get(key) or self.config["num_attention_heads"])

    def trits(self, name: str) -> TritMatrix:
        """Return a whole ternary matrix.

        Raises:
            ModelError: a weight is not finite.
        """
        if not self.is_ours(name):
            return self._source.trits(name)
        weights = self._source.floats(name)
        if not np.isfinite(weights).all():
            raise ModelError(f"{name}: expected finite weights, found infinity or NaN")
        alphas = self.alphas(name)
        if not alphas:
            trits, scale = ternarise_absmean(weights)
            return _matrix(trits, [scale])
        trits, scales = by_head(weights, alphas)
        chosen = self._calibrated.get(name)
        if chosen is not None:
            scales = [np.float32(scale) for scale in chosen.scales]
        return _matrix(trits, scales)

    def floats(self, name: str, begin: int = 0, end: int | None = None) -> Floats:
        """Return rows as float32: of the embedding as its trits say if the recipe wants that."""
        if self._recipe.embedding and name in EMBEDDINGS:
            threshold, scale = self._embedding_scale(name)
            values = self._source.floats(name, begin, end)
            kept: Floats = np.where(np.abs(values) > threshold, np.sign(values) * scale, 0)
            return kept.astype(np.float32)
        if self.is_ours(name):
            matrix = self.trits(name)
            rows = matrix.scales if matrix.scales.shape[1] == 1 else matrix.scales[:, begin:end]
            scaled: Floats = matrix.trits[begin:end] * rows[0][:, None]
            return scaled.astype(np.float32)
        return self._source.floats(name, begin, end)

    def masters(self, name: str) -> Floats:
        """Return the floats that `trits` is made of."""
        return self._source.floats(name)

    def _blocks(self, name: str) -> Iterator[Floats]:
        rows, width = self.shapes()[name]
        step = max(1, _BLOCK_NUMBERS // width)
        for begin in range(0, rows, step):
            yield np.abs(self._source.floats(name, begin, min(begin + step, rows)))

    def _mean_above(self, name: str, threshold: float) -> float:
        """Return the mean of an embedding's |w| above a threshold; it is never in memory whole."""
        total, count = 0.0, 0
        for block in self._blocks(name):
            live = block > threshold
            total += float(block.sum(dtype=np.float64, where=live))
            count += int(live.sum())
        return total / count if count else 0.0

    def _embedding_scale(self, name: str) -> tuple[float, np.float32]:
        """Return the threshold and the scale of an embedding."""
        if name not in self._embedding_scales:
            mean = self._mean_above(name, -1.0)
            alpha = self._recipe.alpha(name)
            threshold = mean * (0.5 if alpha is None else alpha)
            scale = mean if alpha is None else self._mean_above(name, threshold)
            # float16, as it is stored: then every value of the embedding is exactly 0 or +-scale
            half = np.float32(np.float16(max(scale, MIN_SCALE)))
            self._embedding_scales[name] = (threshold, half)
        return self._embedding_scales[name]

    def tokenizer(self) -> TokenizerFiles | None:
        """Return the source's tokenizer."""
        return self._source.tokenizer()
