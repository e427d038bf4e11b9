"""A model directory on disk: verified against its release, mapped, never copied."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgeagent.errors import ModelError
from edgeagent.model.adapter import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    Modules,
    map_adapter,
)
from edgeagent.model.pages import fetch_huge
from edgeagent.model.safetensors import SafetensorsFile
from ota.errors import ReleaseFormatError
from ota.release import MAX_RELEASE_BYTES, RELEASE_FILE, FileEntry, Release, parse_release

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
QUANT_METHOD = "edgeagent"
LAYOUTS = (1, 2)  # 2 bit and base 3, docs/formats.md section 3
COMPARISON_LAYOUTS = (3, 4, 5)  # binary, int8 and float16, section 3b: what the bench writes
#: SHA-256 releases the interpreter; a large model starts as fast as its largest file is hashed.
MAX_HASH_THREADS = 4
HASH_ALONE = 64 << 20  # bytes of a model below which threads cost more than they save
WINDOW_BYTES = 32 << 20  # of a file that are mapped at once while it is hashed
HASH_BYTES = 256 << 10  # stay in a second-level cache between reading and hashing
#: config.json and the index of a 60-layer model are below 100 KiB.
MAX_JSON_BYTES = 4 << 20

Tensors = dict[str, tuple[str, tuple[int, ...], memoryview]]


def read_json(path: Path) -> dict[str, Any]:
    """Read one bounded JSON object.

    Raises:
        ModelError: missing, too large, or not a JSON object.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
    except OSError as err:
        raise ModelError(f"{path.name}: cannot be read from {path.parent}: {err.strerror}") from err
    if len(text) > MAX_JSON_BYTES:
        raise ModelError(f"{path.name}: expected at most {MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise ModelError(f"{path.name}: not JSON: {err}") from err
    if not isinstance(value, dict):
        raise ModelError(f"{path.name}: expected a JSON object, got {type(value).__name__}")
    return value


def read_release(path: Path) -> Release:
    """Read `release.json` of the model directory `path` without looking at its files.

    Raises:
        ModelError: no release, or an unsound one.
    """
    try:
        with (path / RELEASE_FILE).open("rb") as file:
            return parse_release(file.read(MAX_RELEASE_BYTES + 1))
    except OSError as err:
        raise ModelError(
            f"{path}: expected a model directory with {RELEASE_FILE}: {err.strerror}"
        ) from err
    except ReleaseFormatError as err:
        raise ModelError(f"{path}: {err}") from err


def _digest(file: BinaryIO, size: int) -> str:
    """Return the SHA-256 (hex) of a file, which is then in huge pages of the page cache."""
    sha256 = hashlib.sha256()
    for at in range(0, size, WINDOW_BYTES):
        fetch_huge(file, at, min(WINDOW_BYTES, size - at))
        left = min(WINDOW_BYTES, size - at)
        while left and (piece := file.read(min(HASH_BYTES, left))):
            sha256.update(piece)
            left -= len(piece)
    return sha256.hexdigest()


def _verify_file(path: Path, name: str, entry: FileEntry) -> None:
    try:
        with (path / name).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            sha256 = _digest(file, size)
    except OSError as err:
        raise ModelError(f"{path}: {name}: cannot be read: {err.strerror}") from err
    if size != entry.n_bytes:
        raise ModelError(f"{path}: {name}: expected {entry.n_bytes} bytes, got {size}")
    if sha256 != entry.sha256:
        raise ModelError(
            f"{path}: {name}: expected sha256 {entry.sha256[:16]}…, got {sha256[:16]}…: "
            "the file is damaged, install the model again"
        )


def verify(path: Path) -> Release:
    """Check size and SHA-256 of every file that the release of `path` names.

    Raises:
        ModelError: a file is missing, cut short, longer, or has other bytes.
    """
    release = read_release(path)
    threads = min(os.cpu_count() or 1, MAX_HASH_THREADS) if release.n_bytes > HASH_ALONE else 1
    largest_first = sorted(release.files.items(), key=lambda item: -item[1].n_bytes)
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda item: _verify_file(path, *item), largest_first):
            pass
    return release


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A verified model directory: its release, its config and views of its mapped tensors."""

    path: Path
    release: Release
    config: Mapping[str, Any]
    tensors: Tensors
    adapter: Modules | None = None


def _shards(path: Path, release: Release) -> dict[str, list[str]]:
    weight_map = read_json(path / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{INDEX_NAME}: expected a weight_map of tensor names to shards")
    shards: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or shard not in release.files:
            raise ModelError(f"{INDEX_NAME}: {tensor}: shard {shard!r} is not in {RELEASE_FILE}")
        shards.setdefault(shard, []).append(tensor)
    return shards


def _check_layout(config: Mapping[str, Any], comparison: bool) -> None:
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        raise ModelError(
            f"{CONFIG_NAME}: no quantization_config: not a packed model, run `edgeagent convert`"
        )
    method, layout = quantization.get("quant_method"), quantization.get("layout")
    allowed = (*LAYOUTS, *COMPARISON_LAYOUTS) if comparison else LAYOUTS
    if method != QUANT_METHOD or type(layout) is not int or layout not in allowed:
        raise ModelError(
            f"{CONFIG_NAME}: expected quant_method {QUANT_METHOD!r} layout 1 or 2, "
            f"got {method!r} layout {layout!r}: run `edgeagent convert`"
        )


def read_adapter(path: Path) -> Modules:
    """Read the adapter in the directory `path`, which need not be a model's.

    Raises:
        ModelError: there is none, or one that the engine cannot use.
    """
    return map_adapter(path, read_json(path / ADAPTER_CONFIG_NAME))


def _adapter_of(path: Path, release: Release) -> Modules | None:
    """Return the adapter that is part of a model: the files that its release names."""
    names = (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME)
    named = [name for name in names if name in release.files]
    if not named:
        return None
    if len(named) == 1:
        raise ModelError(f"{path}: expected {' and '.join(names)} or neither, got {named[0]} alone")
    return read_adapter(path)


def open_model(path: Path, *, comparison: bool = False) -> ModelFiles:
    """Verify and map the model directory `path`.

    Args:
        path: the directory.
        comparison: take the layouts 3 to 5 too, which exist to be measured.

    Raises:
        ModelError: anything wrong with any file; nothing stays open.
    """
    release = verify(path)
    config = read_json(path / CONFIG_NAME)
    _check_layout(config, comparison)
    tensors: Tensors = {}
    for shard, names in _shards(path, release).items():
        file = SafetensorsFile(path / shard)
        if set(names) != set(file.infos):
            odd = sorted(set(names) ^ set(file.infos))[0]
            raise ModelError(f"{shard}: {odd}: {INDEX_NAME} and the shard's header disagree")
        for name in names:
            tensors[name] = file.tensor(name)
    return ModelFiles(path, release, config, tensors, _adapter_of(path, release))
