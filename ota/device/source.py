"""Where the bytes of an update come from: one interface, so that online and offline are one path.

A source is not trusted.  It serves the objects of a repository (``metadata/...``, ``targets/...``);
TUF and the signed hashes say which of its bytes are believed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ota.errors import TransportError
from ota.wire import CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an object."""

    offset: int
    data: bytes
    total: int
    """Length of the whole object, as the source says."""


class Source(ABC):
    """A repository, as far as a device sees it."""

    @abstractmethod
    def fetch(self, name: str, offset: int, length: int) -> Piece:
        """Return up to ``length`` bytes of object ``name``; fewer only at its end.

        Raises:
            ObjectMissing: there is no such object.
            TransportError: it cannot be had now.
        """

    def pull(self, name: str, ranges: Iterable[tuple[int, int]]) -> Iterator[Piece]:
        """Fetch many (offset, length) of one object; pieces come in any order."""
        for offset, length in ranges:
            yield self.fetch(name, offset, length)

    def stream(self, name: str) -> Iterator[bytes]:
        """Yield a whole object from its beginning; the reader stops when it has had enough.

        Raises:
            ObjectMissing: there is no such object.
            TransportError: it cannot be had now, or ends early.
        """
        offset = 0
        while True:
            piece = self.fetch(name, offset, CHUNK_BYTES)
            yield piece.data
            offset += len(piece.data)
            if offset >= piece.total:
                return
            if not piece.data:
                raise TransportError(
                    f"{name}: the source sent nothing at {offset} of {piece.total}"
                )

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Let go of the connection, if there is one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
