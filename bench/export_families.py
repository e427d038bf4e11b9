"""Do transformers, llama.cpp and ik_llama.cpp compute what we compute, for every family?

    python -m bench.export_families --hf PYTHON --llama PYTHON [--out FILE]

Random models (tests/convert/checkpoints.py) as our directories, exported.  Transformers in float32
must have our logits and our 64 greedy tokens, on a prompt that it chose (bench/parity_prompts.py).
llama.cpp and ik_llama.cpp, which round activations in blocks, must have nearly our logits: their
least cosine over the prompt.  A model of squared ReLU must be refused by llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.agree import compare
from bench.compare import Peer, commit
from bench.export_parity import logits_of
from bench.parity import run, verdict
from edgeagent import _core
from edgeagent.convert.ours import open_ours
from edgeagent.convert.to_gguf import FORMATS, IK_FORMATS, export_gguf
from edgeagent.convert.to_hf import export_hf
from edgeagent.model.files import open_model
from tests.convert.checkpoints import MemoryCheckpoint, write_ours
from tests.convert.test_round_trips import FAMILIES

#: Rounded in blocks, logits of random models have 0.999; with a wrong scale or rotation, below 0.9.
LEAST_COSINE = 0.99
#: What llama.cpp is asked where no reference chose a prompt.
IDS = [0, *np.random.default_rng(3).integers(5, 270, 23).tolist()]
NOT_IN_HF = "minicpm"  # its code is not in transformers
HF_WORKER = """
import sys, pathlib, numpy
sys.path.insert(0, sys.argv[1])
import parity_reference
numpy.savez(sys.argv[3], **parity_reference.expected(pathlib.Path(sys.argv[2])))
"""


def hf_answers(python: Path, model: Path) -> dict[str, Any]:
    """Let transformers choose a prompt and compute it."""
    out = model.with_suffix(".npz")
    command = [python, "-c", HF_WORKER, Path(__file__).parent, model, out]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{model.name}: {done.stderr.strip().splitlines()[-1]}")
    return dict(np.load(out))


def against_hf(python: Path, source: Any, model: _core.Model, target: Path) -> dict[str, Any]:
    export_hf(source, target)
    expected = hf_answers(python, target)
    ids, greedy = expected["ids"].tolist(), expected["greedy"].tolist()
    session = _core.Session(model, len(ids) + len(greedy), kv_bits=32)
    return verdict(run(session, ids, len(greedy)), expected["logits"], greedy)


def against_gguf(
    python: Path, source: Any, ours: np.ndarray, file_format: str, scratch: Path
) -> dict[str, Any]:
    file, out = scratch / f"{file_format.removeprefix('gguf-')}.gguf", scratch / "logits.npy"
    export_gguf(source, file, file_format)
    try:
        peer = Peer(python, file)
    except SystemExit as refusal:
        relu2 = source.config.get("hidden_act") == "relu2"
        return {
            "refused": str(refusal).replace(f"{scratch}/", ""),
            "passed": relu2 and file_format not in IK_FORMATS,
        }
    peer.ask({"op": "logits", "ids": IDS, "out": str(out)})
    peer.close()
    cosine = float(compare(ours, np.load(out))["cosine_min"])
    return {"cosine": cosine, "passed": cosine >= LEAST_COSINE}


def family(name: str, options: dict[str, Any], hf: Path, llama: Path) -> dict[str, Any]:
    """Export one family every way, and ask everybody."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_ours(Path(folder) / name, MemoryCheckpoint(**options))
        source, files = open_ours(path), open_model(path)
        model = _core.Model(dict(files.config), files.tensors)
        result = {}
        if name != NOT_IN_HF:
            result["transformers"] = against_hf(hf, source, model, Path(folder) / "hf")
        ours = logits_of(model, IDS)
        for file_format in FORMATS:
            result[file_format] = against_gguf(llama, source, ours, file_format, Path(folder))
    return result


def words(result: dict[str, Any]) -> str:
    if "refused" in result:
        return "refused"
    if "cosine" in result:
        return f"cos {result['cosine']:.5f}"
    return f"|d| {result['max_difference']:.1e}, {result['greedy_tokens']}/{result['of']} tokens"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hf", type=Path, required=True, help="python with transformers")
    parser.add_argument("--llama", type=Path, required=True, help="python with both llama.cpp")
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    arguments = parser.parse_args()
    results = {}
    for name, options in FAMILIES.items():
        found = results[name] = family(name, options, arguments.hf, arguments.llama)
        line = "  ".join(f"{who} {words(what)}" for who, what in found.items())
        good = all(each["passed"] for each in found.values())
        print(f"{name:14} {line}  {'ok' if good else 'DIFFERS'}", flush=True)
    if arguments.out:
        report = {"commit": commit(), "families": results}
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    passed = [each["passed"] for found in results.values() for each in found.values()]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
