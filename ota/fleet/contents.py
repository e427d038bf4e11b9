"""What a repository's signed targets say; payloads, written and read back while they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tuf.api._payload import Targets

from ota.container import Container
from ota.encoder import Encoder
from ota.release import RELEASE_FILE, Release, short_root
from ota.storage import Directory, OpenFile
from ota.trust import channel_target
from ota.wire import CHUNK_BYTES, ranges

Scratch = Callable[[], Any]


def model_names(targets: Targets) -> list[str]:
    """Return the models that have a channel."""
    names = {target.split("/")[1] for target in targets.targets}
    return sorted(name for name in names if channel_target(name) in targets.targets)


def releases_of(targets: Targets, name: str) -> list[dict[str, Any]]:
    """Return what is released of a model."""
    return [
        {key: info.custom[key] for key in ("version", "counter", "root", "full_bytes")}
        for target, info in sorted(targets.targets.items())
        if target.startswith(f"models/{name}/") and target.endswith(f"/{RELEASE_FILE}")
    ]


def deltas_of(targets: Targets, name: str) -> list[dict[str, Any]]:
    """Return the deltas of a model: from, to and bytes."""
    return [
        {"base": short_root(info.custom["base"]), "root": short_root(info.custom["root"])}
        | {"bytes": info.length}
        for target, info in sorted(targets.targets.items())
        if target.startswith(f"models/{name}/deltas/")
    ]


def delta_roots(targets: Targets, name: str) -> list[tuple[str, str]]:
    """Return the whole roots that a model's deltas lead from and to."""
    return [
        (info.custom["base"], info.custom["root"])
        for target, info in targets.targets.items()
        if target.startswith(f"models/{name}/deltas/")
    ]


def write_reversible(
    base: tuple[Release, Directory],
    result: tuple[Release, Directory],
    out: IO[bytes],
    scratch: Scratch,
) -> None:
    """Write a delta that can be turned round and added to others."""
    Encoder(base, result, scratch, reversible=True).write(out)


def decode(blob: OpenFile, base: tuple[Release, Directory] | None) -> int:
    """Make every file of a container and drop it: its hashes are checked on the way."""
    release, files = base if base else (None, Directory(Path()))
    container = Container(blob, release)
    for _, pieces in container.make(files):
        for _ in pieces:
            pass
    return container.written_bytes


def chunk_hashes(blob: OpenFile, length: int) -> bytes:
    """Return the SHA-256 of every chunk, one behind the other."""
    return b"".join(
        hashlib.sha256(blob.read_at(offset, n_bytes)).digest()
        for offset, n_bytes in ranges(length, CHUNK_BYTES)
    )
