"""Do llama.cpp and ik_llama.cpp compute what we compute, from the files that we export?

    python -m bench.export_parity MODEL... --text FILE... [--python PYTHON] [--out FILE]

MODEL is one of our directories, or a file of llama2.c or bitllama2.c with `:TOKENIZER` behind it.
For TQ2_0 and TQ1_0 in llama.cpp and IQ2_BN in ik_llama.cpp: at how many positions of our greedy
continuation it has the same largest logit, and the perplexity of both on the same tokens of FILE.
None can be bit-equal: we quantise the activations of a token with one scale, llama.cpp with one for
256 of them (Q8_K) or 32.  A model of squared ReLU must be refused by llama.cpp, which lacks it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bench.agree import log_softmax
from bench.compare import PYTHON, Peer, commit
from edgeagent import _core
from edgeagent.convert.checkpoint import Checkpoint
from edgeagent.convert.llama2c import Llama2cCheckpoint
from edgeagent.convert.ours import open_ours
from edgeagent.convert.pack import pack_plane, ternarise_absmean
from edgeagent.convert.to_gguf import FORMATS, IK_FORMATS, export_gguf

PROMPTS = ("Once upon a time", "The dog", "One day, a girl named Lily")
N_GREEDY = 64
#: Of two perplexities on the same tokens.
TOLERANCE = 0.005
SEPARATOR = "<|endoftext|>"

Tensors = dict[str, tuple[str, tuple[int, ...], memoryview]]


def open_source(name: str) -> Checkpoint:
    path, _, tokenizer = name.partition(":")
    if Path(path).is_dir():
        return open_ours(Path(path))
    return Llama2cCheckpoint(Path(path), Path(tokenizer) if tokenizer else None)


def _tensor(dtype: str, array: np.ndarray) -> tuple[str, tuple[int, ...], memoryview]:
    data = np.ascontiguousarray(array)
    return dtype, data.shape, data.data.cast("B")


def core_model(source: Checkpoint, *, floats: bool = False) -> _core.Model:
    """Pack a checkpoint in memory; with `floats` its matrices as they are, in float16."""
    tensors: Tensors = {}
    relu2 = source.config.get("hidden_act") == "relu2"
    for name, shape in source.shapes().items():
        if len(shape) == 1:
            tensors[name] = _tensor("F32", source.floats(name))
        elif not name.endswith("_proj.weight") or floats:
            tensors[name] = _tensor("F16", source.floats(name).astype(np.float16))
            if name.endswith("_proj.weight"):
                tensors[f"{name}_scale"] = _tensor("F32", np.ones(1, np.float32))
        else:
            if source.is_ternary(name):
                matrix = source.trits(name)
                trits, scale = matrix.trits, matrix.scales
            else:
                trits, one = ternarise_absmean(source.floats(name))
                scale = np.full((1, 1), one)
            plane = pack_plane(trits, name.split(".")[-2], relu2=relu2, layout=1)
            tensors[name] = _tensor("U8", plane)
            tensors[f"{name}_scale"] = _tensor("F32", scale.reshape(-1).astype(np.float32))
    layout = 5 if floats else 1
    config = {k: v for k, v in source.config.items() if v is not None}
    config["quantization_config"] = {"quant_method": "edgeagent", "layout": layout}
    return _core.Model(config, tensors)


def logits_of(model: _core.Model, ids: list[int]) -> np.ndarray:
    session = _core.Session(model, len(ids), kv_bits=32)
    rows = []
    for token in ids:
        session.eval([token])
        rows.append(np.array(session.logits()))
    return np.stack(rows)


def greedy(model: _core.Model, ids: list[int], n: int) -> list[int]:
    session = _core.Session(model, len(ids) + n, kv_bits=32)
    session.eval(ids)
    out: list[int] = []
    for _ in range(n):
        out.append(int(np.array(session.logits()).argmax()))
        session.eval(out[-1:])
    return out


def chunks(tokenizer: Tokenizer, bos: int, text: str, size: int, n: int) -> list[list[int]]:
    """The first `n` stories that fill a context, each cut to it."""
    found = []
    for story in text.split(SEPARATOR):
        ids = [bos, *tokenizer.encode(story.strip(), add_special_tokens=False).ids][:size]
        if len(ids) == size:
            found.append(ids)
        if len(found) == n:
            break
    return found


def nll(logits: np.ndarray, ids: list[int]) -> float:
    """Mean negative log-likelihood a token, the first token aside."""
    rows = log_softmax(logits[:-1].astype(np.float64))
    return float(-rows[np.arange(len(ids) - 1), ids[1:]].mean())


def measure(name: str, text: str, python: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    source = open_source(name)
    files = source.tokenizer()
    assert files is not None
    tokenizer = Tokenizer.from_str(json.dumps(files.tokenizer))
    bos = tokenizer.token_to_id(files.config["bos_token"])
    texts = chunks(tokenizer, bos, text, arguments.context, arguments.chunks)
    result: dict[str, Any] = {"model": Path(name.partition(":")[0]).name, "tokens": len(texts)}
    result["tokens"] *= arguments.context
    is_ternary = all(source.is_ternary(n) for n in source.shapes() if n.endswith("_proj.weight"))
    if not is_ternary:
        model = core_model(source, floats=True)
        losses = [nll(logits_of(model, ids), ids) for ids in texts]
        result["ppl_float"] = float(np.exp(np.mean(losses)))
    model = core_model(source)
    losses = [nll(logits_of(model, ids), ids) for ids in texts]
    result["ppl"] = float(np.exp(np.mean(losses)))
    prompts = [[bos, *tokenizer.encode(p, add_special_tokens=False).ids] for p in PROMPTS]
    answers = [greedy(model, ids, N_GREEDY) for ids in prompts]
    result["stories"] = [tokenizer.decode(a + b) for a, b in zip(prompts, answers, strict=True)]
    if not is_ternary or arguments.no_peer:
        return result
    with tempfile.TemporaryDirectory() as scratch:
        for file_format in FORMATS:
            file = Path(scratch) / f"{file_format.removeprefix('gguf-')}.gguf"
            done = export_gguf(source, file, file_format)
            found = ask(python, file, (prompts, answers), texts)
            if "ppl" in found:
                apart = abs(found["ppl"] / result["ppl"] - 1)
                found |= {"apart": apart, "passed": apart <= TOLERANCE}
            else:  # only what nobody could compute may be refused, and that must be
                relu2 = source.config.get("hidden_act") == "relu2"
                found["passed"] = relu2 and file_format not in IK_FORMATS
            found |= {"architecture": done.architecture, "bytes": file.stat().st_size}
            result[file_format] = found | {"others": done.others}
    return result


def ask(
    python: Path, file: Path, greedy: tuple[list[list[int]], list[list[int]]], texts: Any
) -> dict[str, Any]:
    """Let the program of a file compute our greedy tokens and the texts; or say why it will not."""
    out = str(file.with_suffix(".npy"))
    try:
        peer = Peer(python, file)
    except SystemExit as refusal:
        return {"refused": str(refusal).replace(f"{file.parent}/", "")}
    same = total = 0
    for ids, answer in zip(*greedy, strict=True):
        peer.ask({"op": "logits", "ids": ids + answer[:-1], "out": out})
        theirs = np.load(out)[len(ids) - 1 :].argmax(axis=1)
        same += int((theirs == answer).sum())
        total += len(answer)
    losses = []
    for ids in texts:
        peer.ask({"op": "logits", "ids": ids, "out": out})
        losses.append(nll(np.load(out), ids))
    peer.close()
    return {
        "program": peer.ready["package"], "greedy": f"{same}/{total}",
        "ppl": float(np.exp(np.mean(losses))),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="stories, UTF-8")
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    parser.add_argument("--python", type=Path, default=PYTHON, help="default: %(default)s")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--no-peer", action="store_true")
    arguments = parser.parse_args()
    text = SEPARATOR.join(path.read_text(encoding="utf-8") for path in arguments.text)
    models = []
    for name in arguments.models:
        models.append(measure(name, text, arguments.python, arguments))
        print(json.dumps(models[-1], indent=1), flush=True)
    if arguments.out:
        report = {"commit": commit(), "tolerance": TOLERANCE, "models": models}
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    judged = [model[name]["passed"] for model in models for name in FORMATS if name in model]
    return 0 if all(judged) else 1


if __name__ == "__main__":
    sys.exit(main())
