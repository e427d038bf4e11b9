"""Do transformers and llama.cpp compute what we compute, for every family that we export?

    python -m bench.export_families --hf PYTHON --llama PYTHON

Random models (tests/convert/checkpoints.py) as our directories, exported: our logits beside
those of transformers in float32 (the largest difference) and of llama.cpp (the least cosine).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.agree import compare
from bench.compare import Peer
from bench.export_parity import logits_of
from edgeagent import _core
from edgeagent.convert.ours import open_ours
from edgeagent.convert.to_gguf import FORMATS, export_gguf
from edgeagent.convert.to_hf import export_hf
from edgeagent.model.files import open_model
from tests.convert.checkpoints import MemoryCheckpoint, write_ours
from tests.convert.test_round_trips import FAMILIES

N_TOKENS = 24
#: Positions with a larger difference have an activation that was rounded to the other int8.
NEAR = 1e-3
#: What transformers is asked: logits of every position, in float32.
HF_WORKER = """
import json, sys, numpy, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
with torch.no_grad():
    logits = model(torch.tensor([json.loads(sys.argv[2])])).logits[0]
numpy.save(sys.argv[3], logits.float().numpy())
"""


def theirs(python: Path, model: Path, ids: list[int], out: Path) -> np.ndarray:
    env = os.environ | {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, "-c", HF_WORKER, model, json.dumps(ids), out]
    subprocess.run(command, check=True, env=env, stderr=subprocess.DEVNULL)
    return np.load(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hf", type=Path, required=True, help="python with transformers")
    parser.add_argument("--llama", type=Path, required=True, help="python with llama-cpp-python")
    arguments = parser.parse_args()
    ids = [0, *np.random.default_rng(3).integers(5, 270, N_TOKENS - 1).tolist()]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for family, options in FAMILIES.items():
            path, out = scratch / family, scratch / "logits.npy"
            write_ours(path, MemoryCheckpoint(**options))
            source, files = open_ours(path), open_model(path)
            ours = logits_of(_core.Model(dict(files.config), files.tensors), ids)
            words = [f"{family:14}"]
            if family != "minicpm":  # its code is not in transformers
                export_hf(source, scratch / f"{family}-hf")
                there = theirs(arguments.hf, scratch / f"{family}-hf", ids, out)
                each = np.abs(ours - there).max(axis=1)  # a position
                near = int((each < NEAR).sum())
                words.append(f"transformers |d| {each.max():.1e}, below {NEAR}: {near}/{len(ids)}")
            for file_format in FORMATS if options.get("hidden_act") != "relu2" else ():
                file = scratch / f"{family}-{file_format}.gguf"
                export_gguf(source, file, file_format)
                peer = Peer(arguments.llama, file)
                peer.ask({"op": "logits", "ids": ids, "out": str(out)})
                peer.close()
                found = compare(ours, np.load(out))
                words.append(f"{file_format} cos {found['cosine_min']:.5f}")
            print("  ".join(words))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
