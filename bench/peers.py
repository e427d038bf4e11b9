"""llama.cpp as a worker that answers one measurement at a time; see bench/README.md.

    .venv-peers/bin/python bench/peers.py MODEL.gguf [--context 512] [--threads 1] [--engine ik]

`--engine ik` takes ik_llama.cpp instead, and lets it repack the matrices while it loads.

The worker loads the file once and warms it up.  Then it reads one JSON object a line from stdin
and answers each with one line on stdout, so that whoever drives it can alternate it with another
engine.  It sleeps between two requests; the caller does the repeating and takes the medians.

    {"op": "decode", "tokens": 32, "threads": 1, "past": 8}   batches of one token, greedy arg-max
        -> {"op": "decode", ..., "seconds": s, "decode_tok_s": r, "rss_mb": m}
    {"op": "prefill", "tokens": 128, "threads": 2}            one batch, logits of its last token
        -> {"op": "prefill", ..., "seconds": s, "prefill_tok_s": r, "rss_mb": m}
    {"op": "first_token", "tokens": 8, "threads": 1}          in a fresh process of its own
        -> {"op": "first_token", ..., "load_ms": l, "first_token_ms": f, "process_ms": p, ...}
    {"op": "logits", "ids": [1, 2], "out": "logits.npy"}      float32 (ids, vocab), each position
        -> {"op": "logits", "out": "logits.npy", "shape": [2, 32000]}
    {"op": "quit"}, or end of file                            the worker leaves

Numbers left out take the values above, and an answer repeats those that it used; `past` is the
length of the prompt, not measured, before a decode.  An answer to a request that cannot be done
is {"error": "..."}, and the worker goes on.  Before the first answer comes one line unasked:

    {"event": "ready", "name": "llama.cpp", "package": "llama-cpp-python 0.3.36",
     "model": "bitnet ?B TQ2_0", "file_bytes": b, "load_ms": l, "rss_mb": m, "context": 512,
     "cpu": {"AVX512_VNNI": true, ...}}

or {"event": "failed", "error": "..."}, and exit code 1.

What the figures mean: `first_token_ms` runs from opening the file to the id of the first token,
with the Python interpreter and the bindings already there (llama.cpp's own programs need neither);
`load_ms` is the part of it until the first batch; `process_ms` is everything from starting the
process.  `rss_mb` is the process's peak (VmHWM, 10^6 bytes), with the mapped file and some 40 MB
of interpreter.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

DEFAULTS = {"tokens": 32, "threads": 1, "past": 8}
PREFILL_TOKENS = 128
FIRST_TOKEN_PROMPT = 8
WARM_UP_TOKENS = 32  # enough for the batched code path; a second is too long to wait on a board
LOG_LEVEL_ERROR = 4  # of ggml_log_level
LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

TokenArray = ctypes.Array[ctypes.c_int32]


class PeerError(Exception):
    """What llama.cpp refused, in one line."""


def load_bindings(package: str, module: str) -> types.ModuleType:
    """Import the C bindings in `package` without the rest of it, which takes a second."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise PeerError(f"{package} is not installed for {sys.executable}: run `make peers`")
    shell = types.ModuleType(package)
    shell.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = shell
    return importlib.import_module(f"{package}.{module}")


def peak_rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return 0.0


