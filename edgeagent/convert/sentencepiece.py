"""A SentencePiece model file, read strictly: the pieces, and the few settings that change ids.

The file is a protocol buffer (`sentencepiece_model.proto` of github.com/google/sentencepiece), of
which we need three messages and a dozen fields.  A reader of that much is a page; the package that
reads all of it is another native parser of outside bytes on the operator's machine.

    ModelProto      1 pieces (repeated)   2 trainer_spec   3 normalizer_spec
    SentencePiece   1 piece   2 score (float)   3 type
    TrainerSpec     3 model_type   24 treat_whitespace_as_suffix   35 byte_fallback
                    40 unk_id   41 bos_id   42 eos_id
    NormalizerSpec  2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces
                    5 escape_whitespaces
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeagent.convert.bounded import read_bounded
from edgeagent.errors import ModelError

#: Types of a piece; GGUF's `tokenizer.ggml.token_type` has the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

UNIGRAM, BPE = 1, 2
#: A 256,000-piece model is 4.2 MB.
MAX_BYTES = 32 << 20
MAX_PIECES = 1 << 20
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10

Field = tuple[int, int, int | memoryview]


@dataclass(frozen=True, slots=True)
class Pieces:
    """A SentencePiece vocabulary and how text is prepared for it, wherever it was read.

    Attributes:
        texts: one a token, in the order of ids.
        scores: the higher, the earlier a pair that gives this piece is merged.
        types: `NORMAL` to `BYTE`, one a token.
        unk_id: of what has no piece and no bytes to fall back to; None: there is none.
        bos_id: of the beginning of a text; None: there is none.
        eos_id: of its end; None: there is none.
        space_prefix: a space is put before a text, so that its first word is like any other.
        collapse_spaces: runs of spaces are one, and spaces at both ends are dropped.
        charsmap: the compiled normalisation of characters; empty: they stay what they are.
    """

    texts: list[str]
    scores: list[float]
    types: list[int]
    unk_id: int | None
    bos_id: int | None
    eos_id: int | None
    space_prefix: bool = True
    collapse_spaces: bool = False
    charsmap: bytes = b""


def _varint(data: memoryview, at: int, where: str) -> tuple[int, int]:
    value = 0
    for i in range(_MAX_VARINT_BYTES):
        if at + i >= len(data):
            break
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & ((1 << 64) - 1), at + i + 1
    raise ModelError(f"{where}: a number is cut short or too long at byte {at}")


def _fields(data: memoryview, where: str) -> Iterator[Field]:
    """Yield (number, wire type, value) of one message; a value is a number or a view."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at, where)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at, where)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at, where)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ModelError(f"{where}: not a SentencePiece model: wire type {wire} at byte {at}")
        if size > len(data) - at:
            raise ModelError(
                f"{where}: field {number} says {size} bytes, {len(data) - at} are left"
            )
        yield number, wire, data[at : at + size]
        at += size


def _number(wire: int, value: int | memoryview, where: str) -> int:
    if wire != _VARINT or not isinstance(value, int):
        raise ModelError(f"{where}: expected a number, got wire type {wire}")
    return value


def _view(wire: int, value: int | memoryview, where: str) -> memoryview:
    if wire != _BYTES or not isinstance(value, memoryview):
        raise ModelError(f"{where}: expected bytes, got wire type {wire}")
    return value


def _int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _piece(data: memoryview, where: str) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, wire, value in _fields(data, where):
        if number == 1:
            try:
                text = bytes(_view(wire, value, where)).decode()
            except UnicodeDecodeError as err:
                raise ModelError(f"{where}: a piece is not UTF-8: {err}") from err
        elif number == 2:
            if wire != _FIXED32 or not isinstance(value, memoryview):
                raise ModelError(f"{where}: expected a float as score, got wire type {wire}")
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            kind = _number(wire, value, where)
    if not NORMAL <= kind <= BYTE:
        raise ModelError(f"{where}: {text!r}: expected a type from {NORMAL} to {BYTE}, got {kind}")
    return text, score, kind


def _numbers(data: memoryview, defaults: dict[int, int], where: str) -> dict[int, int]:
    found = dict(defaults)
    for number, wire, value in _fields(data, where):
        if number in found:
            found[number] = _int32(_number(wire, value, where))
    return found


def _charsmap(data: memoryview, where: str) -> bytes:
    for number, wire, value in _fields(data, where):
        if number == 2:
            return bytes(_view(wire, value, where))
    return b""


def _check_algorithm(trainer: dict[int, int], normaliser: dict[int, int], where: str) -> None:
    if trainer[3] != BPE:
        raise ModelError(
            f"{where}: expected a BPE model (model_type {BPE}), got model_type {trainer[3]}: "
            "no ternary family uses it; write a tokenizer.json with transformers"
        )
    if trainer[24] or not normaliser[5]:
        raise ModelError(f"{where}: whitespace as a suffix or unescaped: not supported")


def parse_spm(data: bytes, where: str) -> Pieces:
    """Parse a whole SentencePiece model.

    Raises:
        ModelError: the bytes are none, or one of an algorithm that we do not have.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer = {3: UNIGRAM, 24: 0, 35: 0, 40: 0, 41: 1, 42: 2}
    normaliser, charsmap = {3: 1, 4: 1, 5: 1}, b""
    for number, wire, value in _fields(memoryview(data), where):
        if number == 1:
            pieces.append(_piece(_view(wire, value, where), where))
        elif number == 2:
            trainer = _numbers(_view(wire, value, where), trainer, where)
        elif number == 3:
            spec = _view(wire, value, where)
            normaliser, charsmap = _numbers(spec, normaliser, where), _charsmap(spec, where)
        if len(pieces) > MAX_PIECES:
            raise ModelError(f"{where}: expected at most {MAX_PIECES} pieces")
    if not pieces:
        raise ModelError(f"{where}: not a SentencePiece model: it has no pieces")
    _check_algorithm(trainer, normaliser, where)
    texts, scores, types = zip(*pieces, strict=True)

    def known(i: int) -> int | None:
        return i if 0 <= i < len(texts) else None

    return Pieces(
        list(texts), list(scores), list(types),
        known(trainer[40]), known(trainer[41]), known(trainer[42]),
        space_prefix=bool(normaliser[3]), collapse_spaces=bool(normaliser[4]), charsmap=charsmap,
    )  # fmt: skip


def read_spm(path: Path) -> Pieces:
    """Read a SentencePiece model file.

    Raises:
        ModelError: it cannot be read, is too large, or is no such model.
    """
    data = read_bounded(path, MAX_BYTES)
    if data[:8].isascii() and data[:64].split(b"\n")[0].count(b" ") == 1 and b"=" in data[:64]:
        raise ModelError(
            f"{path.name}: a tiktoken file, expected a SentencePiece model: "
            "put the tokenizer.json of the same model beside it"
        )
    return parse_spm(data, path.name)
