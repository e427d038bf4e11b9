"""A repository in a directory: a USB stick, a mounted share.  Verified like any other source."""

from __future__ import annotations

from pathlib import Path

from ota.device.source import Piece, Source
from ota.errors import ObjectMissing, TransportError
from ota.wire import is_object


class DirSource(Source):
    """Reads the objects of the repository at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fetch(self, name: str, offset: int, length: int) -> Piece:
        """Return up to ``length`` bytes of object ``name``; fewer only at its end."""
        if not is_object(name):
            raise ObjectMissing(f"{name}: expected an object below metadata/ or targets/")
        path = self._path / name
        try:
            with path.open("rb") as file:
                total = file.seek(0, 2)
                file.seek(offset)
                return Piece(offset, file.read(length), total)
        except FileNotFoundError:
            raise ObjectMissing(f"{path}: no such object in this repository") from None
        except OSError as err:
            raise TransportError(f"{path}: {err.strerror}; is the medium still there?") from err
