"""The shape of the bundled model and the words its tokenizer reserves.

One fact, one place: every other module of this package imports these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

BOS, END, USER, ASSISTANT, SYSTEM = range(5)
"""Token ids of the special tokens, in the order of ``SPECIAL_TOKENS``."""

SPECIAL_TOKENS = ("<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a BitNet-family decoder."""

    vocab_size: int = 2048
    hidden_size: int = 256
    n_layers: int = 5
    n_heads: int = 4
    n_kv_heads: int = 2
    ffn_size: int = 512
    max_positions: int = 512
    rms_eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.n_heads

    @property
    def kv_size(self) -> int:
        """Width of the key (and of the value) of one position."""
        return self.n_kv_heads * self.head_dim
