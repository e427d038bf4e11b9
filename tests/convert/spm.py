"""Writes SentencePiece model files, field by field: what sentencepiece.py must read."""

from __future__ import annotations

import itertools
import struct


def varint(n: int) -> bytes:
    n &= (1 << 64) - 1
    out = bytearray()
    while True:
        out.append((n & 0x7F) | (0x80 if n > 0x7F else 0))
        n >>= 7
        if not n:
            return bytes(out)


def number(field: int, n: int) -> bytes:
    return varint(field << 3) + varint(n)


def block(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def piece(text: str, score: float, kind: int | None = None) -> bytes:
    data = block(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
    return block(1, data + (number(3, kind) if kind is not None else b""))


def model(pieces, trainer=None, normaliser=None) -> bytes:
    """Pieces are (text, score, type); the other two are {field: number}."""
    settings = {3: 2} | (trainer or {})
    data = b"".join(piece(*p) for p in pieces)
    data += block(2, b"".join(number(f, n) for f, n in settings.items()))
    return data + block(3, b"".join(number(f, n) for f, n in (normaliser or {}).items()))


SPECIAL = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
BYTES = [(f"<0x{i:02X}>", 0.0, 6) for i in range(256)]


def vocabulary(texts) -> list:
    """Special tokens, bytes, then texts in falling score, single characters last."""
    return [*SPECIAL, *BYTES, *((text, -float(i), 1) for i, text in enumerate(texts))]


def ids_of(text: str, pieces, *, prefix: bool = True) -> list[int]:
    """The algorithm itself, as slowly as it is simple: the best pair, the leftmost of equals."""
    by_text = {t: (i, score) for i, (t, score, kind) in enumerate(pieces) if kind in (1, 4)}
    bytes_at = next(i for i, (_, _, kind) in enumerate(pieces) if kind == 6)
    symbols = list(("\u2581" if prefix and text else "") + text.replace(" ", "\u2581"))
    while True:
        pairs = [
            (-by_text[a + b][1], i)
            for i, (a, b) in enumerate(itertools.pairwise(symbols))
            if a + b in by_text
        ]
        if not pairs:
            break
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    ids = []
    for symbol in symbols:
        if symbol in by_text:
            ids.append(by_text[symbol][0])
        else:
            ids += [bytes_at + byte for byte in symbol.encode()]
    return ids