class LlamaCpp:
    """One model in llama.cpp, driven through its C API: no sampler chain, no tokenizer."""

    name = "llama.cpp"
    distribution = "llama-cpp-python"

    def __init__(self) -> None:
        self.api = self.bind()
        # Kept alive: C calls it whenever it has something to say.
        self._log = LOG_CALLBACK(self._write_errors)
        self.library.llama_log_set(self._log, None)
        self.library.llama_print_system_info.restype = ctypes.c_char_p
        self.api.llama_backend_init()
        self.model = self.context = None

    def bind(self) -> types.ModuleType:
        return load_bindings("llama_cpp", "llama_cpp")

    @property
    def library(self) -> ctypes.CDLL:
        return self.api._lib

    @staticmethod
    def _write_errors(level: int, text: bytes, _data: Any) -> None:
        if level == LOG_LEVEL_ERROR:
            sys.stderr.write(text.decode(errors="replace"))

    def model_params(self) -> Any:
        return self.api.llama_model_default_params()

    def load(self, path: Path, n_ctx: int, threads: int) -> None:
        api = self.api
        self.model = api.llama_model_load_from_file(str(path).encode(), self.model_params())
        if not self.model:
            raise PeerError(f"{path}: {self.name} cannot load it")
        params = api.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_threads = params.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise PeerError(f"{path}: no context of {n_ctx} tokens")
        self.vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))

    def set_threads(self, threads: int) -> None:
        self.api.llama_set_n_threads(self.context, threads, threads)

    def forget(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def batch(self, ids: TokenArray) -> Any:
        return self.api.llama_batch_get_one(ids, len(ids))

    def eval(self, ids: TokenArray) -> None:
        """Append `ids` as one batch; the logits of the last one are then ready."""
        status = self.api.llama_decode(self.context, self.batch(ids))
        if status:
            raise PeerError(f"llama_decode of {len(ids)} tokens gave {status}")

    def logits(self) -> np.ndarray:
        pointer = self.api.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, (self.vocab_size,))

    def describe(self) -> str:
        text = ctypes.create_string_buffer(256)
        self.api.llama_model_desc(self.model, text, len(text))
        return text.value.decode().partition(" - ")[0]

    def cpu(self) -> dict[str, bool]:
        """What the library was compiled to use, as it says itself."""
        text = self.library.llama_print_system_info().decode()
        pairs = (part.rpartition(":")[2].split("=") for part in text.split("|") if "=" in part)
        return {key.strip(): value.strip() == "1" for key, value in pairs}


class IkLlamaCpp(LlamaCpp):
    """The same in ik_llama.cpp, whose C API left the other one's some time ago."""

    name = "ik_llama.cpp"
    distribution = "ik-llama-cpp-python"

    def bind(self) -> types.ModuleType:
        api = load_bindings("ik_llama_cpp", "_ctypes_api")
        self._past = 0
        api._lib.llama_batch_get_one.restype = api.llama_batch
        api._lib.llama_set_n_threads.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32]
        return api

    def model_params(self) -> Any:
        params = self.api.llama_model_default_params()
        params.repack_tensors = True
        return params

    def set_threads(self, threads: int) -> None:
        self.library.llama_set_n_threads(self.context, threads, threads)

    def forget(self) -> None:
        self._past = 0
        self.api.llama_kv_cache_clear(self.context)

    def batch(self, ids: TokenArray) -> Any:
        first, self._past = self._past, self._past + len(ids)
        return self.library.llama_batch_get_one(ids, len(ids), first, 0)


ENGINES = {"llama": LlamaCpp, "ik": IkLlamaCpp}


def token_ids(engine: LlamaCpp, n: int) -> TokenArray:
    """`n` different tokens, the same ones every time."""
    stride = 7919  # a prime: no two of a prompt's tokens share an embedding row or a page
    return (ctypes.c_int32 * n)(*((1 + i * stride) % engine.vocab_size for i in range(n)))


def next_token(engine: LlamaCpp) -> TokenArray:
    return (ctypes.c_int32 * 1)(int(engine.logits().argmax()))


