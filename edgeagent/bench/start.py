"""From nothing to the first token, in a process of its own, warm and cold.

    python -m edgeagent.bench.start MODEL THREADS PROMPT_TOKENS [KERNEL]

The child prints one JSON object.  `load_ms` ends when the model could take a prompt: files
verified, mapped and checked, tokenizer read.  `first_token_ms` ends with the id of the first token
and counts from opening the model, as the peers' does; `process_ms` counts from the start of the
interpreter, as the parent saw it.  Cold means that the kernel has forgotten the model's pages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgeagent.bench.figures import Series
from edgeagent.bench.machine import drop_page_cache, resident_fraction, status_mb
from edgeagent.errors import AdapterError

REPETITIONS = 3
PROMPT_TOKENS = 8


def child(path: Path, threads: int, prompt_tokens: int, kernel: str | None) -> dict[str, Any]:
    """Load a model as the product does, and make one token."""
    began_s = time.perf_counter()
    from edgeagent import _core
    from edgeagent.bench.shapes import token_ids
    from edgeagent.model.generation import LoadedModel

    imported_s = time.perf_counter()
    model = LoadedModel(path, threads=threads, kernel=kernel)
    loaded_s = time.perf_counter()
    model.session.eval(token_ids(model.core.vocab_size, prompt_tokens))
    _core.Sampler().sample(model.session)
    ended_s = time.perf_counter()
    return {
        "import_ms": (imported_s - began_s) * 1e3,
        "load_ms": (loaded_s - imported_s) * 1e3,
        "first_token_ms": (ended_s - imported_s) * 1e3,
        "rss_mb": status_mb("VmHWM"),
        "kv_mb": model.session.kv_bytes / 1e6,
        "model_mb": model.release.n_bytes / 1e6,
    }


def one_start(command: list[str]) -> dict[str, float]:
    """Run one child and return its figures.

    Raises:
        AdapterError: it failed.
    """
    began_s = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ended_s = time.perf_counter()
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise AdapterError(f"a fresh process: {last[0]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures | {"process_ms": (ended_s - began_s) * 1e3}


def measure_starts(
    path: Path, threads: int, kernel: str | None, *, cold: bool, repetitions: int = REPETITIONS
) -> dict[str, Any]:
    """Start fresh processes, warm ones and, if asked for, cold ones; return medians and spreads."""
    command = [sys.executable, "-m", "edgeagent.bench.start", str(path), str(threads)]
    command += [str(PROMPT_TOKENS), *([kernel] if kernel else [])]
    files = sorted(path.iterdir())
    one_start(command)  # fills the page cache
    warm = Series()
    for _ in range(repetitions):
        warm.add(**one_start(command))
    out: dict[str, Any] = {"prompt_tokens": PROMPT_TOKENS, "warm": warm.summary(2)}
    if not cold:
        return out
    frozen, left = Series(), Series()
    for _ in range(repetitions):
        drop_page_cache(files)
        left.add(resident=resident_fraction(files))
        frozen.add(**one_start(command))
    out["cold"] = frozen.summary(2)
    out["cold"]["resident_before"] = left.median("resident")
    return out


if __name__ == "__main__":
    _, model_path, n_threads, n_prompt, *rest = sys.argv
    result = child(Path(model_path), int(n_threads), int(n_prompt), rest[0] if rest else None)
    sys.stdout.write(json.dumps(result) + "\n")
