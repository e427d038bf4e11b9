"""GGUF files for the fuzzer: sound ones of every architecture, as tables that can be changed.

A table is a JSON value, so that anything in it can be replaced by anything; `encode` writes it as
well as it can, whatever has become of it.
"""

from __future__ import annotations

import math
import random
import struct
from typing import Any

import numpy as np

from edgeagent.convert import configs
from edgeagent.convert.gguf import ARCHS
from edgeagent.convert.gguf_file import TYPES
from edgeagent.convert.gguf_types import TERNARY_BLOCKS, encode_blocks, encode_i2s
from edgeagent.convert.to_gguf import gguf_name

ALIGNMENT = 32
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
PACKING = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}
Q2_0 = 42
N_TOKENS = 32
CONFIG = {
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": N_TOKENS,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
_KEYS = {
    "context_length": 64, "embedding_length": 256, "feed_forward_length": 256, "block_count": 1,
    "attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 32,
    "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e4, "vocab_size": N_TOKENS,
}  # fmt: skip


def _typed(value: Any) -> list[Any]:
    """Return [type, value] of a key's value."""
    if isinstance(value, bool):
        return [BOOL, int(value)]
    if isinstance(value, int):
        return [U32, value]
    if isinstance(value, float):
        return [F32, value]
    if isinstance(value, str):
        return [STRING, value]
    return [ARRAY, [_typed(value[0])[0] if not isinstance(value[0], int) else I32, value]]


def _keys(arch: str) -> list[list[Any]]:
    metadata: dict[str, Any] = {"general.architecture": arch, "general.alignment": ALIGNMENT}
    metadata |= {f"{arch}.{key}": value for key, value in _KEYS.items()}
    if arch == "minicpm":
        metadata |= {
            "minicpm.residual_scale": 0.5, "minicpm.logit_scale": 1.0,
            "minicpm.embedding_scale": 12.0, "minicpm.rope.scaling.type": "longrope",
        }  # fmt: skip
    elif arch == "qwen3":
        metadata |= {"qwen3.rope.scaling.type": "linear", "qwen3.rope.scaling.factor": 2.0}
    metadata |= {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": ["a", "b", "ab", *(f"t{i}" for i in range(N_TOKENS - 4)), "</s>"],
        "tokenizer.ggml.token_type": [1] * (N_TOKENS - 1) + [3],
        "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": N_TOKENS - 1,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }  # fmt: skip
    return [[key, *_typed(value)] for key, value in metadata.items()]


def _matrix(rng: np.random.Generator, kind: int, shape: tuple[int, ...]) -> bytes:
    """Return sound bytes of a type."""
    name = "Q2_0_G64" if kind == Q2_0 else TYPES[kind].name
    if name in TERNARY_BLOCKS:
        trits = rng.integers(-1, 2, shape, np.int8)
        scales = np.ones((shape[0], shape[1] // TERNARY_BLOCKS[name].weights), np.float32)
        return encode_blocks(name, trits, scales).tobytes()
    if name == "I2_S":
        return encode_i2s(rng.integers(-1, 2, shape, np.int8), 0.5).tobytes()
    if name == "F32":
        return np.full(shape, 0.5, np.float32).tobytes()
    info = TYPES[kind]
    return bytes(math.prod(shape) // info.weights * info.n_bytes)


def _kind(rng: random.Random, name: str, shape: tuple[int, ...], main: int) -> int:
    if len(shape) == 1:
        return 0
    if "_proj" in name:
        return main if shape[-1] % 256 == 0 else 36 if main == 36 else 0
    return rng.choice((0, 1, 30, 8, 14, 12, 2))


def sound(arch: str, main: int, seed: int) -> tuple[dict[str, Any], bytes]:
    """Return table and data section of a file whose matrices have type `main`."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    family = ARCHS[arch].family
    shapes = configs.expected_tensors(
        CONFIG, sub_norms=family == configs.BITNET, head_norms=family == configs.QWEN3
    )
    named = [(gguf_name(name), name, shape) for name, shape in shapes.items()]
    if arch == "minicpm":
        named += [(f"rope_factors_{x}.weight", "rope", (16,)) for x in ("long", "short")]
    rows, data = [], b""
    for stored, name, shape in named:
        kind = _kind(rng, name, shape, main)
        rows.append([stored, list(shape[::-1]), kind, len(data)])
        data += _matrix(numbers, kind, shape)
        data += bytes(-len(data) % ALIGNMENT)
    table = {
        "magic": "GGUF", "version": 3, "n_tensors": len(rows), "n_keys": 0, "keys": _keys(arch),
        "tensors": rows,
    }  # fmt: skip
    return table | {"n_keys": len(table["keys"])}, data


def _whole(value: Any, bits: int) -> int:
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return int(value) & ((1 << bits) - 1) if is_number else 0


def _text(value: Any) -> bytes:
    data = (value if isinstance(value, str) else repr(value)[:99]).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _scalar(kind: int, value: Any) -> bytes:
    code = PACKING.get(kind, "I")
    if code in "fd":
        good = isinstance(value, int | float) and abs(value) < 1e30
        return struct.pack(f"<{code}", value if good else 0.0)
    size = struct.calcsize(code)
    return _whole(value, 8 * size).to_bytes(size, "little")


def _value(kind: int, value: Any, depth: int = 0) -> bytes:
    if kind == STRING:
        return _text(value)
    if kind != ARRAY or depth > 50:
        return _scalar(kind, value)
    inner, items = value if isinstance(value, list) and len(value) == 2 else (ARRAY, value)
    inner = _whole(inner, 32)
    items = items if isinstance(items, list) else []
    head = struct.pack("<IQ", inner, len(items))
    return head + b"".join(_value(inner, item, depth + 1) for item in items)


def _list(value: Any, length: int) -> list[Any]:
    return (value if isinstance(value, list) else [])[:length] + [0] * (
        length - (len(value) if isinstance(value, list) else 0)
    )


def encode(table: Any, data: bytes) -> bytes:
    """Write a file, whatever the table has become."""
    table = table if isinstance(table, dict) else {}
    out = str(table.get("magic"))[:4].encode("ascii", "replace")
    out += struct.pack(
        "<IQQ",
        _whole(table.get("version"), 32),
        _whole(table.get("n_tensors"), 64),
        _whole(table.get("n_keys"), 64),
    )
    for row in table.get("keys") or [] if isinstance(table.get("keys"), list) else []:
        key, kind, value = _list(row, 3)
        out += _text(key) + struct.pack("<I", _whole(kind, 32)) + _value(_whole(kind, 32), value)
    for row in table.get("tensors") or [] if isinstance(table.get("tensors"), list) else []:
        name, dims, kind, offset = _list(row, 4)
        dims = dims if isinstance(dims, list) else [dims]
        out += _text(name) + struct.pack("<I", len(dims))
        out += b"".join(_whole(dim, 64).to_bytes(8, "little") for dim in dims)
        out += struct.pack("<IQ", _whole(kind, 32), _whole(offset, 64))
    return out + bytes(-len(out) % ALIGNMENT) + data
