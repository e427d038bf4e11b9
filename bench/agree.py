"""Do the peers compute our model?  python -m bench.agree

Two small random models of SiLU, one with sub-norms and one without, in every format: our logits
beside each peer's after the same tokens.  They cannot be equal: we quantise the activations of a
token to int8 with one scale, llama.cpp with one for 256 (Q8_K) or 32 (Q8_0) of them, or with none
(F16), and its head may be quantised.  That leaves cosines above 0.997; rows of q and k in the wrong
order give 0.93.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.compare import PYTHON, Peer
from bench.gguf_peer import FORMATS, Source, write_gguf
from edgeagent import _core
from edgeagent.model.safetensors import write_safetensors
from tests.core.toy import Shape, make_toy

N_TOKENS = 64
SEED = 1
SHAPES = {
    "bitnet": Shape(hidden=512, ffn=1024, layers=4, heads=8, kv_heads=4, vocab=1000, act="silu"),
    "llama": Shape(
        hidden=512, ffn=1024, layers=4, heads=8, kv_heads=4, vocab=1000, act="silu",
        sub_norms=False, tied=False,
    ),
}  # fmt: skip


def write_model(path: Path, shape: Shape) -> None:
    toy = make_toy(shape, SEED)
    path.mkdir()
    tensors = [(name, d, s, bytes(data)) for name, (d, s, data) in toy.tensors().items()]
    with (path / "model.safetensors").open("wb") as out:
        write_safetensors(out, tensors, {})
    (path / "config.json").write_text(json.dumps(toy.config))


def our_logits(source: Source, ids: list[int]) -> np.ndarray:
    session = _core.Session(_core.Model(source.config, source.tensors()), len(ids))
    rows = []
    for token in ids:
        session.eval([token])
        rows.append(np.array(session.logits()))
    return np.stack(rows)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Cosine of the logits (least and middle), how often the arg-max agrees, mean KL in nats."""
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = (ours * theirs).sum(axis=1) / norms
    p, q = log_softmax(ours), log_softmax(theirs)
    return {
        "cosine_min": cosine.min(),
        "cosine_median": np.median(cosine),
        "top1": (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean(),
        "kl_nats": (np.exp(p) * (p - q)).sum(axis=1).mean(),
    }


def peers_logits(python: Path, model: Path, ids: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Write `model` in every format and yield what its peer makes of it."""
    for name in FORMATS:
        file, out = model / f"{name}.gguf", str(model / "logits.npy")
        write_gguf(model, file, name)
        peer = Peer(python, file)
        peer.ask({"op": "logits", "ids": ids, "out": out})
        peer.close()
        yield name, np.load(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, default=PYTHON, help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for arch, shape in SHAPES.items():
            model = Path(scratch) / arch
            write_model(model, shape)
            ids = np.random.default_rng(SEED).integers(0, shape.vocab, N_TOKENS).tolist()
            ours = our_logits(Source(model), ids)
            for name, theirs in peers_logits(arguments.python, model, ids):
                figures = compare(ours, theirs).items()
                print(f"{arch:7} {name:10} {'  '.join(f'{k} {v:.5f}' for k, v in figures)}")


if __name__ == "__main__":
    main()
