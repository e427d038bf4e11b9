"""The containers of llama2.c and of bitllama2.c: small models, trained, in one flat file.

    llama2.c, legacy    7 i32 of sizes, then float32 (github.com/karpathy/llama2.c, export.py)
    llama2.c, version 1 "ak42", i32 1, 7 i32, u8 shared; 256 bytes in all; then float32
    bitllama2.c         the same 256 bytes; final norm and embedding in float32, then for every
                        matrix a float32 scale and trits, four a byte, the first in the high bits:
                        00 is 0, 01 is +1, 11 is -1 (github.com/HKUSTGZ-MICS-LYU/bitllama2.c)

The sizes are model width, feed-forward width, layers, heads, key and value heads, vocabulary
(negative in the legacy file when the head is not the embedding) and context.  The 256-byte headers
of two formats are the same; the size of the file tells which it is.

Both rotate neighbouring channels, so rows of q and k are put in the rotate-half order.  A matrix of
bitllama2.c divides its input by its root mean square and by its length, with no gain: that is a
BitNet model with SiLU whose every norm is 1 / length.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert.bounded import read_bounded
from edgeagent.convert.checkpoint import TokenizerFiles, TritMatrix
from edgeagent.convert.sentencepiece import BYTE, CONTROL, MAX_PIECES, NORMAL, UNKNOWN, Pieces
from edgeagent.errors import ModelError

MAGIC = b"24ka"  # "ak42" as a little-endian number
VERSION = 1
HEADER_BYTES = 256
LEGACY_BYTES = 28
RMS_EPS = 1e-5
#: bitllama2.c's layers have none; its final norm has 1e-5, of inputs that are far above it.
TERNARY_EPS = 1e-12
#: What follows v and up is a norm, which takes any factor out again: this one, exact in float32,
#: lifts products of gates (mean squares of 1e-9) far above the epsilon.
LIFT = 4096.0
_LIFTED = ("self_attn.v_proj.weight", "mlp.up_proj.weight")
ROPE_THETA = 10000.0
BOS_ID, EOS_ID, UNK_ID, FIRST_BYTE_ID = 1, 2, 0, 3
#: Far above any model of these formats; keeps products of sizes small.
MAX_SIZE = 1 << 20
MAX_TOKEN_BYTES = 1 << 10
#: Code of two bits to trit; 2 has no meaning.
_TRITS = np.array([0, 1, 2, -1], np.int8)

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The seven numbers of a header."""

    dim: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.dim // self.heads


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: its first byte, and its scale's for trits."""

    shape: Shape
    at: int
    scale_at: int | None = None


def _projections(s: Sizes) -> list[tuple[str, Shape]]:
    """Name and (out, in) in the order of these files: wq wk wv wo, then w1 w2 w3."""
    kv = s.kv_heads * s.head_dim
    return [
        ("self_attn.q_proj", (s.dim, s.dim)),
        ("self_attn.k_proj", (kv, s.dim)),
        ("self_attn.v_proj", (kv, s.dim)),
        ("self_attn.o_proj", (s.dim, s.dim)),
        ("mlp.gate_proj", (s.ffn, s.dim)),
        ("mlp.down_proj", (s.dim, s.ffn)),
        ("mlp.up_proj", (s.ffn, s.dim)),
    ]


