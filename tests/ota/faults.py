"""Sources that misbehave by name, for the table of faults; each is a real ``Source``."""

from __future__ import annotations

import random

from ota.device.dir_source import DirSource
from ota.device.source import Piece
from ota.errors import ObjectMissing, TransportError


class Faulty(DirSource):
    """A repository whose answers are changed on their way by ``change(name, piece, n)``.

    ``n`` counts answers from 0.  ``change`` returns a piece, or raises what a network would.
    """

    def __init__(self, path, change) -> None:
        super().__init__(path)
        self._change = change
        self.n_answers = 0

    def fetch(self, name, offset, length):
        piece = super().fetch(name, offset, length)
        self.n_answers += 1
        return self._change(name, piece, self.n_answers - 1)


class Shuffled(DirSource):
    """Chunks come in any order, some of them twice."""

    def pull(self, name, ranges):
        pieces = [self.fetch(name, *each) for each in ranges]
        pieces += pieces[::2]
        random.Random(7).shuffle(pieces)
        yield from pieces


def payload_only(change):
    """Apply ``change(piece, n)`` to payloads alone; metadata passes."""

    def applied(name, piece, n):
        return change(piece, n) if name.endswith(".etd") else piece

    return applied


def broken_now_and_then(every):
    def change(_name, piece, n):
        if n % every == every - 1:
            raise TransportError("the connection was reset")
        return piece

    return change


def gone(_name, _piece, _n):
    raise TransportError("nobody answered")


def vanished(piece, _n):
    raise ObjectMissing("no such object")


def truncated(piece, _n):
    return Piece(piece.offset, piece.data[: len(piece.data) // 2], piece.total)


def empty(piece, _n):
    return Piece(piece.offset, b"", piece.total)


def longer(piece, _n):
    return Piece(piece.offset, piece.data + b"x", piece.total)


def flipped(piece, _n):
    data = bytearray(piece.data)
    data[len(data) // 2] ^= 1
    return Piece(piece.offset, bytes(data), piece.total)


def elsewhere(piece, _n):
    return Piece(piece.offset + 1, piece.data, piece.total)


def first_is_wrong(piece, n, seen=[]):  # noqa: B006 - remembers between answers
    if piece.offset not in seen:
        seen.append(piece.offset)
        return flipped(piece, n)
    return piece


def in_metadata(role, change):
    def applied(name, piece, _n):
        return change(piece) if name.endswith(f"{role}.json") else piece

    return applied


def endless(piece):
    return Piece(piece.offset, b" " * 65536, 1 << 40)


def no_json(piece):
    return Piece(piece.offset, b"\xff" * len(piece.data), piece.total)


def cut(piece):
    half = piece.data[: len(piece.data) // 2]
    return Piece(piece.offset, half, len(half))


def missing(piece):
    raise ObjectMissing("no such object")
