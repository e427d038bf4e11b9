"""Read Zstandard-compressed text and tar archives."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def read_bytes(path: Path) -> bytes:
    """Return the decompressed content of a ``.zst`` file."""
    import zstandard  # part of the optional training extra

    with path.open("rb") as source, zstandard.ZstdDecompressor().stream_reader(source) as reader:
        return reader.read()


def read_text(path: Path) -> str:
    """Return the decompressed content of a ``.zst`` file as text."""
    return read_bytes(path).decode("utf-8", errors="replace").lstrip("\ufeff")


def read_tar(path: Path) -> dict[str, bytes]:
    """Return the regular files of a ``.tar.zst`` by name."""
    with tarfile.open(fileobj=io.BytesIO(read_bytes(path))) as tar:
        members = [member for member in tar.getmembers() if member.isfile()]
        return {m.name: f.read() for m in members if (f := tar.extractfile(m)) is not None}
