"""What the KV cache's formats cost: python bench/kv.py [--rest-ms MS] [--out FILE]

Time: attention alone (bench/kv.c) in the geometry of BitNet-b1.58-2B-4T, one token at 128, 1024 and
4096 positions, and a token of a prefill block; with --rest-ms, the measured milliseconds of the
rest of a token (matrices and head), also the share of a whole decode step.

Accuracy: logits of the bundled model and of a random model against those of the float32 cache: the
root mean square of the difference over the logits' standard deviation, and how often the likeliest
token is the same.  Results are added to bench/results/, never overwritten.
"""

import argparse
import datetime
import itertools
import json
import platform
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from edgeagent import _core
from edgeagent.model.generation import LoadedModel
from edgeagent.paths import bundled_model
from tests.core.toy import Shape, make_toy

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
BITS = (32, 16, 8, 4)
RUNS = 41
CFLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-pthread"]
TEXT = (
    "Once upon a time there was a little girl who lived in a small house near the forest. Every "
    "morning she went out to feed the birds, and every evening she told her brother what she had "
    "seen. One day she found a small lamp under a tree, and when she turned it on, a bird said: "
)
RANDOM = Shape(hidden=512, ffn=1024, layers=6, heads=8, kv_heads=2, head_dim=128, vocab=2000)


def build(folder):
    """Compile bench/kv.c with the engine's sources."""
    program = Path(folder) / "kv"
    sources = sorted(map(str, (ROOT / "cext/src").glob("*.c")))
    includes = [f"-I{ROOT / 'cext' / name}" for name in ("include", "src")]
    command = ["cc", *CFLAGS, *includes, str(ROOT / "bench/kv.c"), *sources, "-lm", "-o", program]
    subprocess.run(command, check=True)
    return program


def times(program, threads, rest_ms):
    """Measure all formats; one dictionary a figure."""
    out = subprocess.run(
        [program, str(threads), str(RUNS)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    kernel = out[0].split()[1]
    for what, bits, positions, ms, best_ms in map(str.split, out[1:]):
        figure = {
            "what": what,
            "threads": threads,
            "kernel": kernel,
            "kv_bits": int(bits),
            "positions": int(positions),
            "ms": float(ms),
            "best_ms": float(best_ms),
        }
        if what == "decode" and rest_ms:
            figure["share_of_decode"] = round(float(ms) / (float(ms) + rest_ms), 4)
        yield figure


def against_f16(figures, rest_ms):
    """Slowdown of a whole decode step against the f16 cache: 0.01 is one percent slower."""
    by_key = {(f["what"], f["threads"], f["positions"], f["kv_bits"]): f["ms"] for f in figures}
    for (what, threads, positions, bits), ms in by_key.items():
        if what != "decode":
            continue
        whole, f16 = (
            rest_ms + by_key["store", threads, 1, b] + by_key[what, threads, positions, b]
            for b in (bits, 16)
        )
        yield {
            "threads": threads,
            "positions": positions,
            "kv_bits": bits,
            "attention_ms": ms,
            "whole_ms": round(whole, 3),
            "slower_than_f16": round(whole / f16 - 1, 4),
        }


def logits_of(core, tokens, kv_bits, group):
    """Logits after every token."""
    session = _core.Session(core, len(tokens), 2, True, kv_bits, group)
    rows = []
    for token in tokens:
        session.eval([token])
        rows.append(np.array(session.logits()))
    return np.array(rows)


def errors(name, core, tokens):
    """Yield each format's error against float32."""
    want = logits_of(core, tokens, 32, 64)
    for bits, group in itertools.product(BITS[1:], (32, 64, 128)):
        if bits == 16 and group != 64:
            continue
        got = logits_of(core, tokens, bits, group)
        yield {
            "model": name,
            "tokens": len(tokens),
            "kv_bits": bits,
            "kv_group_size": None if bits == 16 else group,
            "relative_rms_error": round(float(np.std(got - want) / np.std(want)), 5),
            "same_top_token": round(float(np.mean(got.argmax(1) == want.argmax(1))), 4),
        }


def accuracy():
    """Errors of the bundled model on a text and of a random one on random tokens."""
    bundled = LoadedModel(bundled_model())
    tokens = bundled.encode(TEXT, None)[: bundled.core.context]
    yield from errors("bundled", bundled.core, tokens)
    toy = make_toy(RANDOM)
    ids = np.random.default_rng(1).integers(0, RANDOM.vocab, 400).tolist()
    yield from errors("random, 6 layers of 512", _core.Model(toy.config, toy.tensors()), ids)


def by_group(x, codes_of):
    """Quantise and dequantise (n, 128) in groups of 64."""
    return codes_of(x.reshape(len(x), -1, 64)).reshape(x.shape)


def int8(x):
    """Symmetric, 8 bits."""
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.rint(x / scale) * scale


def int4(x):
    """With a minimum, 4 bits."""
    low = x.min(-1, keepdims=True)
    scale = (x.max(-1, keepdims=True) - low) / 15
    return np.rint((x - low) / scale) * scale + low


def int4_symmetric(x):
    """Without a minimum, 4 bits: what was not chosen."""
    scale = np.abs(x).max(-1, keepdims=True) / 7
    return np.rint(x / scale) * scale


def scores():
    """Yield errors of scores in numpy, for the choices of ADR 11."""
    rng = np.random.default_rng(0)
    queries, plain = rng.standard_normal((64, 128)), rng.standard_normal((4096, 128))
    outliers = plain * np.where(np.isin(np.arange(128), (7, 70)), 8, 1)
    for name, keys in (("normal", plain), ("two channels 8 times larger", outliers)):
        want = keys @ queries.T
        for codes in (int8, int4, int4_symmetric):
            for query in ("float32", "int8"):
                q = queries if query == "float32" else by_group(queries, int8)
                error = np.std(by_group(keys, codes) @ q.T - want) / np.std(want)
                yield {
                    "keys": name,
                    "format": codes.__name__,
                    "query": query,
                    "relative_rms_error": round(float(error), 5),
                }


def cpu():
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rest-ms", type=float, nargs="*", default=[], help="1 thread, 2 threads")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    now = datetime.datetime.now(datetime.UTC)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    figures, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        program = build(folder)
        for threads, rest_ms in itertools.zip_longest((1, 2), args.rest_ms[:2], fillvalue=0.0):
            figures += times(program, threads, rest_ms)
            if rest_ms:
                whole += against_f16([f for f in figures if f["threads"] == threads], rest_ms)
    result = {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit,
        "cpu": cpu(),
        "rest_ms": args.rest_ms,
        "attention": figures,
        "whole_decode": whole,
        "scores": list(scores()),
        "logits": list(accuracy()),
    }
    out = args.out or RESULTS / f"kv-{now:%Y%m%dT%H%M%S}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    for row in (*whole, *figures, *result["scores"], *result["logits"]):
        print(json.dumps(row))
    print(out)


if __name__ == "__main__":
    main()