class _Layout:
    """Puts tensors behind each other."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.places: dict[str, _Place] = {}

    def floats(self, name: str, shape: Shape) -> None:
        self.places[name] = _Place(shape, self.at)
        self.at += int(np.prod(shape, dtype=np.int64)) * 4

    def layers(self, s: Sizes, inner: str, shape: Shape) -> None:
        for i in range(s.layers):
            self.floats(f"model.layers.{i}.{inner}.weight", shape)

    def trits(self, name: str, shape: tuple[int, ...]) -> None:
        self.places[name] = _Place(shape, self.at + 4, self.at)
        self.at += 4 + int(np.prod(shape, dtype=np.int64)) // 4


def _ternary(s: Sizes) -> _Layout:
    found = _Layout(HEADER_BYTES)
    found.floats("model.norm.weight", (s.dim,))
    found.floats("model.embed_tokens.weight", (s.vocab, s.dim))
    for inner, shape in _projections(s):
        for i in range(s.layers):
            found.trits(f"model.layers.{i}.{inner}.weight", shape)
    return found


def _version1(s: Sizes, tied: bool) -> _Layout:
    found = _Layout(HEADER_BYTES)
    found.layers(s, "input_layernorm", (s.dim,))
    found.layers(s, "post_attention_layernorm", (s.dim,))
    found.floats("model.norm.weight", (s.dim,))
    found.floats("model.embed_tokens.weight", (s.vocab, s.dim))
    for inner, shape in _projections(s):
        found.layers(s, inner, shape)
    if not tied:
        found.floats("lm_head.weight", (s.vocab, s.dim))
    return found


def _legacy(s: Sizes, tied: bool) -> _Layout:
    found = _Layout(LEGACY_BYTES)
    found.floats("model.embed_tokens.weight", (s.vocab, s.dim))
    found.layers(s, "input_layernorm", (s.dim,))
    for inner, shape in _projections(s)[:4]:
        found.layers(s, inner, shape)
    found.layers(s, "post_attention_layernorm", (s.dim,))
    for inner, shape in _projections(s)[4:]:
        found.layers(s, inner, shape)
    found.floats("model.norm.weight", (s.dim,))
    found.at += s.context * s.head_dim * 4  # tables of the rotation, which everybody computes
    if not tied:
        found.floats("lm_head.weight", (s.vocab, s.dim))
    return found


def _sizes(data: bytes, where: str) -> tuple[Sizes, bool]:
    """Return the sizes and whether the vocabulary was negative."""
    numbers = list(struct.unpack("<7i", data))
    negative = numbers[5] < 0
    numbers[5] = abs(numbers[5])
    s = Sizes(*numbers)
    sound = all(0 < n <= MAX_SIZE for n in numbers) and s.layers <= MAX_SIZE >> 8
    if not sound or s.dim % s.heads or s.heads % s.kv_heads or s.head_dim % 2:
        raise ModelError(f"{where}: not a llama2.c file: sizes {numbers}")
    return s, negative


def _layout(data: mmap.mmap, where: str) -> tuple[Sizes, _Layout]:
    """Find out which of the three formats a file has.

    Raises:
        ModelError: none of them.
    """
    if len(data) < HEADER_BYTES:
        raise ModelError(f"{where}: expected a llama2.c file, got {len(data)} bytes")
    if data[:4] == MAGIC:
        (version,) = struct.unpack("<i", data[4:8])
        if version != VERSION:
            raise ModelError(f"{where}: expected version {VERSION}, got {version}")
        s, _ = _sizes(data[8:36], where)
        wanted: list[Callable[[], _Layout]] = [
            lambda: _ternary(s), lambda: _version1(s, bool(data[36]))
        ]  # fmt: skip
    else:
        s, negative = _sizes(data[:LEGACY_BYTES], where)
        wanted = [lambda: _legacy(s, not negative)]
    least = s.layers * len(_projections(s))  # a file has a byte for every matrix, at the least
    if least > len(data):
        raise ModelError(f"{where}: {s.layers} layers in {len(data)} bytes: cut short")
    ends = []
    for make in wanted:
        found = make()
        if found.at == len(data):
            return s, found
        ends.append(found.at)
    raise ModelError(f"{where}: expected {' or '.join(map(str, ends))} bytes, got {len(data)}")


class Llama2cCheckpoint:
    """One of these files; see `checkpoint.Checkpoint`."""

    activation_bits = 8

    def __init__(self, path: Path, tokenizer: Path | None = None) -> None:
        """Map the file.

        Args:
            path: the model.
            tokenizer: its tokenizer, a SentencePiece model or llama2.c's tokenizer.bin.

        Raises:
            ModelError: it is none of the formats.
        """
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as err:
            raise ModelError(f"{path.name}: cannot be mapped: {err}") from err
        self._where, self._tokenizer = path.name, tokenizer
        self._sizes, layout = _layout(self._data, path.name)
        self._places = layout.places
        self._is_bit = any(place.scale_at is not None for place in self._places.values())
        self._gains = dict(self._gainless()) if self._is_bit else {}
        self.config: Mapping[str, Any] = self._config()

    def _config(self) -> dict[str, Any]:
        s = self._sizes
        return {
            "architectures": ["BitNetForCausalLM" if self._is_bit else "LlamaForCausalLM"],
            "hidden_size": s.dim,
            "intermediate_size": s.ffn,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads,
            "head_dim": s.head_dim,
            "vocab_size": s.vocab,
            "max_position_embeddings": s.context,
            "rms_norm_eps": TERNARY_EPS if self._is_bit else RMS_EPS,
            "rope_theta": ROPE_THETA,
            "rope_scaling": None,
            "hidden_act": "silu",
            "tie_word_embeddings": "lm_head.weight" not in self._places,
            "bos_token_id": BOS_ID,
            "eos_token_id": [BOS_ID, EOS_ID],  # stories were trained one behind the other
        }

    def _gainless(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the norms that the format implies: every matrix's input over its length."""
        s = self._sizes
        for i in range(s.layers):
            for inner, n in (
                ("input_layernorm", s.dim),
                ("self_attn.attn_sub_norm", s.dim),
                ("post_attention_layernorm", s.dim),
                ("mlp.ffn_sub_norm", s.ffn),
            ):
                yield f"model.layers.{i}.{inner}.weight", np.full(n, 1 / n, np.float32)

    def shapes(self) -> Mapping[str, Shape]:
        """Name every tensor and its shape."""
        gains = {name: values.shape for name, values in self._gains.items()}
        return gains | {name: place.shape for name, place in self._places.items()}

    def is_ternary(self, name: str) -> bool:
        """Say whether a tensor is stored as trits."""
        return name in self._places and self._places[name].scale_at is not None

    def _rows(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Put rows of q and k in the rotate-half order."""
        heads = {"q_proj": self._sizes.heads, "k_proj": self._sizes.kv_heads}
        n = heads.get(name.split(".")[-2]) if name.count(".") > 1 else None
        if n is None:
            return values
        pairs = values.reshape(n, -1, 2, values.shape[1])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)

    def trits(self, name: str) -> TritMatrix:
        """Decode a matrix.

        Raises:
            ModelError: a code has no meaning, or the scale is no number above 0.
        """
        place = self._places[name]
        out, width = place.shape
        data = np.frombuffer(self._data, np.uint8, out * width // 4, place.at)
        trits = _TRITS[(data[:, None] >> np.array([6, 4, 2, 0], np.uint8)) & 3].reshape(out, width)
        (scale,) = struct.unpack_from("<f", self._data, place.scale_at or 0)
        if trits.max(initial=0) > 1 or not 0 < scale < float("inf"):
            raise ModelError(f"{self._where}: {name}: a code or the scale ({scale}) is no trits'")
        lift = LIFT if name.endswith(_LIFTED) else 1.0
        return TritMatrix(self._rows(name, trits), np.full((1, 1), scale * lift, np.float32))

    def floats(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Read rows as float32."""
        if name in self._gains:
            return self._gains[name][begin:end]
        if self.is_ternary(name):
            matrix = self.trits(name)
            return (matrix.trits * matrix.scales).astype(np.float32)[begin:end]
        place = self._places[name]
        count = int(np.prod(place.shape, dtype=np.int64))
        values = np.frombuffer(self._data, "<f4", count, place.at).reshape(place.shape)
        if len(place.shape) == 2:
            values = self._rows(name, values)
        return values[begin:end].astype(np.float32)

    def tokenizer(self) -> TokenizerFiles | None:
        """Read the tokenizer that was named; None when none was.

        Raises:
            ModelError: it is unsound.
        """
        if self._tokenizer is None:
            return None
        from edgeagent.convert.tokenizers import from_pieces

        return from_pieces(read_pieces(self._tokenizer, self._sizes.vocab), self._tokenizer.name)


# ---- tokenizer.bin ----


def read_pieces(path: Path, n: int) -> Pieces:
    """Read the vocabulary of `n` tokens from a SentencePiece model or a tokenizer.bin.

    Raises:
        ModelError: it is neither.
    """
    from edgeagent.convert.sentencepiece import read_spm

    if path.suffix != ".bin":
        return read_spm(path)
    return parse_bin(read_bounded(path, MAX_PIECES * 16), n, path.name)


def _token(data: bytes, at: int, where: str) -> tuple[bytes, float, int]:
    """Return the text, the score and where the next token begins."""
    if at + 8 > len(data):
        raise ModelError(f"{where}: cut short at byte {at}")
    score, size = struct.unpack_from("<fi", data, at)
    if not 0 <= size <= MAX_TOKEN_BYTES or at + 8 + size > len(data):
        raise ModelError(f"{where}: a token of {size} bytes at byte {at}")
    return data[at + 8 : at + 8 + size], score, at + 8 + size


def parse_bin(data: bytes, n: int, where: str) -> Pieces:
    """Parse llama2.c's tokenizer.bin: i32 longest, then score, length and bytes of each token.

    Spaces stand for SentencePiece's sign of a space; ids 0 to 258 are fixed.

    Raises:
        ModelError: it is no such file, or has not `n` tokens.
    """
    if not FIRST_BYTE_ID + 256 <= n <= MAX_PIECES:
        raise ModelError(f"{where}: expected a vocabulary from {FIRST_BYTE_ID + 256}, got {n}")
    texts, scores, at = ["<unk>", "<s>", "</s>"], [0.0, 0.0, 0.0], 4
    for i in range(n):
        raw, score, at = _token(data, at, where)
        if i < FIRST_BYTE_ID:
            continue
        try:
            texts.append(raw.decode().replace(" ", "\u2581"))
        except UnicodeDecodeError as err:
            raise ModelError(f"{where}: token {i}: not UTF-8: {err}") from err
        scores.append(score)
    if at != len(data):
        raise ModelError(f"{where}: expected {at} bytes for {n} tokens, got {len(data)}")
    for i in range(256):
        if texts[FIRST_BYTE_ID + i] != f"<0x{i:02X}>":
            raise ModelError(f"{where}: token {FIRST_BYTE_ID + i}: expected <0x{i:02X}>")
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (n - FIRST_BYTE_ID - 256)]
    return Pieces(texts, scores, types, UNK_ID, BOS_ID, EOS_ID)
