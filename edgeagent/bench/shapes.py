"""The shapes that are measured: their dimensions, config and tensors.  Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgeagent.convert.pack import choose_layout

BOS_ID, EOS_ID = 0, 1

#: Activation-zero fraction at down_proj that ReLU² models show (82 to 86 % published for 2B4T).
DEFAULT_ZERO_ACT = 0.8
#: Closed gates that go with a fraction of zeros when nothing else is asked: 70 % with 80 %.
GATES_PER_ZERO = 0.7 / 0.8


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model looks like; ReLU², sub-norms and a tied head, as BitNet b1.58 2B4T has them."""

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_theta: float
    act: str = "relu2"  # or "silu": no gate is ever closed

    @property
    def layout(self) -> int:
        """How its trits are packed."""
        return choose_layout(self.trits)

    @property
    def relu2(self) -> bool:
        """Whether gates close."""
        return self.act == "relu2"

    @property
    def attention(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Name below the layer to (outputs, inputs)."""
        kv = self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.attention, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.attention),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }

    @property
    def norms(self) -> Iterator[tuple[str, int]]:
        """Every norm of the model and its width."""
        yield "model.norm.weight", self.hidden
        for i in range(self.layers):
            at = f"model.layers.{i}"
            yield f"{at}.input_layernorm.weight", self.hidden
            yield f"{at}.post_attention_layernorm.weight", self.hidden
            yield f"{at}.self_attn.attn_sub_norm.weight", self.attention
            yield f"{at}.mlp.ffn_sub_norm.weight", self.ffn

    @property
    def trits(self) -> int:
        """Ternary weights of the whole model."""
        return self.layers * sum(n_out * n_in for n_out, n_in in self.projections.values())

    def config(self) -> dict[str, Any]:
        """Return `config.json` without the part that says how the trits are packed."""
        return {
            "architectures": ["BitNetForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_theta,
            "hidden_act": self.act,
            "tie_word_embeddings": True,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
        }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 2, 256, 512, 4, 2, 64, 512, 256, 1e4),  # for tests: nothing to measure
        Shape("small", 12, 512, 2048, 8, 8, 64, 32_000, 4608, 1e4),
        Shape("2b4t", 30, 2560, 6912, 20, 5, 128, 128_256, 4608, 5e5),
    )
}


def token_ids(shape_vocab: int, n: int) -> list[int]:
    """Return `n` different tokens, the same ones that the peers of bench/peers.py get."""
    stride = 7919  # a prime: no two tokens of a prompt share an embedding row or a page
    return [(1 + i * stride) % shape_vocab for i in range(n)]
