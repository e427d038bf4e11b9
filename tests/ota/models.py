"""Small random model directories in the format of ``docs/formats.md``; no engine needed."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ota.release import FileEntry, root_of

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Shape:
    """How big a model is; ``plane_bytes`` is one projection's packed plane."""

    layers: int = 2
    plane_bytes: int = 32 * 64
    vocab_bytes: int = 4096


Tensors = dict[str, np.ndarray]


def pack(trits: np.ndarray) -> np.ndarray:
    """Pack trits in {-1, 0, 1} four codes a byte, in blocks of 128."""
    codes = (trits + 1).astype(np.uint8).reshape(-1, 4, 32)
    return (codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6).reshape(-1)


def random_trits(rng: np.random.Generator, n: int, p_zero: float = 0.42) -> np.ndarray:
    return rng.choice([-1, 0, 1], size=n, p=[(1 - p_zero) / 2, p_zero, (1 - p_zero) / 2])


def random_shards(seed: int, shape: Shape) -> dict[str, Tensors]:
    """Return tensors by shard name; packed planes are U8."""
    rng = np.random.default_rng(seed)
    n = shape.layers + 1
    name = "model-{:05d}-of-{:05d}.safetensors".format
    shards = {name(1, n): {"model.embed_tokens.weight": _halves(rng, shape.vocab_bytes)}}
    for layer in range(shape.layers):
        tensors: Tensors = {}
        for projection in PROJECTIONS:
            key = f"model.layers.{layer}.{projection}_proj.weight"
            tensors[key] = pack(random_trits(rng, shape.plane_bytes * 4))
            tensors[f"{key}_scale"] = rng.random(1, dtype=np.float32)
        tensors[f"model.layers.{layer}.norm.weight"] = rng.random(64, dtype=np.float32)
        shards[name(layer + 2, n)] = tensors
    return shards


def flip(shards: dict[str, Tensors], rate: float, seed: int) -> dict[str, Tensors]:
    """Change trits independently: 0 to +-1, +-1 to 0."""
    rng = np.random.default_rng(seed)
    return {
        shard: {
            key: _flip_plane(value, rate, rng) if value.dtype == np.uint8 else value
            for key, value in tensors.items()
        }
        for shard, tensors in shards.items()
    }


def write_model(
    path: Path,
    shards: dict[str, Tensors],
    *,
    version: str,
    counter: int,
    name: str = "edge-test",
) -> Path:
    """Write a whole model directory with a valid ``release.json``."""
    path.mkdir(parents=True)
    for shard, tensors in shards.items():
        (path / shard).write_bytes(safetensors(tensors))
    (path / "config.json").write_text(json.dumps({"hidden_size": 64, "version": version}))
    (path / "tokenizer.json").write_text(json.dumps({"vocab": list(range(200))}))
    write_release(path, version=version, counter=counter, name=name)
    return path


def write_release(path: Path, *, version: str, counter: int, name: str = "edge-test") -> None:
    files = {
        file.name: FileEntry(file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in path.iterdir()
        if file.name != "release.json"
    }
    release = {
        "format": 1,
        "name": name,
        "version": version,
        "counter": counter,
        "files": {n: {"bytes": e.n_bytes, "sha256": e.sha256} for n, e in sorted(files.items())},
        "root": root_of(files),
        "health": {"prompts": [[1, 2, 3]], "logits_sha256": ["0" * 64]},
    }
    (path / "release.json").write_text(json.dumps(release, indent=1))


def safetensors(tensors: Tensors) -> bytes:
    """Serialise, planes first, header padded to 64 bytes."""
    order = sorted(tensors, key=lambda key: (-_alignment(tensors[key]), key))
    header, offset = {}, 0
    for key in order:
        end = offset + tensors[key].nbytes
        header[key] = {
            "dtype": {"uint8": "U8", "float32": "F32", "float16": "F16"}[str(tensors[key].dtype)],
            "shape": list(tensors[key].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text + b"".join(tensors[k].tobytes() for k in order)


def _alignment(tensor: np.ndarray) -> int:
    return 32 if tensor.dtype == np.uint8 else tensor.dtype.itemsize


def _halves(rng: np.random.Generator, n_bytes: int) -> np.ndarray:
    return rng.standard_normal(n_bytes // 2).astype(np.float16)


def _flip_plane(plane: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    codes = (plane[:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3).reshape(-1)
    hit = rng.random(codes.size) < rate
    new = np.where(codes == 1, rng.choice(np.array([0, 2], np.uint8), codes.size), 1)
    codes = np.where(hit, new, codes).astype(np.uint8).reshape(-1, 4)
    return codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6
