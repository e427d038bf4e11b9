"""A synthetic 2B-4T: written as others write it, converted, inspected, loaded, asked.

    python -m bench.convert [--format hf|gguf] [--layers 30] [--work DIR] [--out FILE]

Real shapes, random trits, a vocabulary of 128,256 tokens.  Each step is a process of its own, so
that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeagent.convert import configs
from edgeagent.convert.gguf_types import encode_hf, encode_i2s, i2s_bytes
from edgeagent.convert.gguf_write import Planned, write_gguf_file
from edgeagent.convert.hf import is_projection
from edgeagent.convert.to_gguf import gguf_name
from edgeagent.model.safetensors import Stream, write_safetensors

SCALE = np.float32(1.5)  # masters of 2B-4T are of this size
ROWS = 8192
PROMPT = "Hello"


def config(layers: int) -> dict[str, Any]:
    """The config of BitNet b1.58 2B-4T, as its repository has it."""
    return {
        "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_size": 2560,
        "intermediate_size": 6912, "num_hidden_layers": layers, "num_attention_heads": 20,
        "num_key_value_heads": 5, "vocab_size": 128256, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "relu2",
        "tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": 128001,
        "quantization_config": {
            "quant_method": "bitnet", "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    }  # fmt: skip


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    normal = configs.normalise(config(layers), "2b-4t")
    return configs.expected_tensors(normal, sub_norms=True, head_norms=False)


def trits(i: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.SFC64(i)).integers(-1, 2, shape, np.int8)


def embedding(shape: tuple[int, ...], kind: str) -> Any:
    """Rows of an embedding as bfloat16 or float16, some at a time."""
    for begin in range(0, shape[0], ROWS):
        rng = np.random.Generator(np.random.SFC64([9, begin]))
        rows = rng.standard_normal((min(ROWS, shape[0] - begin), shape[1]), np.float32)
        wide = (rows.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        data = (wide.view(np.uint32) >> 16).astype("<u2") if kind == "BF16" else wide.astype("<f2")
        yield data.data.cast("B")


def write_tokenizer(path: Path, vocab: int) -> None:
    """A byte-level tokenizer of the real size: 256 bytes, made-up words, 256 special tokens."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"word{i}" for i in range(vocab - 512)]
    special = [f"<|special_{i}|>" for i in range(256)]
    added = [
        {
            "id": vocab - 256 + i, "content": text, "special": True, "single_word": False,
            "lstrip": False, "rstrip": False, "normalized": False,
        }
        for i, text in enumerate(special)
    ]  # fmt: skip
    level = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "merges": [],
            "vocab": {text: i for i, text in enumerate(alphabet + words)},
        },
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"bos_token": special[0], "eos_token": special[1]}
    (path / "tokenizer_config.json").write_text(json.dumps(names))


def hf_tensors(layers: int) -> Any:
    for i, (name, shape) in enumerate(shapes(layers).items()):
        if is_projection(name):
            packed = (shape[0] // 4, shape[1])
            size = packed[0] * packed[1]
            yield (
                name,
                "U8",
                packed,
                Stream(
                    size, lambda i=i, shape=shape: iter([encode_hf(trits(i, shape)).data.cast("B")])
                ),
            )
            yield f"{name}_scale", "BF16", (1,), b"\xc0\x3f"  # 1.5
        elif len(shape) == 1:
            yield name, "BF16", shape, b"\x80\x3f" * shape[0]
        else:
            size = 2 * shape[0] * shape[1]
            yield name, "BF16", shape, Stream(size, lambda shape=shape: embedding(shape, "BF16"))


def write_hf(path: Path, layers: int) -> Path:
    path.mkdir(parents=True)
    with (path / "model.safetensors").open("wb") as out:
        write_safetensors(out, hf_tensors(layers), {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config(layers)))
    write_tokenizer(path, 128256)
    return path


def write_gguf(path: Path, layers: int) -> Path:
    """As the official I2_S file: architecture bitnet-b1.58, no key says squared ReLU."""
    path.parent.mkdir(parents=True, exist_ok=True)
    c, arch = config(layers), "bitnet-b1.58"
    keys = {
        "general.architecture": arch, f"{arch}.vocab_size": c["vocab_size"],
        f"{arch}.context_length": 4096, f"{arch}.embedding_length": 2560,
        f"{arch}.feed_forward_length": 6912, f"{arch}.block_count": layers,
        f"{arch}.attention.head_count": 20, f"{arch}.attention.head_count_kv": 5,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5, f"{arch}.rope.dimension_count": 128,
        f"{arch}.rope.freq_base": 500000.0,
    }  # fmt: skip
    items = list(shapes(layers).items())
    planned = []
    for name, shape in items:
        size = int(np.prod(shape))
        kind, n = (36, i2s_bytes(size)) if is_projection(name) else (0, 4 * size)
        kind, n = (1, 2 * size) if name.startswith("model.embed") else (kind, n)
        planned.append(Planned(gguf_name(name), kind, shape, n))

    def read(i: int) -> Any:
        name, shape = items[i]
        if is_projection(name):
            yield encode_i2s(trits(i, shape), float(SCALE))
        elif len(shape) == 1:
            yield np.ones(shape, "<f4")
        else:
            for rows in embedding(shape, "F16"):
                yield np.frombuffer(rows, np.uint8)

    write_gguf_file(path, keys, planned, read)
    return path


def step(command: list[str]) -> dict[str, Any]:
    """Run one process; return its time, its peak of memory and its last line."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    text = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    seconds = time.monotonic() - begin
    cpu = usage.ru_utime + usage.ru_stime
    return {
        "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2),
        "peak_rss_mb": round(usage.ru_maxrss / 1024, 1), "output": text.strip()[-2000:],
    }  # fmt: skip


def generate(model: Path, tokens: int) -> None:
    """Load and generate in this process; print what it gave."""
    from edgeagent.model.generation import LoadedModel, Params

    loaded = LoadedModel(model, threads=2, context=256)
    ids = loaded.encode(PROMPT, None)
    text = "".join(loaded.generate(ids, Params(max_tokens=tokens)))
    print(json.dumps({"tokens": tokens, "text": text}))


def size_of(path: Path) -> int:
    return sum(f.stat().st_size for f in path.iterdir()) if path.is_dir() else path.stat().st_size


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", choices=("hf", "gguf"), default="hf")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--work", type=Path, default=Path("build/convert-2b4t"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.generate:
        generate(args.generate, 8)
        return 0
    shutil.rmtree(args.work, ignore_errors=True)
    writers = {"hf": (write_hf, "hf"), "gguf": (write_gguf, "model.gguf")}
    write, name = writers[args.format]
    source, target = args.work / name, args.work / "ours"
    print(f"writing {source}", file=sys.stderr)
    write(source, args.layers)
    edgeagent = [sys.executable, "-m", "edgeagent.cli"]
    command = [*edgeagent, "convert", str(source), str(target), "--name", "synthetic-2b4t"]
    command += ["--release", "1.0.0", "--counter", "1", "--json"]
    if args.format == "gguf":  # the file has no tokenizer
        (args.work / "words").mkdir()
        write_tokenizer(args.work / "words", 128256)
        command += ["--tokenizer", str(args.work / "words")]
    result: dict[str, Any] = {
        "format": args.format, "layers": args.layers, "source_bytes": size_of(source),
        "convert": step(command), "target_bytes": size_of(target),
        "generate": step([sys.executable, "-m", "bench.convert", "--generate", str(target)]),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(args.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
