"""The seam of conversion: what every reader gives and every writer takes.

A reader (Hugging Face directory, GGUF file, our own directory) turns what lies on disk into a
`Checkpoint`; a ternariser wraps a checkpoint of floats into one of trits; a writer takes either.
Whoever knows one side of this file needs to know nothing of the other.

One vocabulary, whatever the source called it:

- tensor names are Hugging Face names of the `Llama` family (`….N.self_attn.q_proj.weight`, …),
  sub-norms `self_attn.attn_sub_norm.weight` and `mlp.ffn_sub_norm.weight`, head norms
  `self_attn.q_norm.weight` and `self_attn.k_norm.weight`), and rows of q and k are in the
  rotate-half order;
- `config` has the keys of docs/formats.md, section 1, without `quantization_config`;
- scales are multiplied, never divided by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TritMatrix:
    """A ternary matrix: W[o, k] = trits[o, k] * scales[k // (in / G), o].

    Attributes:
        trits: (out, in) int8 of -1, 0 and +1.
        scales: (1, 1) float32: one scale for the matrix; (G, out): G equal runs of inputs, each
            with a scale an output; G is 1 for one scale a row.  `in` is a multiple of G.
    """

    trits: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer as our model directory keeps it.

    Attributes:
        tokenizer: the object of tokenizer.json.
        config: the object of tokenizer_config.json: bos_token, eos_token, chat_template.
        stop_ids: ids that end an answer, for `eos_token_id` of config.json; empty: as it is there.
    """

    tokenizer: Mapping[str, Any]
    config: Mapping[str, Any]
    stop_ids: tuple[int, ...] = field(default=())


class Checkpoint(Protocol):
    """A model to read from, one tensor at a time; nothing is held that was read."""

    config: Mapping[str, Any]
    #: 8: the model quantises every matrix's input to int8 (W1.58A8); 16: it does not (W1.58A16).
    activation_bits: int

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name every tensor and its logical shape: (out, in) of a matrix, however it is packed."""

    def is_ternary(self, name: str) -> bool:
        """Say whether `trits` answers for this tensor: its trits are in the file, or implied."""

    def trits(self, name: str) -> TritMatrix:
        """Read a whole ternary matrix.

        Raises:
            ModelError: the bytes are no trits.
        """

    def floats(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Read rows `begin` to `end` of a tensor as float32, of a ternary one too.

        Raises:
            ModelError: the bytes are no numbers of the type they claim.
        """

    def tokenizer(self) -> TokenizerFiles | None:
        """Read the tokenizer; None when the source has none.

        Raises:
            ModelError: there is one that we cannot use.
        """
