"""Files of a source, read whole: never more than their kind may have, never more than they have."""

from __future__ import annotations

import os
from pathlib import Path

from edgeagent.errors import ModelError


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises:
        ModelError: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size  # read(limit) would take the limit's memory
            data = file.read(min(size, limit) + 1)
    except OSError as err:
        raise ModelError(f"{path.name}: cannot be read: {err.strerror}") from err
    if len(data) > limit:
        raise ModelError(f"{path.name}: expected at most {limit} bytes, got {size}")
    return data
