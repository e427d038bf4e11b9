"""Does the engine with a LoRA adapter beside its trits compute what PEFT computes?

    python -m bench.adapter_parity CASES [--out FILE]

CASES is what bench/adapter_reference.py wrote.  One session serves both models of a case: the base,
then the adapter is swapped in, then out again.  The logits of every position must be those of the
reference in float32, and 64 greedy tokens the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.parity import NO_TOKENIZER, TOLERANCE, load, run, verdict
from edgeagent import _core
from edgeagent.convert.adapter import check_adapter
from edgeagent.convert.packed import Options, write_model
from edgeagent.convert.sources import open_checkpoint


def compare(source: Path, expected: Any) -> dict[str, Any]:
    """Convert the base, and run it with and without the adapter."""
    checkpoint = open_checkpoint(source)
    modules = check_adapter(source / "adapter", checkpoint.shapes())
    prompts = {name: expected[f"{name}_ids"].tolist() for name in ("alone", "adapted")}
    greedy = {name: expected[f"{name}_greedy"].tolist() for name in prompts}
    context = max(len(prompts[name]) + len(greedy[name]) for name in prompts)
    with tempfile.TemporaryDirectory() as folder:
        write_model(checkpoint, Path(folder) / "model", Options(tokenizer=NO_TOKENIZER))
        model = load(Path(folder) / "model")
        session = _core.Session(model, context, kv_bits=32)
        alone = run(session, prompts["alone"], len(greedy["alone"]))
        session.set_adapter(_core.Adapter(model, modules))
        adapted = run(session, prompts["adapted"], len(greedy["adapted"]))
        session.set_adapter(None)
        again = run(session, prompts["alone"], len(greedy["alone"]))
    apart = expected["base_logits"] - expected["adapted_logits"][0]
    result = {
        "modules": len(modules),
        "effect": float(np.abs(apart).max()),  # on logits; were it small, nothing would be shown
        "alone": verdict(alone, expected["alone_logits"], greedy["alone"]),
        "adapted": verdict(adapted, expected["adapted_logits"], greedy["adapted"]),
        "same_after_removal": bool(np.array_equal(again[0], alone[0])) and again[1] == alone[1],
    }
    passed = result["alone"]["passed"] and result["adapted"]["passed"]
    result["passed"] = (
        passed and result["same_after_removal"] and result["effect"] > 100 * TOLERANCE
    )
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    results = {}
    for record in sorted(args.cases.glob("*.npz")):
        result = results[record.stem] = compare(record.with_suffix(""), np.load(record))
        print(
            f"{record.stem:<24} {result['modules']:>3} modules, effect {result['effect']:.2f}, "
            f"adapted {result['adapted']['max_difference']:.1e} "
            f"{result['adapted']['greedy_tokens']}/64 tokens, "
            f"alone {result['alone']['max_difference']:.1e} {result['alone']['greedy_tokens']}/64 "
            f"{'ok' if result['passed'] else 'DIFFERS'}",
            flush=True,
        )
    if args.out:
        args.out.write_text(json.dumps({"tolerance": TOLERANCE, "cases": results}, indent=1) + "\n")
    return 0 if results and all(result["passed"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
