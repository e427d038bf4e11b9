"""What other ways of writing down a change cost; used by ``bench/delta.py``.

All get the packed bytes as they lie on the disk, old and new, and are asked for their best: zstd at
level 19 with a window over everything.  None of them carries a hash of anything.
"""

from __future__ import annotations

from collections.abc import Callable

import bsdiff4
import numpy as np
import zstandard

LEVEL = 19


def _pack(data: bytes, prefix: bytes = b"") -> bytes:
    window_log = max(10, min(27, (len(data) + len(prefix)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, window_log=window_log, enable_ldm=True, source_size=len(data)
    )
    content = None
    if prefix:
        content = zstandard.ZstdCompressionDict(prefix, zstandard.DICT_TYPE_RAWCONTENT)
    packer = zstandard.ZstdCompressor(compression_params=parameters, dict_data=content)
    packed: bytes = packer.compress(data)
    return packed


def patch_from(old: bytes, new: bytes) -> bytes:
    """What ``zstd -19 --long=27 --patch-from=OLD NEW`` writes."""
    return _pack(new, old)


def bsdiff(old: bytes, new: bytes) -> bytes:
    patch: bytes = bsdiff4.diff(old, new)
    return patch


def xor(old: bytes, new: bytes) -> bytes:
    """Byte-wise XOR, then zstd."""
    return _pack((np.frombuffer(old, np.uint8) ^ np.frombuffer(new, np.uint8)).tobytes())


def index_value(old: bytes, new: bytes) -> bytes:
    """A u32 index and a byte a changed trit, each in its array, then zstd; 2-bit planes only."""
    a, b = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    at = np.flatnonzero(a != b)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    before, after = a[at, None] >> shifts & 3, b[at, None] >> shifts & 3
    rows, cols = np.nonzero(before != after)
    index = (at[rows] * 4 + cols).astype("<u4")
    return _pack(index.tobytes()) + _pack(after[rows, cols].tobytes())


def gap_value(old: bytes, new: bytes) -> bytes:
    """The same with gaps instead of indices, in the fewest bytes that hold the largest."""
    a, b = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    at = np.flatnonzero(a != b)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    before, after = a[at, None] >> shifts & 3, b[at, None] >> shifts & 3
    rows, cols = np.nonzero(before != after)
    gaps = np.diff(at[rows] * 4 + cols, prepend=0).astype("<u4").view(np.uint8).reshape(-1, 4)
    return b"".join(_pack(gaps[:, k].tobytes()) for k in range(4)) + _pack(
        after[rows, cols].tobytes()
    )


def full(old: bytes, new: bytes) -> bytes:
    """The new model alone."""
    del old
    return _pack(new)


PEERS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "zstd --patch-from": patch_from,
    "bsdiff4": bsdiff,
    "XOR + zstd -19": xor,
    "index + value + zstd": index_value,
    "gaps + value + zstd": gap_value,
    "full model, zstd -19": full,
}

QUICK = ("XOR + zstd -19", "index + value + zstd", "gaps + value + zstd")
