"""A tokenizer as GGUF metadata, for llama.cpp: the way back from `tokenizer.json`.

GGUF has no room for a tokenizer in general: it has a vocabulary, merges or scores, and the name of
one of the rules that llama.cpp knows.  What is not one of them is refused, because other ids would
be worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeagent.convert.checkpoint import TokenizerFiles
from edgeagent.convert.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Pieces,
)
from edgeagent.convert.templates import END_OF_TURN
from edgeagent.convert.tokenizers_bytes import CUTTINGS, GPT2
from edgeagent.convert.tokenizers_spm import SPACE, merges
from edgeagent.errors import ModelError
from edgeagent.model.tokenizer import BEGIN_WITH_BOS

WHERE = "tokenizer.json"
#: The first name of llama.cpp's that cuts like this; falcon_e and the like are other names.
_NAMES = (
    "llama-bpe", "qwen2", "stablelm2", "gpt-2", "olmo", "smollm", "default", "smaug-bpe",
)  # fmt: skip
_BYTE_TOKENS = {f"<0x{i:02X}>" for i in range(256)}

Json = Mapping[str, Any]


def _refuse(what: str) -> ModelError:
    return ModelError(
        f"{WHERE}: {what}: llama.cpp has no such tokenizer; export without one (--no-tokenizer)"
    )


def _patterns(step: Json) -> list[str]:
    """Return the patterns that one pre-tokenizer cuts by."""
    kind = step.get("type")
    if kind == "Sequence":
        return [pattern for inner in step["pretokenizers"] for pattern in _patterns(inner)]
    if kind == "Split" and step.get("behavior") == "Isolated" and "Regex" in step["pattern"]:
        return [str(step["pattern"]["Regex"])]
    if kind == "Digits":
        return [r"\p{N}" if step.get("individual_digits") else r"\p{N}+"]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return [GPT2] if step.get("use_regex", True) else []
    raise _refuse(f"pre-tokenizer {kind}")


def _pre(tokenizer: Json) -> str:
    """Return the name of the rules by which text is cut."""
    patterns = tuple(_patterns(tokenizer["pre_tokenizer"]))
    nfc = (tokenizer.get("normalizer") or {}).get("type") == "NFC"
    if tokenizer.get("normalizer") and not nfc:
        raise _refuse("a normalizer")
    ignore = bool(tokenizer["model"].get("ignore_merges"))
    for name in _NAMES:
        how = CUTTINGS[name]
        if (how.patterns, how.nfc, how.ignore_merges) == (patterns, nfc, ignore):
            return name
    for name in _NAMES:  # composing characters is not llama.cpp's: without is the next best
        how = CUTTINGS[name]
        if (how.patterns, how.ignore_merges) == (patterns, ignore):
            return name
    raise _refuse(f"cutting by {patterns!r}")


def _vocabulary(tokenizer: Json, size: int) -> tuple[list[str], list[int]]:
    """Return text and type of every token, padded to the rows of the embedding."""
    ids = dict(tokenizer["model"]["vocab"])
    added = {entry["content"]: entry for entry in tokenizer.get("added_tokens", ())}
    ids |= {text: entry["id"] for text, entry in added.items()}
    if sorted(ids.values()) != list(range(len(ids))) or len(ids) > size:
        raise ModelError(f"{WHERE}: expected ids from 0 to {size - 1} at most, each once")
    texts = sorted(ids, key=ids.__getitem__)
    unknown = tokenizer["model"].get("unk_token")
    types = []
    for text in texts:
        entry = added.get(text)
        if text == unknown:
            types.append(UNKNOWN)
        elif entry is not None:
            types.append(CONTROL if entry["special"] else USER_DEFINED)
        elif tokenizer["model"].get("byte_fallback") and text in _BYTE_TOKENS:
            types.append(BYTE)
        else:
            types.append(NORMAL)
    n_pads = size - len(texts)
    pads = [f"[PAD{i}]" for i in range(len(texts), size)]
    return texts + pads, types + [UNUSED] * n_pads


def _pairs(tokenizer: Json) -> list[tuple[str, str]]:
    pairs = [
        merge.split(" ", 1) if isinstance(merge, str) else merge
        for merge in tokenizer["model"]["merges"]
    ]
    return [(left, right) for left, right in pairs]


def _normalises_spaces(tokenizer: Json) -> bool:
    """Say whether a space is put before a text.

    Raises:
        ModelError: text is prepared in another way than llama.cpp does.
    """
    step = tokenizer.get("normalizer") or {}
    steps = step.get("normalizers", [step])
    prefix = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if tokenizer.get("pre_tokenizer") or steps not in ([prefix, replace], [replace]):
        raise _refuse("text prepared otherwise than SentencePiece does")
    return bool(steps[0] == prefix)


def _spm(tokenizer: Json, texts: list[str], types: list[int]) -> dict[str, Any]:
    """Return scores that make llama.cpp merge in the order of the merges."""
    pairs = _pairs(tokenizer)
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(pairs):
        rank.setdefault(left + right, i)
    scores = [float(-rank.get(text, len(pairs))) for text in texts]
    prefix = _normalises_spaces(tokenizer)
    pieces = Pieces(texts, scores, types, None, None, None)
    if {(left, right) for left, right in merges(pieces, WHERE)} != set(pairs):
        raise _refuse("merges that are not all cuts of all pieces")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _bytes(tokenizer: Json, texts: list[str], types: list[int]) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre(tokenizer),
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _pairs(tokenizer)],
    }


def tokenizer_metadata(files: TokenizerFiles, size: int) -> dict[str, Any]:
    """Return the keys `tokenizer.*`.

    Args:
        files: the tokenizer.
        size: rows of the embedding; a smaller vocabulary is padded.

    Raises:
        ModelError: GGUF cannot say what this tokenizer does.
    """
    tokenizer = files.tokenizer
    if tokenizer["model"].get("type") != "BPE":
        raise _refuse(f"model {tokenizer['model'].get('type')}")
    texts, types = _vocabulary(tokenizer, size)
    is_bytes = bool(tokenizer.get("pre_tokenizer")) and not tokenizer["model"].get("byte_fallback")
    found = (_bytes if is_bytes else _spm)(tokenizer, texts, types)
    ids = {text: i for i, text in enumerate(texts)}
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for key, name in names.items():
        if (text := files.config.get(f"{key}_token")) in ids:
            found[f"tokenizer.ggml.{name}_token_id"] = ids[text]
    turns = [i for i in files.stop_ids if i < len(texts) and texts[i] in END_OF_TURN]
    if turns:
        found["tokenizer.ggml.eot_token_id"] = turns[-1]
    found["tokenizer.ggml.add_bos_token"] = files.config.get(BEGIN_WITH_BOS) is not False
    if isinstance(files.config.get("chat_template"), str):
        found["tokenizer.chat_template"] = files.config["chat_template"]
    return found
