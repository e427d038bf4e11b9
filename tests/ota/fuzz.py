"""Fuzz what is read from outside: metadata and messages of the wire.

    python -m tests.ota.fuzz SECONDS [metadata | wire]

Valid input is mutated (bits, cuts, splices, repeated stretches, changed numbers) and parsed.  Only
typed errors may come out, and what a parser holds on to stays within the bound of its format.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from ota.device.high_water import HighWater
from ota.device.tuf_client import TufClient
from ota.errors import UpdateError
from ota.storage import Disk
from ota.wire import (
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from tests.ota.fakes import MemorySource
from tests.ota.simulator import Simulator

MEMORY = Path("/dev/shm")  # syncing to a disk would take most of the time
ODD = (b"[" * 5000, b'{"a":' * 2000, b"\xff\xfe", b"\n", b"\0")
MAX_GROWTH_KIB = 64 << 10  # over the whole run; the longest metadata that is read is 5 MB
NUMBERS = (b"-1", b"0", b"1e999", b"9" * 400, b"true", b"null", b'""', b"[]", b"{}", b"1" * 30)


def mutate(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << chance.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = chance.choice(NUMBERS)
            case 3:
                out[at:at] = out[at : at + 64] * chance.choice((1, 2, 50))
            case 4:
                del out[at : at + chance.randrange(1, 40)]
            case _:
                out[at:at] = chance.choice(ODD)
    return bytes(out)


def fuzz_metadata(seconds: float, seed: int) -> int:
    chance, repo, n_cases = random.Random(seed), Simulator(), 0
    repo.add_target("file", b"data")
    repo.delegate("targets", "role", ["a/*"])
    repo.bump()
    whole = dict(repo.served)
    names = sorted(name for name in whole if name.startswith("metadata/"))
    until_s = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as scratch:
        while time.monotonic() < until_s:
            name = chance.choice(names)
            source = MemorySource(whole | {name: mutate(whole[name], chance)})
            directory = Path(scratch) / f"{n_cases % 50}"
            root = whole["metadata/1.root.json"]
            if name.endswith("1.root.json"):
                root = source.objects[name]
            client = TufClient(source, Disk(), directory / "tuf", root)
            record = directory / "tuf.highwater"
            if record.exists() and chance.random() < 0.3:
                record.write_bytes(mutate(record.read_bytes(), chance))
                HighWater(Disk(), record)
            with suppress(UpdateError):
                client.refresh()
                client.target("a/x")
            n_cases += 1
    return n_cases


def fuzz_wire(seconds: float, seed: int) -> int:
    chance, n_cases = random.Random(seed), 0
    request = encode_request(Request("a-1", "targets/models/x.etd", 65536, 65536, "ota/v1/r/d"))
    response = encode_response(Response("a-1", 200, 0, 1 << 20, bytes(2000)))
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        for parse, valid in ((decode_request, request), (decode_response, response)):
            with suppress(UpdateError):
                parse(mutate(valid, chance))
            n_cases += 1
    return n_cases


def run(what: str, seconds: float, seed: int) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_cases = {"metadata": fuzz_metadata, "wire": fuzz_wire}[what](seconds, seed)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MAX_GROWTH_KIB, grown
    return {"what": what, "seed": seed, "cases": n_cases, "seconds": seconds, "grown_kib": grown}


if __name__ == "__main__":
    for each in sys.argv[2:] or ("metadata", "wire"):
        print(run(each, float(sys.argv[1]), time.time_ns() & 0xFFFF), flush=True)
