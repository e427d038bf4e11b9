"""Speed and memory of the bundled model, every variant and thread count side by side.

    python bench/bundled.py            writes bench/results/bundled-<date>-<host cpu>.json

Prediction before measuring: a decode step reads every ternary plane and the f16 head once.  The
bundled model's 1.8 MB fit the L2 cache of a server core, so the figure there is bound by latency
and by arithmetic, not by memory; on a Pi 4 (1 MiB of L2) the memory bus decides.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path

from edgeagent import _core
from edgeagent.model.generation import LoadedModel, Params
from edgeagent.paths import bundled_model

REPETITIONS = 7
TOKENS = 200
PROMPT = "Once upon a time, there was a little girl named Lily. " * 8
ROOT = Path(__file__).parent


def cpu_name() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*: (.*)", text)
    return found.group(1).strip() if found else platform.machine()


def one(model: LoadedModel, zero_skip: bool) -> tuple[float, float, dict[str, float]]:
    ids = model.encode(PROMPT, None)
    params = Params(max_tokens=TOKENS, temperature=0.8, seed=7, zero_skip=zero_skip)
    model.forget()  # the prompt is the same every time
    steps = model.generate(ids, params)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        outcome = end.value
    return outcome.tokens_per_s, outcome.prompt_tokens / outcome.prefill_s, outcome.skipped


def measure(kernel: str, threads: int) -> list[dict[str, object]]:
    model = LoadedModel(bundled_model(), threads=threads, kernel=kernel)
    one(model, True)
    runs: dict[bool, list[tuple[float, float, dict[str, float]]]] = {True: [], False: []}
    for _ in range(REPETITIONS):
        for zero_skip in (True, False):  # in turn, so that drift of the machine hits both
            runs[zero_skip].append(one(model, zero_skip))
    return [
        {
            "kernel": kernel,
            "threads": threads,
            "zero_skip": zero_skip,
            "decode_tok_s": round(statistics.median(r[0] for r in found), 1),
            "prefill_tok_s": round(statistics.median(r[1] for r in found), 1),
            "skipped": found[0][2],
        }
        for zero_skip, found in runs.items()
    ]


def first_token_ms() -> float:
    """Whole process, warm page cache: start to the first token on stdout."""
    import time

    times = []
    for _ in range(REPETITIONS):
        started_s = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "edgeagent.cli",
            "generate",
            "--prompt",
            "Once",
            "--max-tokens",
            "1",
        ]
        subprocess.run(command, check=True, capture_output=True)
        times.append((time.perf_counter() - started_s) * 1e3)
    return round(statistics.median(times), 1)


def main() -> None:
    release = LoadedModel(bundled_model()).release
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "repetitions": REPETITIONS,
        "model": {
            "name": release.name,
            "version": release.version,
            "bytes": release.n_bytes,
        },
        "process_to_first_token_ms": first_token_ms(),
        "runs": [
            row
            for kernel in _core.supported_variants()
            for threads in (1, 2)
            for row in measure(kernel, threads)
        ],
    }
    name = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
    out = ROOT / "results" / f"bundled-{result['date'][:10]}-{name}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
