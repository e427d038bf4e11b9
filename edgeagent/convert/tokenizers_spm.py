"""A SentencePiece vocabulary as the `tokenizer.json` that the device loads.

SentencePiece merges, of all neighbouring pieces that make a piece, the pair whose piece has the
highest score, the leftmost of equals (github.com/google/sentencepiece, bpe_model.cc); llama.cpp
does the same with what GGUF calls a tokenizer of model `llama`.  The `tokenizers` library merges
the pair that comes first in a list.  So: every way to cut a piece in two pieces becomes an entry,
in descending order of the piece's score.  Two cuts of one piece have one score but need two places;
the order among them only matters where two pairs that make the same piece overlap, and there the
left one must win (see `_cuts`).

A user-defined piece ends a run of text: the word behind it gets the space that begins a text.  So
it is in transformers and in llama.cpp; the sentencepiece library does not put that space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeagent.convert.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Pieces,
)
from edgeagent.errors import ModelError

SPACE = "\u2581"
#: Characters of a piece; SentencePiece's own default limit is 16, long runs of spaces reach 128.
MAX_PIECE_CHARS = 512
#: Llama 2 has 1.9 cuts a piece, Gemma 2.2: more is a file made to fill the memory.
MAX_CUTS_A_PIECE = 8

Json = dict[str, Any]


def added_token(i: int, text: str, *, special: bool) -> Json:
    """Return an entry of `added_tokens`: found in the text before anything else is done."""
    return {
        "id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": special,
    }  # fmt: skip


def begins_with(text: str, i: int) -> Json:
    """Return the post-processor that puts one token before a text."""
    token = {"SpecialToken": {"id": text, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [token, first],
        "pair": [token, first, token, second],
        "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]}},
    }


def vocabulary(texts: Sequence[str], where: str) -> dict[str, int]:
    """Return text to id.

    Raises:
        ModelError: two tokens have the same text.
    """
    vocab = {text: i for i, text in enumerate(texts)}
    if len(vocab) != len(texts):
        odd = next(i for i, text in enumerate(texts) if vocab[text] != i)
        raise ModelError(f"{where}: token {odd}: {texts[odd]!r} is there twice")
    return vocab


def _overlaps(piece: str, length: int) -> bool:
    """Say whether the first `length` characters of a piece are its last ones too."""
    return piece.startswith(piece[len(piece) - length :])


def _cuts(piece: str, vocab: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the ways to make `piece` of two others, in the order of their merges.

    Longer left parts come first, as in the converter of transformers.  Where x + y and y + z both
    make the piece, its cut behind x must come before its cut behind y for the left pair to win;
    that is the order already when y is the shorter part, and is put right when it is the longer.
    Where both hold (aaaa of a + aaa, and of aaa + a) no order is right for every text.
    """
    n = len(piece)
    found = [at for at in range(n - 1, 0, -1) if piece[:at] in vocab and piece[at:] in vocab]
    for at in [at for at in found if at > n // 2 and n - at in found]:
        if _overlaps(piece, at) and not _overlaps(piece, n - at):
            i, j = found.index(at), found.index(n - at)
            found[i], found[j] = found[j], found[i]
    for at in found:
        yield piece[:at], piece[at:]


def merges(pieces: Pieces, where: str) -> list[list[str]]:
    """Return the pairs to merge, the first ones first.

    Raises:
        ModelError: there are more of them than any real model has.
    """
    real = [
        i
        for i, kind in enumerate(pieces.types)
        if kind in (NORMAL, USER_DEFINED) and pieces.texts[i]
    ]
    vocab = {pieces.texts[i]: i for i in real}
    found: list[list[str]] = []
    for i in sorted(real, key=lambda i: (-pieces.scores[i], i)):
        if len(pieces.texts[i]) > MAX_PIECE_CHARS:
            raise ModelError(f"{where}: token {i}: expected at most {MAX_PIECE_CHARS} characters")
        found += ([a, b] for a, b in _cuts(pieces.texts[i], vocab))
        if len(found) > MAX_CUTS_A_PIECE * len(pieces.texts) + MAX_PIECE_CHARS:
            raise ModelError(f"{where}: expected at most {MAX_CUTS_A_PIECE} cuts a piece")
    return found


def _normalisers(pieces: Pieces) -> Json:
    steps: list[Json] = []
    if pieces.collapse_spaces:
        ends, runs = rf"\A +|[ {SPACE}]+\z", " {2,}"  # spaces alone: a tab at an end stays
        steps.append({"type": "Replace", "pattern": {"Regex": ends}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": runs}, "content": " "})
    if pieces.space_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _decoders(pieces: Pieces) -> Json:
    steps: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if pieces.space_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _added(pieces: Pieces) -> list[Json]:
    special = {UNKNOWN: True, CONTROL: True, USER_DEFINED: False}
    return [
        added_token(i, pieces.texts[i], special=special[kind])
        for i, kind in enumerate(pieces.types)
        if kind in special and pieces.texts[i]
    ]


def _check(pieces: Pieces, where: str) -> None:
    if pieces.charsmap:
        raise ModelError(
            f"{where}: expected characters left as they are (identity), got a compiled "
            "normalisation, which the tokenizers library applies in another way: "
            "put a tokenizer.json of the same model beside it"
        )
    n_bytes = sum(kind == BYTE for kind in pieces.types)
    if n_bytes not in (0, 256):
        raise ModelError(f"{where}: expected 256 byte tokens or none, got {n_bytes}")
    if not n_bytes and pieces.unk_id is None:
        raise ModelError(f"{where}: no byte tokens and no unknown token: some text has no ids")
    if any(score != score for score in pieces.scores):
        raise ModelError(f"{where}: a score is not a number")


def spm_tokenizer(pieces: Pieces, where: str, *, add_bos: bool) -> Json:
    """Return the object of `tokenizer.json`.

    Raises:
        ModelError: the vocabulary disagrees with itself.
    """
    _check(pieces, where)
    bos = pieces.bos_id if add_bos else None
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(pieces),
        "normalizer": _normalisers(pieces),
        "pre_tokenizer": None,
        "post_processor": None if bos is None else begins_with(pieces.texts[bos], bos),
        "decoder": _decoders(pieces),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if pieces.unk_id is None else pieces.texts[pieces.unk_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": BYTE in pieces.types,
            "ignore_merges": False,
            "vocab": vocabulary(pieces.texts, where),
            "merges": merges(pieces, where),
        },
    }
