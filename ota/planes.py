"""Which byte ranges of a safetensors shard are planes of trits.  Pure; only the encoder asks.

A strict reader of the header alone (``docs/formats.md`` sections 2 and 3).  A file that it does not
understand is no error: it is then encoded as plain bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LENGTH_BYTES = 8  # the header's length, little-endian, opens the file
MAX_HEADER_BYTES = 1 << 20  # one layer has about 20 tensors; 100 MB is the format's own limit


@dataclass(frozen=True, slots=True)
class Span:
    """One tensor's bytes in its file."""

    name: str
    start: int
    length: int
    dtype: str = ""
    dims: tuple[int, ...] = ()


def header_length(prefix: bytes, file_bytes: int) -> int | None:
    """Return the length of the header that ``prefix`` announces, or None if this is no shard."""
    if len(prefix) < LENGTH_BYTES:
        return None
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    return length if length <= min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES) else None


def parse_header(header: bytes, file_bytes: int) -> list[Span] | None:
    """Return the tensors in the order of the file, or None unless they fill it exactly."""
    try:
        table = json.loads(header)
    except (ValueError, RecursionError):
        return None
    if not isinstance(table, dict):
        return None
    data_start = LENGTH_BYTES + len(header)
    spans = []
    for name, entry in table.items():
        if name == "__metadata__":
            continue
        span = _span(name, entry, data_start)
        if span is None:
            return None
        spans.append(span)
    spans.sort(key=lambda span: span.start)
    position = data_start
    for span in spans:
        if span.start != position:
            return None
        position += span.length
    return spans if position == file_bytes else None


def _span(name: str, entry: Any, data_start: int) -> Span | None:
    if not isinstance(entry, Mapping):
        return None
    match (entry.get("data_offsets"), entry.get("shape")):
        case ([int(start), int(end)], [*dims]) if 0 <= start <= end:
            if not all(type(dim) is int for dim in dims):
                return None
            dtype = str(entry.get("dtype"))
            return Span(name, data_start + start, end - start, dtype, tuple(dims))
    return None
