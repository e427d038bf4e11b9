"""Encode and decode small models in memory; shared by the tests of the codec."""

from __future__ import annotations

import hashlib
import io

from ota.container import Container
from ota.encoder import Encoder
from ota.release import FileEntry, Health, Release, make_release
from tests.ota.fakes import Bytes, Files

Model = dict[str, bytes]


def release_of(model: Model, version: str = "1.0.0", counter: int = 1) -> Release:
    files = {
        name: FileEntry(len(data), hashlib.sha256(data).hexdigest()) for name, data in model.items()
    }
    return make_release("edge-test", version, counter, files, Health())


def encode(old: Model | None, new: Model, *, reversible: bool = False) -> bytes:
    out = io.BytesIO()
    base = None if old is None else (release_of(old), Files(old))
    result = (release_of(new, "1.1.0", 2), Files(new))
    Encoder(base, result, reversible=reversible).write(out)
    return out.getvalue()


def decode(data: bytes, old: Model | None) -> Model:
    """Make every file of the result, as a device would."""
    container = Container(Bytes(data), None if old is None else release_of(old))
    made = {name: old[old_name] for name, old_name in container.kept.items()}
    for name, pieces in container.make(Files(old or {})):
        made[name] = b"".join(pieces)
    return made
