"""GB/s of weights read, per kernel and variant: python bench/kernels.py [--out FILE]

One thread.  A figure is the best of many short runs, which is what the core does when nothing else
wants the machine; the sizes are one that stays in the second-level cache and one that does not fit
any cache but a server's.  Results are added to bench/results/, never overwritten.
"""

import argparse
import datetime
import json
import platform
import subprocess
import time
from pathlib import Path

import numpy as np

from edgeagent import _core

RESULTS = Path(__file__).parent / "results"
RUN_S = 0.004  # of one run: shorter than a time slice, so that some runs are undisturbed
TOTAL_S = 0.8  # of all runs of one figure
SIZES = {"cache": (1024, 2560), "memory": (27648, 20480)}  # (out, in)


def best_s(call):
    """Seconds of one call, best of many runs."""
    call(1)
    began = time.perf_counter()
    call(1)
    repeat = max(1, int(RUN_S / (time.perf_counter() - began)))
    best, deadline = float("inf"), time.perf_counter() + TOTAL_S
    while time.perf_counter() < deadline:
        began = time.perf_counter()
        call(repeat)
        best = min(best, (time.perf_counter() - began) / repeat)
    return best


def random_codes(rng, shape):
    """Bytes of four codes in {0, 1, 2} each."""
    pairs = np.array([a | b << 2 for a in range(3) for b in range(3)], np.uint8)
    high, low = (rng.choice(pairs, shape) for _ in range(2))
    return high << 4 | low


def measure(kernels, n_out, n_in):
    """Yield (op, bytes that a dense call reads, seconds)."""
    rng = np.random.default_rng(0)
    x = rng.integers(-127, 128, n_in).astype(np.int8)
    y = np.empty(n_out, np.int32)
    rows = random_codes(rng, (n_out, n_in // 4))
    yield "gemv_rows", rows.nbytes, best_s(lambda n: kernels.gemv_rows(rows, x, y, repeat=n))
    lines = rows.reshape(n_out // 256, n_in, 64)
    yield "gemv_cols", rows.nbytes, best_s(lambda n: kernels.gemv_cols(lines, x, y, repeat=n))
    for zeros in (0.5, 0.8, 0.9):
        live = np.flatnonzero(rng.random(n_in) >= zeros).astype(np.uint32)
        seconds = best_s(lambda n, live=live: kernels.gemv_cols(lines, x, y, live, repeat=n))
        yield f"gemv_cols, {zeros:.0%} zeros", rows.nbytes, seconds
    n = n_in // 8
    halves = rng.standard_normal((n_out, n), np.float32).astype(np.float16).view(np.uint16)
    xf, yf = rng.standard_normal(n, np.float32), np.empty(n_out, np.float32)
    yield "dot_f16", halves.nbytes, best_s(lambda n: kernels.dot_f16(halves, xf, yf, repeat=n))


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def commit():
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="default: bench/results/kernels-<date>.json")
    parser.add_argument("--note", default="", help="what the reader should know of the machine")
    arguments = parser.parse_args()
    now = datetime.datetime.now(datetime.UTC)
    out = arguments.out or RESULTS / f"kernels-{now:%Y%m%dT%H%M%S}.json"
    figures = []
    for variant in _core.supported_variants():
        for size, (n_out, n_in) in SIZES.items():
            if variant == "scalar" and size == "memory":
                continue  # minutes, and nobody's question
            for op, n_bytes, seconds in measure(_core.Kernels(variant), n_out, n_in):
                rate = n_bytes / seconds / 1e9
                print(f"{variant:8} {size:7} {op:22} {rate:7.2f} GB/s of {n_bytes / 1e6:.1f} MB")
                figures.append(
                    {
                        "variant": variant,
                        "size": size,
                        "shape": [n_out, n_in],
                        "op": op,
                        "dense_bytes": n_bytes,
                        "seconds": seconds,
                        "dense_gb_per_s": round(rate, 3),
                    }
                )
    record = {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "load_average": Path("/proc/loadavg").read_text().split()[:3],
        "note": arguments.note,
        "figures": figures,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
