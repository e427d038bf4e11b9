"""Any checkpoint in, our model directory out: a shard at a time, whole or not at all.

Shards are written into a work directory beside the target, each under its name only when it is
whole and on the disk; `shards.json` there says which are, and what they were made from.  A second
run with the same source keeps them.  The target appears by one rename when everything is done.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert.checkpoint import Checkpoint, TokenizerFiles, TritMatrix
from edgeagent.convert.dense import dense_tensors
from edgeagent.convert.head import make_scan, pays
from edgeagent.convert.journal import Journal, sync_directory, write_bytes, write_whole
from edgeagent.convert.pack import choose_layout, pack_input_major, pack_plane
from edgeagent.errors import ConfigError, ModelError
from edgeagent.model.files import (
    COMPARISON_LAYOUTS,
    CONFIG_NAME,
    INDEX_NAME,
    LAYOUTS,
    QUANT_METHOD,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
)
from edgeagent.model.safetensors import Data, Stream, write_safetensors

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
#: Numbers of an embedding that are in memory as float32 at a time: 64 MiB.
BLOCK_NUMBERS = 16 << 20
HALF_MAX = 65504.0
ACTIVATION_BITS = (8, 16)

Tensor = tuple[str, str, tuple[int, ...], Data]
#: Told after each shard: how many are done, of how many, and of which it was told.
Report = Callable[[int, int, str], None]


class _NeedsLines(Exception):
    """A matrix with several scales a row, which only layout 1 holds, met in layout 2."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to write.

    Attributes:
        layout: 1 (2 bit) or 2 (base 3); None chooses by size, and 1 where a row has many scales;
            3 to 5 are for comparisons (`dense.LAYOUT_OF`).
        activation_bits: 8 or 16 in place of what the source says.
        tokenizer: in place of the source's own.
        report: is told of every shard.
    """

    layout: int | None = None
    activation_bits: int | None = None
    tokenizer: TokenizerFiles | None = None
    report: Report = field(default=lambda done, total, what: None)


def is_projection(name: str) -> bool:
    """Say whether a tensor is one of the seven matrices of a layer."""
    return name.endswith(tuple(f".{p}.weight" for p in PROJECTIONS))


def shard_of(name: str) -> int:
    """Return the shard of a tensor: 0 holds what belongs to no layer; then one a layer."""
    return int(name.split(".")[2]) + 1 if name.startswith("model.layers.") else 0


# ---- tensors ----


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")


def _norm(source: Checkpoint, name: str) -> Tensor:
    values = source.floats(name).astype("<f4")
    if not np.isfinite(values).all():
        raise ModelError(f"{name}: expected finite numbers, found infinity or NaN")
    return name, "F32", values.shape, _bytes(values)


def half_rows(source: Checkpoint, name: str) -> Iterator[NDArray[np.float16]]:
    """Yield a matrix as float16, some rows at a time.

    Raises:
        ModelError: a number is not finite, or too large for float16.
    """
    rows, width = source.shapes()[name]
    step = max(1, BLOCK_NUMBERS // width)
    for begin in range(0, rows, step):
        values = source.floats(name, begin, min(begin + step, rows))
        largest = float(np.abs(values).max())
        if not largest <= HALF_MAX:  # NaN compares false
            raise ModelError(
                f"{name}: rows {begin} to {begin + len(values) - 1}: expected numbers up to "
                f"{HALF_MAX:g}, as float16 has them, found {largest:g}"
            )
        yield values.astype("<f2")


def _matrix(source: Checkpoint, name: str, layout: int, relu2: bool) -> Iterator[Tensor]:
    if layout in COMPARISON_LAYOUTS:
        yield from dense_tensors(source, name, layout)
        return
    if not source.is_ternary(name):
        raise ModelError(
            f"{name}: a float matrix: a float model must be ternarised: --quantization ternary"
        )
    matrix = source.trits(name)
    scales = _check_scales(matrix, name)
    if len(scales) > 1 and layout != 1:
        raise _NeedsLines(name)
    if len(scales) > 1:
        packed = pack_input_major(matrix.trits)
    else:
        packed = pack_plane(matrix.trits, name.split(".")[-2], relu2=relu2, layout=layout)
    yield name, "U8", packed.shape, _bytes(packed)
    shape = (1,) if scales.shape == (1, 1) else scales.shape
    yield f"{name}_scale", "F32", shape, _bytes(scales.astype("<f4"))


def _check_scales(matrix: TritMatrix, name: str) -> NDArray[np.float32]:
    scales = matrix.scales
    least = 0 if scales.size > 1 else np.nextafter(np.float32(0), np.float32(1))
    if not (np.isfinite(scales).all() and (scales >= least).all()):
        raise ModelError(f"{name}: expected finite scales above 0")
    return scales


def _embedding(source: Checkpoint, name: str) -> Tensor:
    shape = source.shapes()[name]
    size = 2 * math.prod(shape)
    return name, "F16", shape, Stream(size, lambda: map(_bytes, half_rows(source, name)))


def _head(source: Checkpoint, name: str) -> Iterator[Tensor]:
    """Yield the head's weights, and the planes that find its largest rows if they pay."""
    shape = source.shapes()[name]
    if not pays(*shape):
        yield _embedding(source, name)
        return
    head = np.empty(shape, "<f2")
    at = 0
    for rows in half_rows(source, name):
        head[at : at + len(rows)] = rows
        at += len(rows)
    yield name, "F16", shape, _bytes(head)
    yield from make_scan(head).tensors()


