"""Every figure of docs/performance.md, measured now: python bench/run.py [--shapes small 2b4t]

Runs `edgeagent bench` for single products, then for each shape and number of threads, with the
zeros of a trained ReLU² model and with nothing to skip, in turn with the peers whose GGUF files are
in build/bench/<shape>/ (see bench/README.md); then for the number formats; then draws the plots.
Results are added to bench/results/, never overwritten.  About ten minutes, and nothing else should
want the machine.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
CACHE = ROOT / "build" / "bench"
PEER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
PEER_WORKER = ROOT / "bench" / "peers.py"
#: GGUF file to the worker's further arguments: llama.cpp's ternary format, and the fastest peer.
PEERS = {"tq2_0": [], "iq2_bn": ["--engine", "ik"]}
#: Steps of a run: long enough to average over, short enough that a slow moment of the machine
#: spoils one run and not the median.
TOKENS = {"tiny": 16, "small": 96, "2b4t": 24}
PROMPT = {"tiny": 64, "small": 128, "2b4t": 128}


def peers_of(shape: str) -> list[str]:
    """Return a --peer for every file of the shape that llama.cpp can run here."""
    if not PEER_PYTHON.exists():
        return []
    words = []
    for name, arguments in PEERS.items():
        file = CACHE / shape / f"{name}.gguf"
        if file.exists():
            command = [str(PEER_PYTHON), str(PEER_WORKER), str(file), *arguments]
            words += ["--peer", shlex.join(command)]
    return words


def bench(name: str, *argv: str) -> None:
    """Run `edgeagent bench` and keep its result as bench/results/<name>-<date>.json."""
    now = datetime.datetime.now(datetime.UTC)
    out = RESULTS / f"{name}-{now:%Y%m%dT%H%M%S}.json"
    command = [sys.executable, "-m", "edgeagent.cli", "bench", "--out", str(out), *argv]
    print(f"== {name}", flush=True)
    subprocess.run([*command, "--cache", str(CACHE)], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["small", "2b4t"], choices=[*TOKENS])
    parser.add_argument(
        "--threads", nargs="+", type=int, default=sorted({1, min(os.cpu_count() or 1, 4)})
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--plots", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    repeat, most = ["--repeat", str(arguments.repeat)], ["--threads", str(max(arguments.threads))]
    bench("kernels", "--kernels", *repeat, *most)
    for shape in arguments.shapes:
        common = ["--shape", shape, "--tokens", str(TOKENS[shape]), *repeat]
        for threads in arguments.threads:
            run = [*common, "--prompt", str(PROMPT[shape]), "--threads", str(threads)]
            bench(f"model-{shape}-{threads}t-zeros", *run, *peers_of(shape))
            run += ["--zero-act", "0", "--no-starts"]
            bench(f"model-{shape}-{threads}t-dense", *run, *peers_of(shape))
        bench(f"formats-{shape}", "--formats", *common, *most)
    if arguments.plots:
        subprocess.run([sys.executable, str(ROOT / "bench" / "plots.py")], check=True)


if __name__ == "__main__":
    main()
