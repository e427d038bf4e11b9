"""The loop of every fuzzer: make an input, read it, and see what comes of it.

A reader may do two things with any bytes: give what they say, or raise an error of its own kind
with one line.  It may not hold more memory than the size of its input explains.  The input at hand
lies in a file, so that it is there when the process dies of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import shutil
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests import results

#: Of address space, above what the process has when it begins: what a C library allocates is
#: nowhere counted, but it fails here, and a failed allocation is no error of a reader's own.
HEADROOM_BYTES = 1 << 30
#: Cases between two decisions whether memory is watched: each end of watching loses some kilobytes
#: (CPython 3.11), a gigabyte in ten minutes if it came with every case.
TRACED_RUN = 50
MAX_LINE_CHARS = 1000
#: Kinds of refusal that are told apart; the rest is counted together.
MAX_REASONS = 2000
REASON_CHARS = 60
REPORTED = 12


@dataclass(frozen=True, slots=True)
class Case:
    """An input, and how it is read."""

    data: bytes
    read: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Target:
    """What is fuzzed.

    Attributes:
        make: makes the next input.
        refusals: what the reader may raise.
        spare_bytes: what it may hold whatever its input.
        bytes_a_byte: what it may hold for each byte of it.
        trace_every: memory is watched in one of so many cases: watching slows Python threefold.
    """

    make: Callable[[random.Random], Case]
    refusals: type[Exception]
    spare_bytes: int
    bytes_a_byte: float
    trace_every: int = 1


@dataclass(slots=True)
class Tally:
    """What came of the cases."""

    cases: int = 0
    read: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    largest_input: int = 0
    peak_bytes: int = 0
    slowest_s: float = 0.0

    def refuse(self, err: Exception) -> None:
        """Count a refusal, by the error's code and by its line."""
        line = str(err)
        assert "\n" not in line and 0 < len(line) <= MAX_LINE_CHARS, line[:MAX_LINE_CHARS]
        self.refused[str(getattr(err, "code", type(err).__name__))] += 1
        reason = " ".join("".join(c if c.isalpha() else " " for c in line).split())
        reason = reason[:REASON_CHARS]
        is_new = reason not in self.reasons
        self.reasons["other" if is_new and len(self.reasons) >= MAX_REASONS else reason] += 1

    def report(self) -> dict[str, Any]:
        """Return it, JSON-ready."""
        return {
            "cases": self.cases,
            "read": self.read,
            "refused": dict(sorted(self.refused.items())),
            "reasons": len(self.reasons),
            "commonest": dict(self.reasons.most_common(REPORTED)),
            "largest_input_bytes": self.largest_input,
            "peak_bytes": self.peak_bytes,
            "slowest_case_s": round(self.slowest_s, 3),
        }


def _read(case: Case, target: Target, tally: Tally, *, is_traced: bool) -> None:
    if is_traced:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
    started_s = time.process_time()
    try:
        case.read()
        tally.read += 1
    except target.refusals as err:
        tally.refuse(err)
    tally.slowest_s = max(tally.slowest_s, time.process_time() - started_s)
    if is_traced:
        peak = tracemalloc.get_traced_memory()[1] - before
        limit = target.spare_bytes + target.bytes_a_byte * len(case.data)
        assert peak <= limit, f"{peak} bytes held for an input of {len(case.data)}"
        tally.peak_bytes = max(tally.peak_bytes, peak)


def run(
    target: Target, seed: int, *, seconds: float = 0, cases: int = 0, keep: Path | None = None
) -> Tally:
    """Read so many cases, or for so many seconds of this process's CPU time.

    Raises:
        BaseException: whatever a reader raises that is no refusal.
        AssertionError: a refusal is not a line, or an input took more memory than it may.
    """
    rng, tally = random.Random(seed), Tally()
    end = time.process_time() + seconds  # of our own: a busy machine takes longer
    while tally.cases < cases if cases else time.process_time() < end:
        is_traced = tally.cases // TRACED_RUN % target.trace_every == 0
        if is_traced != tracemalloc.is_tracing():
            (tracemalloc.start if is_traced else tracemalloc.stop)()
        case = target.make(rng)
        if keep is not None:
            keep.write_bytes(case.data)
        _read(case, target, tally, is_traced=is_traced)
        tally.cases += 1
        tally.largest_input = max(tally.largest_input, len(case.data))
    tracemalloc.stop()
    return tally


def _limit_address_space() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM_BYTES, used + HEADROOM_BYTES))


def main(doc: str, targets: dict[str, Callable[[Path], Target]]) -> int:
    """Fuzz one target from the command line; targets get a directory to work in."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("target", choices=targets)
    parser.add_argument("--seconds", type=float, default=600, help="of CPU time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/fuzzing"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = args.work / args.target
    shutil.rmtree(folder, ignore_errors=True)  # or what an earlier run damaged would be the seeds
    folder.mkdir(parents=True)
    target = targets[args.target](folder)
    _limit_address_space()
    started_s = time.process_time()
    tally = run(target, args.seed, seconds=args.seconds, keep=args.work / f"{args.target}.input")
    result = {
        "target": args.target,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": results.commit(),
        "python": platform.python_version(),
        "seed": args.seed,
        "cpu_seconds": round(time.process_time() - started_s, 1),
        **tally.report(),
        "limit": f"{target.spare_bytes} bytes and {target.bytes_a_byte:g} a byte of input",
        "max_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0
