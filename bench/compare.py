"""All peers of one shape in one run, alternating: python bench/compare.py build/bench/2b4t/*.gguf

Every round asks every worker (bench/peers.py) for every figure once, so that a slow minute of the
machine hits all of them; the figures are the medians of the rounds.  Results are added to
bench/results/, never overwritten.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"
FIGURES = {"decode_tok_s", "prefill_tok_s", "first_token_ms", "load_ms", "process_ms"}

Samples = dict[tuple[str, int], list[float]]  # (figure, threads) -> one value a round


def engine_of(model: Path) -> list[str]:
    """ik_llama.cpp for the formats that only it reads."""
    return ["--engine", "ik"] if model.stem.startswith("iq2_bn") else []


class Peer:
    """One worker process."""

    def __init__(self, python: Path, model: Path) -> None:
        command = [str(python), str(HERE / "peers.py"), str(model), *engine_of(model)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        # ik_llama.cpp writes warnings between the answers
        self._lines = (line for line in self._process.stdout if line.startswith("{"))
        self.name = model.stem
        self.ready = self._read()

    def _read(self) -> dict[str, Any]:
        line = next(self._lines, "")
        answer = json.loads(line or '{"error": "the worker died"}')
        if "error" in answer:
            raise SystemExit(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request of the protocol in bench/peers.py and wait for its answer."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def requests(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What one round asks of each worker."""
    each = []
    for threads in arguments.threads:
        each.append({"op": "decode", "tokens": arguments.decode, "threads": threads})
        each.append({"op": "prefill", "tokens": arguments.prefill, "threads": threads})
    return [*each, {"op": "first_token", "threads": max(arguments.threads)}]


def run_round(peers: list[Peer], request: dict[str, Any]) -> list[dict[str, Any]]:
    return [peer.ask(request) for peer in peers]


def collect(peers: list[Peer], arguments: argparse.Namespace) -> dict[str, Any]:
    """{name: {figure: {threads: median}}}, and every sample."""
    samples: dict[str, Samples] = {peer.name: defaultdict(list) for peer in peers}
    out: dict[str, Any] = {peer.name: {"ready": peer.ready} for peer in peers}
    for n in range(arguments.rounds):
        order = peers if n % 2 == 0 else peers[::-1]
        for request in requests(arguments):
            for peer, answer in zip(order, run_round(order, request), strict=True):
                for figure in answer.keys() & FIGURES:
                    samples[peer.name][figure, answer["threads"]].append(answer[figure])
                if request["op"] != "first_token":
                    out[peer.name]["rss_mb"] = answer["rss_mb"]
    for name, of_peer in samples.items():
        for (figure, threads), values in sorted(of_peer.items()):
            median = round(statistics.median(values), 3)
            out[name].setdefault(figure, {})[str(threads)] = median
            out[name].setdefault("samples", {})[f"{figure}, {threads} threads"] = values
    return out


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(names) or None,
        "load_average": Path("/proc/loadavg").read_text().split()[:3],
    }


def show(figures: dict[str, Any]) -> None:
    for name, values in figures.items():
        parts = [
            f"{figure} {' / '.join(f'{v:.1f}' for _, v in sorted(values[figure].items()))}"
            for figure in ("decode_tok_s", "prefill_tok_s", "first_token_ms")
        ]
        print(f"{name:12} {'  '.join(parts)}  rss {values['rss_mb']:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files (bench/gguf_peer.py)")
    parser.add_argument("--python", type=Path, default=PYTHON, help="default: %(default)s")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=int, default=32, metavar="TOKENS")
    parser.add_argument("--prefill", type=int, default=128, metavar="TOKENS")
    parser.add_argument("--out", type=Path, help="default: bench/results/peers-<shape>-<date>.json")
    parser.add_argument("--note", default="", help="what the reader should know of the machine")
    arguments = parser.parse_args()
    peers = [Peer(arguments.python, model) for model in arguments.models]
    figures = collect(peers, arguments)
    for peer in peers:
        peer.close()
    now = datetime.datetime.now(datetime.UTC)
    shape = arguments.models[0].resolve().parent.name
    record = {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        **machine(),
        "note": arguments.note,
        "rounds": arguments.rounds,
        "peers": figures,
    }
    out = arguments.out or HERE / "results" / f"peers-{shape}-{now:%Y%m%dT%H%M%S}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    show(figures)


if __name__ == "__main__":
    main()
