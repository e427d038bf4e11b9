"""Byte-level BPE from GGUF metadata: the vocabulary is there, how text is cut into words is a name.

`tokenizer.ggml.pre` names the cutting.  The patterns are those of the original `tokenizer.json`
files, where the model was trained with them, so that a GGUF file and the Hugging Face directory of
one model give one tokenizer; llama.cpp's own (src/llama-vocab.cpp) are the same rules written for
another regular expression engine.  `default` exists in llama.cpp only and is taken from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeagent.convert.sentencepiece import CONTROL, UNKNOWN, USER_DEFINED
from edgeagent.convert.tokenizers_spm import Json, added_token, begins_with, vocabulary
from edgeagent.errors import ModelError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
_DIGITS_ALONE = (r"\p{N}", GPT2)


@dataclass(frozen=True, slots=True)
class Cutting:
    """How text becomes words.

    Attributes:
        patterns: applied one after the other, each to the pieces that the one before left.
        nfc: characters are composed first.
        ignore_merges: a word that is a token is taken whole, whatever the merges say.
        add_bos: a text begins with the BOS token unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_LLAMA3 = Cutting((LLAMA3,), ignore_merges=True, add_bos=True)
_GPT2 = Cutting((GPT2,))
_NEOX = Cutting((GPT2,), nfc=True)
_QWEN2 = Cutting((QWEN2,), nfc=True)

#: Names as in llama.cpp, but for `falcon_e` (bitnet.cpp, ik_llama.cpp: the rules of `falcon3`).
CUTTINGS = {
    "default": Cutting(_DEFAULT),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "falcon_e": _LLAMA3,
    "falcon-h1": _LLAMA3,
    "gpt-2": _GPT2,
    "mpt": _NEOX,
    "olmo": _NEOX,
    "gpt-neox": _NEOX,
    "dolma": _NEOX,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": Cutting((QWEN2,)),
    "smollm": Cutting(_DIGITS_ALONE),
    "starcoder": Cutting(_DIGITS_ALONE),
    "refact": Cutting(_DIGITS_ALONE),
    "command-r": Cutting(_DIGITS_ALONE),
    "smaug-bpe": Cutting((LLAMA3,)),
    "dbrx": Cutting((LLAMA3,)),
}


def cutting(name: str) -> Cutting:
    """Return how the pre-tokenizer of this name cuts.

    Raises:
        ModelError: we do not know it.
    """
    if name not in CUTTINGS:
        raise ModelError(
            f"tokenizer.ggml.pre: expected one of {', '.join(sorted(CUTTINGS))}, got {name!r}: "
            "convert the Hugging Face directory of the model instead"
        )
    return CUTTINGS[name]


def _split(pattern: str) -> Json:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


def _byte_level() -> Json:
    return {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False
    }  # fmt: skip


def _pair(text: str) -> list[str]:
    at = text.find(" ", 1)
    if at < 0 or at == len(text) - 1:
        raise ModelError(f"tokenizer.ggml.merges: expected two tokens, got {text!r}")
    return [text[:at], text[at + 1 :]]


def _n_model_tokens(types: Sequence[int]) -> int:
    """Return how many tokens belong to the vocabulary of merges.

    Added tokens at its end are kept out of it, as in the files of Llama 3 and Qwen: what a person
    types can then never become one, not even as a whole word.
    """
    n = len(types)
    while n and types[n - 1] in (CONTROL, USER_DEFINED, UNKNOWN):
        n -= 1
    return n


def byte_tokenizer(
    texts: Sequence[str],
    types: Sequence[int],
    merges: Sequence[str],
    how: Cutting,
    *,
    bos_id: int | None,
) -> Json:
    """Return the object of `tokenizer.json`.

    Args:
        texts: one a token, in the alphabet of byte-level BPE.
        types: one a token; control and user-defined ones are found before text is cut.
        merges: pairs, joined by a space, the first ones first.
        how: how text is cut.
        bos_id: of the token that a text begins with; None: it begins with none.

    Raises:
        ModelError: a token is there twice, or a merge is no pair.
    """
    vocabulary(texts, "tokenizer.ggml.tokens")
    kinds = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
    model: dict[str, Any] = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": how.ignore_merges,
        "vocab": {text: i for i, text in enumerate(texts[: _n_model_tokens(types)])},
        "merges": [_pair(merge) for merge in merges],
    }  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(i, texts[i], special=kinds[kind])
            for i, kind in enumerate(types)
            if kind in kinds and texts[i]
        ],
        "normalizer": {"type": "NFC"} if how.nfc else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*map(_split, how.patterns), _byte_level()],
        },
        "post_processor": None if bos_id is None else begins_with(texts[bos_id], bos_id),
        "decoder": _byte_level(),
        "model": model,
    }
