"""Fuzz the readers of tokenizers: python -m bench.fuzz_tokenizers TARGET --seconds 600

Inputs are sound ones with bytes or values changed.  A reader may refuse (ModelError, one line) or
read; it may not crash, nor raise anything else, nor take more memory than the size of its input
explains.  The input at hand lies in --keep, in case the process dies.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeagent.convert.llama2c import Llama2cCheckpoint, parse_bin
from edgeagent.convert.sentencepiece import parse_spm
from edgeagent.convert.tokenizers import from_gguf, from_hf_dir, from_pieces
from edgeagent.errors import ModelError

RECORDED = Path(__file__).parents[1] / "tests/convert/recorded_tokenizers.json"
#: Python objects of a byte of input, at the most: a list of one-letter tokens with their merges.
BYTES_A_BYTE = 400
SPARE_BYTES = 8 << 20
#: Of address space, above what the process has when it begins: the tokenizers library allocates
#: where tracemalloc does not look.
HEADROOM_BYTES = 2 << 30
CHECK_EVERY = 50

Target = Callable[[random.Random, Path], int]


def change_bytes(r: random.Random, sound: bytes) -> bytes:
    data = bytearray(sound)
    for _ in range(r.choice((1, 1, 2, 4, 16))):
        at = r.randrange(len(data) or 1)
        kind = r.randrange(5)
        if kind < 2 and data:
            data[at] = r.choice((0, 1, 0x7F, 0x80, 0xFF, r.randrange(256)))
        elif kind == 2:
            data[at:at] = r.randbytes(r.randrange(1, 9))
        elif kind == 3:
            del data[at : at + r.randrange(1, 64)]
        else:
            other = r.randrange(len(data) or 1)
            data[at:at] = data[other : other + r.randrange(1, 256)]
    return bytes(data[: r.randrange(len(data) + 1)] if r.random() < 0.05 else data)


ODD: list[Any] = [
    None, True, False, -1, 0, 1, 255, 2**31, 2**63, -0.0, 1e308, float("nan"), "", " ", "a", "a b",
    "\u2581", "\x00", "\ufffe", "<0x41>", [], {}, [[]], ["a", "a"], "a" * 600,
    {"type": "Sequence", "normalizers": []}, {"type": "Strip"}, {"type": "ByteLevel"},
    {"Regex": "(a+)+$"}, {"Regex": "["}, {"String": ""}, {"type": "Prepend", "prepend": ""},
]  # fmt: skip


def change_value(r: random.Random, value: Any) -> Any:
    """Change, drop or double one thing somewhere inside."""
    if isinstance(value, dict) and value and r.random() < 0.9:
        key = r.choice(list(value))
        if r.random() < 0.08:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: change_value(r, value[key])}
    if isinstance(value, list) and value and r.random() < 0.9:
        i = r.randrange(len(value))
        kind = r.randrange(12)
        if kind == 0:
            return value[:i] + value[i + 1 :]
        if kind == 1:
            return value[:i] + [value[i]] * r.randrange(1, 30) + value[i:]
        return [*value[:i], change_value(r, value[i]), *value[i + 1 :]]
    if isinstance(value, str) and r.random() < 0.3:
        return value * r.randrange(40)
    return r.choice(ODD)


def spm_target() -> Target:
    sound = base64.b64decode(json.loads(RECORDED.read_text("utf-8"))["spm"])
    header = sound[-400:]  # the settings, where most of the meaning is

    def run(r: random.Random, keep: Path) -> int:
        data = change_bytes(r, sound)
        if r.random() < 0.5:
            data = sound[:-400] + change_bytes(r, header)
        keep.write_bytes(data)
        from_pieces(parse_spm(data, "tokenizer.model"), "tokenizer.model")
        return len(data)

    return run


def small_metadata() -> dict[str, Any]:
    """The recorded vocabularies cut small, so that many inputs fit a minute."""
    full = json.loads(RECORDED.read_text("utf-8"))["metadata"]
    tokens, merges = full["tokenizer.ggml.tokens"], full["tokenizer.ggml.merges"]
    n = 300
    kept = set(tokens[:n])
    pairs = [m for m in merges if m.replace(" ", "", 1) in kept]
    return {
        "general.architecture": "bitnet-b1.58", "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": [*tokens[:n], "<|x|>"],
        "tokenizer.ggml.token_type": [1] * n + [3], "tokenizer.ggml.merges": pairs,
        "tokenizer.ggml.scores": [-float(i) for i in range(n + 1)],
        "tokenizer.ggml.bos_token_id": n, "tokenizer.ggml.eos_token_id": n,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }  # fmt: skip


def gguf_target() -> Target:
    sound = small_metadata()

    def run(r: random.Random, keep: Path) -> int:
        metadata = dict(sound)
        for _ in range(r.randrange(1, 4)):
            key = r.choice(list(metadata))
            metadata[key] = change_value(r, metadata[key])
        if r.random() < 0.3:
            metadata["tokenizer.ggml.model"] = "llama"
        text = json.dumps(metadata)
        keep.write_text(text)
        from_gguf(metadata)
        return len(text)

    return run


def json_target() -> Target:
    files = from_gguf(small_metadata())
    assert files is not None
    sound = dict(files.tokenizer)
    text = json.dumps(sound).encode()

    def run(r: random.Random, keep: Path) -> int:
        kind, changed = r.random(), dict(sound)
        if kind < 0.5:
            changed["model"] = change_value(r, sound["model"])
        elif kind < 0.75:
            changed = change_value(r, sound)
        data = json.dumps(changed).encode() if kind < 0.75 else change_bytes(r, text)
        keep.write_bytes(data)
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "tokenizer.json").write_bytes(data)
            settings: Any = {"bos_token": "<|x|>", "eos_token": "<|x|>"}
            if r.random() < 0.2:
                settings = change_value(r, settings)
            (Path(name) / "tokenizer_config.json").write_text(json.dumps(settings))
            from_hf_dir(Path(name))
        return len(data)

    return run


def llama2c_target() -> Target:
    from tests.convert.test_llama2c import PIECES, Ternary, bin_file, float_file

    models = [Ternary().file(), float_file(legacy=True)[0], float_file(legacy=False)[0]]
    tokenizer = bin_file(PIECES)

    def run(r: random.Random, keep: Path) -> int:
        if r.random() < 0.3:
            data = change_bytes(r, tokenizer)
            parse_bin(data, len(PIECES), "tokenizer.bin")
            return len(data)
        sound = r.choice(models)
        data = change_bytes(r, sound[:300]) + sound[300:]
        keep.write_bytes(data)
        source = Llama2cCheckpoint(keep)
        for name in list(source.shapes())[:8]:
            source.floats(name)
        return len(data)

    return run


TARGETS = {
    "spm": spm_target, "gguf": gguf_target, "json": json_target, "llama2c": llama2c_target
}  # fmt: skip


def fuzz(target: Target, seconds: float, seed: int, keep: Path) -> tuple[int, int, float]:
    """Return the inputs, how many were read, and the most memory a byte of input."""
    r, end = random.Random(seed), time.process_time() + seconds
    n = read = 0
    most = 0.0
    while time.process_time() < end:
        watched = n % CHECK_EVERY == 0
        if watched:
            tracemalloc.start()
        size = 1
        try:
            size = target(r, keep)
            read += 1
        except ModelError as err:
            assert "\n" not in str(err), err
            size = keep.stat().st_size if keep.exists() else 1
        if watched:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak <= BYTES_A_BYTE * size + SPARE_BYTES, f"{peak} bytes for {size}"
            most = max(most, (peak - SPARE_BYTES) / size)
        n += 1
    return n, read, most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=600, help="of CPU time")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz-input"))
    arguments = parser.parse_args()
    arguments.keep.parent.mkdir(parents=True, exist_ok=True)
    target = TARGETS[arguments.target]()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM_BYTES, used + HEADROOM_BYTES))
    started_s = time.process_time()
    n, read, most = fuzz(target, arguments.seconds, arguments.seed, arguments.keep)
    result = {
        "target": f"tokenizer {arguments.target}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": arguments.seed,
        "cpu_seconds": round(time.process_time() - started_s, 1),
        "cases": n, "read": read, "refused": n - read, "most_bytes_a_byte": round(max(most, 0), 1),
        "limit": f"{SPARE_BYTES} bytes and {BYTES_A_BYTE} a byte of input",
    }  # fmt: skip
    print(json.dumps(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
