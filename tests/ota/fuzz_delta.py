"""Feed broken containers to the decoder: `python tests/ota/fuzz_delta.py --seconds 600`.

Three kinds of breakage, over the golden vectors: any bytes of the container; numbers of its plan,
packed again with a good checksum; bytes of the coded stream, with the right length.  A fourth
drives the coder with random shapes and random streams.  What may come of it is
the right model, or a ``PayloadError``; anything else, and memory beyond the bound, is a bug.
`make fuzz-delta` runs it for ten minutes under the address and undefined-behaviour sanitisers.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import resource
import time
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path

from ota import _flips
from ota.container import MAX_HEAD_BYTES, Container, pack_head, parse_head
from ota.delta import CodedReader, Column, Shape
from ota.encoder import pack_frame
from ota.errors import PayloadError
from ota.plan import Plan, pack_plan
from tests import results
from tests.ota.codec import Model, decode, release_of
from tests.ota.fakes import Bytes

GOLDEN = Path(__file__).parent / "golden" / "delta.json"
BOUND_BYTES = 16 << 20  # what a decoder may hold
HEADROOM_BYTES = 1 << 29  # address space: an allocation that a stream dictates would not fit


@dataclass(frozen=True)
class Vector:
    """A golden vector taken apart."""

    name: str
    old: Model | None
    new: Model
    data: bytes
    plan: Plan
    coded: bytes
    blocks: bytes


def load() -> list[Vector]:
    vectors = []
    for entry in json.loads(GOLDEN.read_text()):
        old, new = (
            entry[key] and {n: base64.b64decode(t) for n, t in entry[key].items()}
            for key in ("old", "new")
        )
        data = base64.b64decode(entry["delta"])
        container = Container(Bytes(data), release_of(old) if old else None)
        start = sum(parse_head(data[:MAX_HEAD_BYTES])[2:])
        end = start + container.sizes[Column.CODED]
        coded, blocks = data[start:end], data[end:]
        vectors.append(Vector(entry["name"], old, new, data, container.plan, coded, blocks))
    return vectors


def any_bytes(vector: Vector, rng: random.Random) -> bytes:
    """Flip, cut, repeat or insert bytes anywhere."""
    return mutated(vector.data, rng)


def mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(5):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del out[at : at + rng.randrange(1, 40)]
            case 3:
                out[at:at] = rng.randbytes(rng.randrange(1, 40))
            case _:
                other = rng.randrange(len(out) + 1)
                out[at:at] = out[other : other + rng.randrange(1, 200)]
    return bytes(out)


def packed_again(vector: Vector, plan: bytes, coded: bytes) -> bytes:
    """Put a container together with good checksums."""
    base = release_of(vector.old) if vector.old else None
    frame = pack_frame(plan, base.text if base else b"")
    head = pack_head(base, vector.plan.release.root, len(frame))
    return head + frame + coded + vector.blocks


def sized(vector: Vector, coded: bytes) -> bytes:
    """The vector's plan with the right length for another coded stream."""
    return pack_plan(replace(vector.plan, n_coded=len(coded)))


