"""Damage headers of safetensors, GGUF and config.json, and see that each is read or refused.

    python -m bench.fuzz_readers {safetensors,gguf,config} [--seconds N] [--seed N] [--out FILE]

A reader may do two things with any bytes: give what they say, or raise ModelError with one line.
It may not allocate more than a small multiple of the file.  The seeds are whole files; damage is
random bytes, numbers replaced by extreme ones, pieces cut out, doubled or exchanged.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeagent.convert import configs
from edgeagent.convert.gguf import GgufCheckpoint
from edgeagent.convert.gguf_write import Planned, write_gguf_file
from edgeagent.convert.hf import HfCheckpoint
from edgeagent.errors import ModelError
from edgeagent.model.safetensors import parse_header, write_safetensors

#: What a reader may hold beside a file: its Python objects are some 60 times as large as one byte
#: of a header that becomes a number of a list, and the window of the file is 1 MiB.
BASE_BYTES = 8 << 20
BYTES_PER_BYTE = 80
EXTREMES = [0, 1, 2, 7, 31, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "vocab_size": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": [1, 2],
    "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"},
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}  # fmt: skip


def tensors() -> dict[str, tuple[int, ...]]:
    config = configs.normalise(CONFIG, "seed")
    return configs.expected_tensors(config, sub_norms=False, head_norms=False)


def safetensors_seed(folder: Path) -> bytes:
    path = folder / "seed.safetensors"
    items = [
        (name, "F16", shape, bytes(2 * int(np.prod(shape)))) for name, shape in tensors().items()
    ]
    with path.open("wb") as out:
        write_safetensors(out, items, {"format": "pt"})
    return path.read_bytes()


def gguf_seed(folder: Path) -> bytes:
    from edgeagent.convert.to_gguf import gguf_name

    keys = {
        "general.architecture": "llama", "general.alignment": 32, "llama.vocab_size": 32,
        "llama.context_length": 64, "llama.embedding_length": 16, "llama.feed_forward_length": 24,
        "llama.block_count": 1, "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": 8, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 1e4, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(32)],
        "tokenizer.ggml.token_type": [1] * 32, "tokenizer.ggml.merges": ["a b", "c d"],
        "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip
    shapes = tensors()
    planned = [
        Planned(gguf_name(name), 0, shape, 4 * int(np.prod(shape)))
        for name, shape in shapes.items()
    ]
    path = folder / "seed.gguf"
    write_gguf_file(path, keys, planned, lambda i: iter([np.zeros(planned[i].n_bytes, np.uint8)]))
    return path.read_bytes()


def damage(data: bytes, rng: random.Random, header: int) -> bytes:
    """Change some of the first `header` bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(min(header, len(out)) or 1) if out else 0
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at] = rng.randrange(256)
        elif kind == 1:
            out[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
        elif kind == 2:
            out[at : at + 4] = struct.pack("<I", rng.choice(EXTREMES) & 0xFFFFFFFF)
        elif kind == 3:
            del out[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            piece = out[at : at + rng.randrange(1, 64)]
            out[at:at] = piece * rng.choice((1, 2, 50))
        else:
            del out[rng.randrange(len(out) + 1) :]
    return bytes(out)


VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 1.5, float("inf"), float("nan"), 2**31, 2**63, 10**400, "",
    "x", "silu", "longrope", [], {}, [None], [10**30], {"rope_type": "linear"},
    {"type": "yarn"}, {"quant_method": "edgeagent"}, ["BitNetForCausalLM"], ["Qwen3ForCausalLM"],
]  # fmt: skip


def damage_json(value: Any, rng: random.Random) -> Any:
    """Replace, drop or add something anywhere in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.15:
            del changed[key]
        else:
            changed[key] = damage_json(value[key], rng)
        return changed
    return rng.choice([*VALUES, rng.randrange(1, 1 << rng.randrange(1, 70))])


def read_safetensors(data: bytes, folder: Path, rng: random.Random) -> None:
    parse_header(data, "fuzz", in_place=rng.random() < 0.5)


def read_gguf(data: bytes, folder: Path, rng: random.Random) -> None:
    path = folder / "fuzz.gguf"
    path.write_bytes(data)
    source = GgufCheckpoint(path)
    for name in source.shapes():
        source.floats(name, 0, 1)
        if source.is_ternary(name):
            source.trits(name)


def read_config(data: bytes, folder: Path, rng: random.Random) -> None:
    (folder / "config.json").write_bytes(data)
    HfCheckpoint(folder)


Reader = Callable[[bytes, Path, random.Random], None]
READERS: dict[str, Reader] = {
    "safetensors": read_safetensors, "gguf": read_gguf, "config": read_config,
}  # fmt: skip


def seed_of(kind: str, folder: Path) -> bytes:
    if kind == "gguf":
        return gguf_seed(folder)
    data = safetensors_seed(folder)
    if kind == "config":
        (folder / "model.safetensors").write_bytes(data)
        (folder / "seed.safetensors").unlink()
        return json.dumps(CONFIG).encode()
    return data


def header_of(kind: str, data: bytes) -> int:
    if kind == "safetensors":
        return 8 + int(struct.unpack("<Q", data[:8])[0])
    return 3000 if kind == "gguf" else len(data)


def mutate(kind: str, seed: bytes, header: int, rng: random.Random) -> bytes:
    if kind == "config" and rng.random() < 0.9:
        value = json.loads(seed)
        for _ in range(rng.choice((1, 1, 2, 4))):
            value = damage_json(value, rng)
        return json.dumps(value).encode()
    return damage(seed, rng, header)


def fuzz(kind: str, rng: random.Random, *, seconds: float = 0, rounds: int = 0) -> dict[str, Any]:
    """Run for a time or a number of rounds; raise on anything but a value or a ModelError."""
    counts = {"accepted": 0, "refused": 0}
    reasons: set[str] = set()
    peak = 0.0
    end = time.process_time() + seconds  # of our own: a busy machine takes longer
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seed = seed_of(kind, folder)
        header = header_of(kind, seed)
        READERS[kind](seed, folder, rng)
        tracemalloc.start()
        while sum(counts.values()) < rounds if rounds else time.process_time() < end:
            data = mutate(kind, seed, header, rng)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                READERS[kind](data, folder, rng)
                counts["accepted"] += 1
            except ModelError as err:
                counts["refused"] += 1
                assert "\n" not in str(err), str(err)
                reasons.add("".join(c for c in str(err) if c.isalpha() or c == " ")[:40])
            except BaseException:
                Path(f"fuzz-{kind}.bin").write_bytes(data)
                raise
            used = tracemalloc.get_traced_memory()[1] - before
            assert used <= BASE_BYTES + BYTES_PER_BYTE * len(data), (used, len(data))
            peak = max(peak, used)
        tracemalloc.stop()
    return counts | {"reasons": len(reasons), "peak_bytes": int(peak)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=READERS)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    result = {"kind": args.kind, "seconds": args.seconds, "seed": args.seed}
    result |= fuzz(args.kind, random.Random(args.seed), seconds=args.seconds)
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