def _shard(source: Checkpoint, names: list[str], layout: int) -> Iterator[Tensor]:
    relu2 = source.config.get("hidden_act") == "relu2"
    head = HEAD if HEAD in source.shapes() else EMBEDDING
    for name in names:
        if is_projection(name):
            yield from _matrix(source, name, layout, relu2)
        elif name == head:
            yield from _head(source, name)
        elif name == EMBEDDING:
            yield _embedding(source, name)
        else:
            yield _norm(source, name)


# ---- the directory ----


def _count_trits(source: Checkpoint) -> int:
    return sum(math.prod(shape) for name, shape in source.shapes().items() if is_projection(name))


def _config(source: Checkpoint, layout: int, bits: int, stops: tuple[int, ...]) -> dict[str, Any]:
    config = {key: value for key, value in source.config.items() if value is not None}
    config["quantization_config"] = {
        "quant_method": QUANT_METHOD, "layout": layout, "activation_bits": bits,
    }  # fmt: skip
    if stops:
        config["eos_token_id"] = list(stops) if len(stops) > 1 else stops[0]
    return config


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


class _Writer:
    """One run: the plan, the work directory and its journal."""

    def __init__(self, source: Checkpoint, work: Path, options: Options, layout: int) -> None:
        self.source, self.work, self.options, self.layout = source, work, options, layout
        self.bits = options.activation_bits or source.activation_bits
        if self.bits not in ACTIVATION_BITS:
            raise ConfigError(f"activation bits: expected 8 or 16, got {self.bits}")
        self.shards: dict[int, list[str]] = {}
        for name in source.shapes():
            self.shards.setdefault(shard_of(name), []).append(name)

    def _fingerprint(self) -> str | None:
        """Return what the shards depend on; None when the source cannot tell what it is."""
        identity = getattr(self.source, "identity", None)
        if not isinstance(identity, str):
            return None
        text = json.dumps([identity, self.layout, dict(self.source.config)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self) -> None:
        """Write every file but `release.json`."""
        tokenizer = self.options.tokenizer or self.source.tokenizer()
        if tokenizer is None:
            raise ModelError("the source has no tokenizer: name a directory with --tokenizer")
        journal = Journal(self.work, self._fingerprint())
        weight_map: dict[str, str] = {}
        total = len(self.shards)
        for done, (shard, names) in enumerate(sorted(self.shards.items())):
            file = f"model-{shard + 1:05d}-of-{total:05d}.safetensors"
            self.options.report(done, total, file)
            weight_map |= dict.fromkeys(self._write_shard(journal, file, sorted(names)), file)
        self.options.report(total, total, "")
        config = _config(self.source, self.layout, self.bits, tokenizer.stop_ids)
        for name, value in (
            (CONFIG_NAME, config),
            (INDEX_NAME, {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}),
            (TOKENIZER_CONFIG_NAME, dict(tokenizer.config)),
        ):
            write_bytes(self.work / name, _json(value))
        text = json.dumps(tokenizer.tokenizer, ensure_ascii=False).encode()
        write_bytes(self.work / TOKENIZER_NAME, text)

    def _write_shard(self, journal: Journal, file: str, names: list[str]) -> list[str]:
        """Write one shard, or keep it; return its tensors."""
        kept = journal.keep(file)
        if kept is not None:
            return kept
        tensors = list(_shard(self.source, names, self.layout))
        metadata = {"format": QUANT_METHOD, "layout": str(self.layout)}
        digest = write_whole(
            self.work / file, lambda out: write_safetensors(out, tensors, metadata)
        )
        written = [name for name, *_ in tensors]
        journal.add(file, digest, written)
        return written


def work_directory(target: Path) -> Path:
    """Return where a conversion to `target` keeps what it has so far."""
    return target.with_name(f".{target.name}.partial")


def write_model(
    source: Checkpoint,
    target: Path,
    options: Options | None = None,
    finish: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write `source` as the new directory `target`.

    Args:
        source: what to write.
        target: the new directory; its parent exists.
        options: how.
        finish: called with the complete work directory before it becomes `target`; it may add files
            (`release.json`) or refuse by raising.

    Raises:
        ModelError: the source is not what it says, or our layout cannot hold it.
        ConfigError: `target` exists, or an option is out of range.
        OSError: the disk fails or is full.
    """
    options = options or Options()
    if target.exists():
        raise ConfigError(f"{target}: exists: name a new directory")
    if options.layout not in (None, *LAYOUTS, *COMPARISON_LAYOUTS):
        raise ConfigError(f"layout: expected 1 to 5, got {options.layout}")
    work = work_directory(target)
    work.mkdir(parents=True, exist_ok=True)
    layout = options.layout or choose_layout(_count_trits(source))
    try:
        _Writer(source, work, options, layout).write()
    except _NeedsLines as err:
        if options.layout is not None:
            raise ModelError(
                f"{err}: a scale for each group of inputs: expected layout 1, got 2"
            ) from err
        _Writer(source, work, options, 1).write()
    Journal.remove(work)
    finish(work)
    for file in work.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_directory(work)
    work.rename(target)
    sync_directory(target.parent)