def plan_numbers(vector: Vector, rng: random.Random) -> bytes:
    plan = bytearray(sized(vector, vector.coded))
    first = len(vector.plan.release.text)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(first, len(plan)) if rng.random() < 0.9 else rng.randrange(len(plan))
        plan[at] = rng.choice((0, 1, 2, 0x3F, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return packed_again(vector, bytes(plan), vector.coded)


def coded_bytes(vector: Vector, rng: random.Random) -> bytes:
    coded = mutated(vector.coded, rng) if rng.random() < 0.9 else rng.randbytes(rng.randrange(3000))
    return packed_again(vector, sized(vector, coded), coded)


def random_planes(rng: random.Random) -> None:
    """Drive the coder itself with a random shape, stream and old plane."""
    base3 = rng.randrange(2)
    line_bytes = (64 if base3 else 32) * rng.choice((1, 2, 3, rng.randrange(1, 300)))
    most = line_bytes // (64 if base3 else 32) * (320 if base3 else 128)
    n_lines = rng.randrange(1, 8)
    valid = rng.randrange(1, most + 1)
    shape = Shape(
        base3, line_bytes, valid, rng.randrange(n_lines + 1), rng.randrange(valid + 1),
        rng.choice((0, 1, 3)), 1 << rng.randrange(5, 14),
        rng.choice((0, 1, 99, (1 << 14) - 1, 1 << 14)), rng.choice((0, 1, 99, (1 << 14) - 1)),
    )  # fmt: skip
    if not shape.is_ok():
        return
    data = rng.randbytes(rng.choice((0, 5, 100, 5000)))
    data = data if rng.random() < 0.7 else bytes([rng.choice((0, 255))]) * len(data)
    reader = CodedReader([data], rng.choice((0, 1, 1000, 1 << 40)), rng.random() < 0.3)
    top = 243 if base3 else 171
    old = bytes(rng.randrange(top) for _ in range(line_bytes)) * n_lines
    if not base3 and rng.random() < 0.9:
        old = bytes(b & ~(b >> 1 & b & 0x55) for b in old)
    for _ in range(3):
        for piece in reader.flips([old], len(old), shape):
            assert len(piece) == len(old)
        for _ in reader.trits([line_bytes] * n_lines, len(old), shape):
            pass
        for _ in reader.words([old[: len(old) // 4 * 4]], rng.choice((1, 2, 4))):
            pass


def one(vectors: list[Vector], rng: random.Random) -> str:
    """Run one case; return what became of it."""
    way = rng.choice((any_bytes, plan_numbers, coded_bytes, coded_bytes, None))
    vector = rng.choice(vectors)
    try:
        if way is None:
            random_planes(rng)
            return "made planes"
        made = decode(way(vector, rng), vector.old)
    except PayloadError as err:
        return type(err).__name__
    assert made == vector.new, f"{vector.name}: another model than the hashes say"
    return "made the model"


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM_BYTES,) * 2)


def peak_bytes(vectors: list[Vector], seed: int) -> int:
    """Return what one case allocates at most, as Python sees it."""
    tracemalloc.start()
    try:
        one(vectors, random.Random(seed))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def run(n_cases: int, seconds: float, seed: int) -> dict[str, int]:
    """Run until either limit; return how often what came out."""
    vectors = load()
    counts: dict[str, int] = {}
    end = time.process_time() + seconds  # of our own: a busy machine takes longer
    for case in range(n_cases):
        if time.process_time() > end:
            break
        if case % 100 == 0:
            peak = peak_bytes(vectors, seed + case)
            assert peak < BOUND_BYTES, f"seed {seed + case}: {peak} bytes"
            counts["peak"] = max(peak, counts.get("peak", 0))
        try:
            result = one(vectors, random.Random(seed + case))
        except Exception as err:
            raise AssertionError(f"seed {seed + case}: {type(err).__name__}: {err}") from err
        counts[result] = counts.get(result, 0) + 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="of CPU time")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--sanitised", action="store_true", help="do not limit address space")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 40) if args.seed is None else args.seed
    if not args.sanitised:
        limit_memory()
    assert _flips.WORDS_AT_ONCE > 0
    started_s, found = time.process_time(), run(1 << 60, args.seconds, seed)
    print("seed", seed, json.dumps(found))
    results.leave(
        {
            "target": "delta",
            "seed": seed,
            "sanitised": args.sanitised,
            "cpu_seconds": round(time.process_time() - started_s, 1),
            "cases": sum(n for what, n in found.items() if what != "peak"),
            "peak_bytes": found.pop("peak"),
            "bound_bytes": BOUND_BYTES,
            "ended": found,
        },
        args.out,
    )


if __name__ == "__main__":
    main()
