"""How many bytes a delta costs, against the Shannon bound and against general tools.

    python bench/delta.py [--trits 20000000] [--out bench/results]

One model of random trits (42 % zeros, as in BitNet b1.58 2B4T) in shards of 3.4 M trits;
independent flips at several rates, zeros to a random sign and signs to zero.  The bound is n H(p)
for the places, with p the share that really flipped, and one bit for each zero that got a sign.
``patch_from`` is zstd level 19 with the old shard as prefix and a window that covers it, what
``zstd --patch-from`` does.  Decoding is timed as a device does it, without numpy, in this process.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import json
import math
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import zstandard

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ota.container import Container  # noqa: E402
from ota.delta import Column  # noqa: E402
from ota.encoder import Encoder  # noqa: E402
from ota.release import FileEntry, Health, make_release  # noqa: E402

RATES = (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1)
P_ZERO = 0.42
SHARD_TRITS = 3_407_872
SEED = 20


class Memory:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        return self.files[name][offset : offset + length]


class Blob:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def shard(codes: np.ndarray) -> bytes:
    quads = codes.reshape(-1, 4)
    plane = quads[:, 0] | quads[:, 1] << 2 | quads[:, 2] << 4 | quads[:, 3] << 6
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [len(plane)], "data_offsets": [0, len(plane)]}}
    ).encode()
    header += b" " * (-(len(header) + 8) % 64)
    return len(header).to_bytes(8, "little") + header + plane.tobytes()


def release(files: dict[str, bytes], version: str, counter: int):
    table = {n: FileEntry(len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()}
    return make_release("bench", version, counter, table, Health())


def entropy_bits(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def encode(old, new) -> tuple[bytes, float]:
    out = io.BytesIO()
    start_s = time.perf_counter()
    Encoder(old, new).write(out)
    return out.getvalue(), time.perf_counter() - start_s


def decode(data: bytes, old, new_files: dict[str, bytes]) -> tuple[Container, float]:
    start_s = time.perf_counter()
    container = Container(Blob(data), old[0])
    for _, pieces in container.make(old[1]):
        for _ in pieces:
            pass
    seconds = time.perf_counter() - start_s
    made = {name: b"".join(pieces) for name, pieces in container.make(old[1])}
    assert all(new_files[name] == data for name, data in made.items())
    return container, seconds


def patch_from(old: bytes, new: bytes) -> int:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=24, enable_ldm=True, source_size=len(new)
    )
    prefix = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    packer = zstandard.ZstdCompressor(compression_params=parameters, dict_data=prefix)
    return len(packer.compress(new))


def measure(codes: np.ndarray, rate: float, rng: np.random.Generator) -> dict:
    hit = rng.random(codes.size) < rate
    signs = rng.choice(np.array([0, 2], np.uint8), codes.size)
    changed = np.where(hit, np.where(codes == 1, signs, 1), codes).astype(np.uint8)
    names = [f"s{k}.safetensors" for k in range(codes.size // SHARD_TRITS)]
    old_files, new_files = (
        {n: shard(part) for n, part in zip(names, np.split(array, len(names)), strict=True)}
        for array in (codes, changed)
    )
    old = (release(old_files, "1.0.0", 1), Memory(old_files))
    new = (release(new_files, "1.1.0", 2), Memory(new_files))
    data, encode_s = encode(old, new)
    container, decode_s = decode(data, old, new_files)
    n_flips, n_signs = int(hit.sum()), int((hit & (codes == 1)).sum())
    bound = (codes.size * entropy_bits(n_flips / codes.size) + n_signs) / 8
    columns = sum(size.packed for column, size in container.sizes.items() if column != Column.BYTES)
    patched = patch_from(old_files[names[0]], new_files[names[0]]) * len(names)
    return {
        "rate": rate,
        "n_flips": n_flips,
        "bound_bytes": round(bound),
        "delta_bytes": len(data),
        "delta_over_bound": round(len(data) / bound, 4),
        "columns_over_bound": round(columns / bound, 4),
        "patch_from_over_bound": round(patched / bound, 4),
        "encode_s": round(encode_s, 3),
        "decode_s": round(decode_s, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trits", type=int, default=6 * SHARD_TRITS)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    args = parser.parse_args()
    rng = np.random.default_rng(SEED)
    n_shards = max(args.trits // SHARD_TRITS, 1)
    codes = rng.choice(
        np.array([0, 1, 2], np.uint8),
        n_shards * SHARD_TRITS,
        p=[(1 - P_ZERO) / 2, P_ZERO, (1 - P_ZERO) / 2],
    )
    files = {f"s{k}.safetensors": shard(p) for k, p in enumerate(np.split(codes, n_shards))}
    image, full_s = encode(None, (release(files, "1.0.0", 1), Memory(files)))
    trit_entropy = P_ZERO * -math.log2(P_ZERO) + (1 - P_ZERO) * -math.log2((1 - P_ZERO) / 2)
    rows = []
    for rate in RATES:
        rows.append(measure(codes, rate, rng))
        print(rows[-1])
    result = {
        "what": "delta size over the Shannon bound",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": subprocess.check_output(
            ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], text=True
        ).strip(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "zstandard": zstandard.__version__,
        "n_trits": int(codes.size),
        "full": {
            "packed_bytes": codes.size // 4,
            "image_bytes": len(image),
            "image_over_entropy": round(len(image) * 8 / (codes.size * trit_entropy), 4),
            "encode_s": round(full_s, 2),
        },
        "rates": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"delta-{result['date'][:10]}-{codes.size // 1_000_000}M.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(result["full"], path)


if __name__ == "__main__":
    main()