class Worker:
    """Answers requests about one loaded file."""

    def __init__(self, engine: LlamaCpp, args: argparse.Namespace) -> None:
        self._engine = engine
        self._args = args

    def warm_up(self) -> None:
        self.prefill(WARM_UP_TOKENS, 1)
        self.decode(2, 1, 1)

    def _begin(self, threads: int, past: int) -> None:
        self._engine.set_threads(threads)
        self._engine.forget()
        if past:
            self._engine.eval(token_ids(self._engine, past))

    def decode(self, tokens: int, threads: int, past: int) -> dict[str, Any]:
        engine = self._engine
        self._begin(threads, past)
        token = next_token(engine)
        began = time.perf_counter()
        for _ in range(tokens):
            engine.eval(token)
            token = next_token(engine)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "decode_tok_s": round(tokens / seconds, 3)}

    def prefill(self, tokens: int, threads: int) -> dict[str, Any]:
        self._begin(threads, 0)
        ids = token_ids(self._engine, tokens)
        began = time.perf_counter()
        self._engine.eval(ids)
        next_token(self._engine)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "prefill_tok_s": round(tokens / seconds, 3)}

    def first_token(self, tokens: int, threads: int) -> dict[str, Any]:
        args = self._args
        command = [sys.executable, __file__, str(args.model), "--first-token", str(tokens)]
        command += ["--threads", str(threads), "--context", str(args.context)]
        command += ["--engine", args.engine]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise PeerError(f"first token: {(done.stdout or done.stderr).strip()}")
        return {**json.loads(done.stdout), "process_ms": round(seconds * 1e3, 3)}

    def logits(self, ids: list[int], out: str) -> dict[str, Any]:
        self._begin(1, 0)
        rows = []
        for token in ids:
            self._engine.eval((ctypes.c_int32 * 1)(token))
            rows.append(self._engine.logits().copy())
        np.save(out, np.stack(rows))
        return {"out": out, "shape": [len(ids), self._engine.vocab_size]}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do one request of the protocol above."""
        op, r = request.get("op"), {**DEFAULTS, **request}
        if op == "decode":
            said = {k: int(r[k]) for k in ("tokens", "threads", "past")}
            return {"op": op, **said, **self.decode(**said), "rss_mb": peak_rss_mb()}
        if op in ("prefill", "first_token"):
            tokens = PREFILL_TOKENS if op == "prefill" else FIRST_TOKEN_PROMPT
            said = {"tokens": int(request.get("tokens", tokens)), "threads": int(r["threads"])}
            measure = self.prefill if op == "prefill" else self.first_token
            return {"op": op, **said, "rss_mb": peak_rss_mb(), **measure(**said)}
        if op == "logits":
            return {"op": op, **self.logits(request["ids"], request["out"])}
        raise PeerError(f"expected op decode, prefill, first_token, logits or quit, got {op!r}")


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def serve(worker: Worker) -> None:
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if request.get("op") == "quit":
                return
            gc.collect()
            say(worker.answer(request))
        except (PeerError, ValueError, KeyError, TypeError, AttributeError) as err:
            say({"error": f"{type(err).__name__}: {err}"})


def first_token(engine: LlamaCpp, args: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    engine.load(args.model, args.context, args.threads)
    loaded = time.perf_counter()
    engine.eval(token_ids(engine, args.first_token))
    next_token(engine)
    ended = time.perf_counter()
    times = {"load_ms": loaded - began, "first_token_ms": ended - began}
    return {**{k: round(v * 1e3, 3) for k, v in times.items()}, "rss_mb": peak_rss_mb()}


def start(args: argparse.Namespace) -> Worker:
    engine = ENGINES[args.engine]()
    began = time.perf_counter()
    engine.load(args.model, args.context, args.threads)
    load_s = time.perf_counter() - began
    worker = Worker(engine, args)
    worker.warm_up()
    say(
        {
            "event": "ready",
            "name": engine.name,
            "package": f"{engine.distribution} {importlib.metadata.version(engine.distribution)}",
            "model": engine.describe(),
            "file_bytes": args.model.stat().st_size,
            "load_ms": round(load_s * 1e3, 3),
            "rss_mb": peak_rss_mb(),
            "cpu": engine.cpu(),
            "context": args.context,
        }
    )
    return worker


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", choices=ENGINES, default="llama")
    parser.add_argument(
        "--first-token", type=int, metavar="N", help="prompt of N tokens, then leave"
    )
    args = parser.parse_args()
    try:
        if args.first_token:
            say(first_token(ENGINES[args.engine](), args))
        else:
            serve(start(args))
    except (PeerError, OSError) as err:
        say({"event": "failed", "error": str(err)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
