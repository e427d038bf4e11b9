"""What a `tokenizer.json` of a stranger may ask of the tokenizers library.

The library believes its files.  Fuzzing found three ways to hurt the process that loads one: a
prefix of sub-words that is longer than a token (it cuts behind the token's end and may abort), a
post-processor that names a token which is not there (it panics, see `tokenizers.load`), and steps
that each make text longer: twenty times `ByteLevel` is a million bytes for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgeagent.errors import ModelError
from edgeagent.model.files import TOKENIZER_NAME

#: The most that a step does to the length of text.  U+FDFA becomes 18 characters in NFKC and NFKD;
#: a byte beyond ASCII becomes a character of two bytes.
_GROWTH = {"NFKC": 18, "NFKD": 18, "NFC": 3, "NFD": 4, "Precompiled": 18, "ByteLevel": 2}
#: Llama's Prepend and Replace make 3 of 1, GPT-NeoX's NFC and ByteLevel 6.
MAX_GROWTH = 64
#: The longest chain that we know has six steps (DeepSeek's pre-tokenizer).
MAX_STEPS = 32
#: Nested sequences: none of the models that we know has any.
MAX_DEPTH = 4
_CHILDREN = ("normalizers", "pretokenizers", "decoders")


def _refuse(what: str) -> ModelError:
    return ModelError(f"{TOKENIZER_NAME}: {what}")


def _steps(step: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield the single steps of a chain, however it is nested."""
    if not isinstance(step, dict):
        return
    if depth > MAX_DEPTH:
        raise _refuse(f"expected sequences in sequences {MAX_DEPTH} deep at the most")
    children = [child for key in _CHILDREN for child in step.get(key) or ()]
    if not children:
        yield step
    for child in children:
        yield from _steps(child, depth + 1)


def _growth(step: Mapping[str, Any]) -> int:
    kind = step.get("type")
    if kind == "Replace":
        return max(1, len(str(step.get("content", "")).encode(errors="replace")))
    return _GROWTH.get(str(kind), 1)


def _check_chain(step: Any, what: str) -> None:
    growth = 1
    for steps, one in enumerate(_steps(step), 1):
        growth *= _growth(one)
        if steps > MAX_STEPS or growth > MAX_GROWTH:
            raise _refuse(
                f"{what}: expected at most {MAX_STEPS} steps that make text at most {MAX_GROWTH} "
                "times as long"
            )


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse what our families do not have, before the library sees it.

    Raises:
        ModelError: it is another kind of tokenizer, draws lots, or would hurt the process.
    """
    model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise _refuse("expected a model of type BPE")
    if model.get("dropout"):
        raise _refuse("dropout: expected none, ids would be drawn by chance")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refuse(f"{key}: expected none, got {model[key]!r}")
    try:
        for what in ("normalizer", "pre_tokenizer", "decoder"):
            _check_chain(tokenizer.get(what), what)
    except TypeError as err:  # a sequence that is no list
        raise _refuse(f"a chain of steps is none: {err}") from err
