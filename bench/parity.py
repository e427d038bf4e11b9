"""Does the engine compute what transformers computes, from every kind of checkpoint?

    python -m bench.parity MODELS [--out FILE] [--invert]

MODELS is what bench/parity_reference.py wrote.  Each checkpoint is converted as a user would, then
the engine's logits at every position of the prompt must be those of the reference in float32, and
64 greedy tokens the same.  `--invert` reads each weight_scale the wrong way round: every case that
has one must fail.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.parity_gguf import gguf_twins
from edgeagent import _core
from edgeagent.convert.checkpoint import TokenizerFiles
from edgeagent.convert.packed import Options, write_model
from edgeagent.convert.sources import open_checkpoint
from edgeagent.model.files import CONFIG_NAME, INDEX_NAME, read_json
from edgeagent.model.safetensors import SafetensorsFile

#: Absolute, on logits of a few units.
TOLERANCE = 1e-3
NO_TOKENIZER = TokenizerFiles({}, {})  # the random models have no words


def load(path: Path) -> _core.Model:
    """Load a directory of ours without its tokenizer and its release."""
    tensors: dict[str, Any] = {}
    for file in set(read_json(path / INDEX_NAME)["weight_map"].values()):
        shard = SafetensorsFile(path / file)
        tensors |= {name: shard.tensor(name) for name in shard.infos}
    return _core.Model(read_json(path / CONFIG_NAME), tensors)


def run(session: _core.Session, ids: list[int], n_greedy: int) -> tuple[np.ndarray, list[int]]:
    """Logits of every position of a prompt, and the greedy tokens after it."""
    session.truncate(0)
    rows, tokens = [], []
    for token in ids:
        session.eval([token])
        rows.append(np.array(session.logits()))
    for _ in range(n_greedy):
        tokens.append(int(np.array(session.logits()).argmax()))
        session.eval(tokens[-1:])
    return np.stack(rows), tokens


def inverted(source: Any) -> Any:
    """Make a reader take the opposite rule for weight_scale."""
    quantization = source._quantization
    now = quantization.get("linear_class", "bitlinear")
    other = "autobitlinear" if now == "bitlinear" else "bitlinear"
    quantization["linear_class"] = other
    return source


def compare(source: Path, expected: Any, *, invert: bool) -> dict[str, Any]:
    """Convert one checkpoint and compare the engine with the reference."""
    checkpoint = open_checkpoint(source)
    if invert:
        checkpoint = inverted(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        write_model(checkpoint, target, Options(tokenizer=NO_TOKENIZER))
        ids, greedy = expected["ids"].tolist(), expected["greedy"].tolist()
        session = _core.Session(load(target), len(ids) + len(greedy), kv_bits=32)
        found = run(session, ids, len(greedy))
        quantization = read_json(target / CONFIG_NAME)["quantization_config"]
    return {
        "architecture": checkpoint.config["architectures"][0],
        "hidden": checkpoint.config["hidden_size"],
        "ffn": checkpoint.config["intermediate_size"],
        "head_dim": checkpoint.config["head_dim"],
        "activation_bits": quantization["activation_bits"],
        "layout": quantization["layout"],
        **verdict(found, expected["logits"], greedy),
    }


def verdict(
    found: tuple[np.ndarray, list[int]], runs: np.ndarray, greedy: list[int]
) -> dict[str, Any]:
    """Hold one run of the engine against the reference's, of which the first is float32."""
    logits, tokens = found
    away = np.abs(logits - runs).max(axis=2)  # (runs of the reference, positions)
    difference = float(away[0].max())
    same = int((np.array(tokens) == greedy).cumprod().sum())
    return {
        "max_difference": difference,
        "from_float64": float(away[-1].max()),
        "reference_with_itself": float(np.ptp(runs, axis=0).max()),
        "largest_logit": float(np.abs(runs).max()),
        "positions": len(logits),
        "near": int((away[0] <= TOLERANCE).sum()),
        "greedy_tokens": same,
        "of": len(greedy),
        "passed": difference <= TOLERANCE and same == len(greedy),
    }


def has_scales(path: Path) -> bool:
    """Say whether a checkpoint stores scales that can be read the wrong way round."""
    shard = SafetensorsFile(path / "model.safetensors")
    return any(name.endswith("weight_scale") for name in shard.infos)


def cases(models: Path, folder: Path) -> Iterator[tuple[str, Path, Any]]:
    """Yield every case and its twins as GGUF files."""
    for record in sorted(models.glob("*.npz")):
        expected = np.load(record)
        yield record.stem, record.with_suffix(""), expected
        for suffix, path in gguf_twins(record.with_suffix(""), folder):
            yield f"{record.stem} {suffix}", path, expected


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--invert", action="store_true")
    args = parser.parse_args(argv)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path, expected in cases(args.models, Path(folder)):
            if args.invert and (path.is_file() or not has_scales(path)):
                continue
            result = compare(path, expected, invert=args.invert)
            results[name] = result
            verdict = "ok" if result["passed"] else "DIFFERS"
            print(
                f"{name:<44} {result['max_difference']:9.2e} "
                f"{result['near']:>3}/{result['positions']} positions "
                f"{result['greedy_tokens']:>3}/{result['of']} tokens {verdict}",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps({"tolerance": TOLERANCE, "cases": results}, indent=1) + "\n")
    good = [result["passed"] != args.invert for result in results.values()]
    return 0 if good and all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
