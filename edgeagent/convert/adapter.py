"""PEFT LoRA adapters in a conversion: kept beside the trits, or merged into masters.

Beside (the default, and exact): the two files go into the model directory as PEFT wrote them; the
engine adds `scale * B (A x)` in float32 to the ternary product (edgeagent/model/adapter.py).

Merged: W + scale * B A of *float* weights, which are then ternarised again.  Most of an adapter is
smaller than the step between two trits, so what a merge changes is counted and said.  Packed trits
are never merged into: their masters are gone, and rounding an adapter to whole trits loses it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert.checkpoint import Checkpoint, TokenizerFiles, TritMatrix
from edgeagent.convert.disk import to_float32
from edgeagent.convert.pack import ternarise_absmean
from edgeagent.convert.seal import seal
from edgeagent.errors import ConfigError, ModelError
from edgeagent.model.adapter import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, Modules, Tensor
from edgeagent.model.files import read_adapter, read_release
from ota.release import RELEASE_FILE, Release

FILES = (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME)
#: Rows that tell masters from trits times scales.
SAMPLE_ROWS = 64
Floats = NDArray[np.float32]


def adapter_in(path: Path) -> Path | None:
    """Return `path` if it is a directory that holds an adapter."""
    return path if (path / ADAPTER_CONFIG_NAME).is_file() else None


def check_adapter(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Modules:
    """Read the adapter in `path` and hold it against the tensors of its base model.

    Raises:
        ModelError: it is none, adds to something else than projections, or has other sizes.
    """
    modules = read_adapter(path)
    for module, (_, a, b) in modules.items():
        base = shapes.get(f"{module}.weight")
        if base is None or not module.endswith("_proj"):
            raise ModelError(
                f"{path}: {module}: the model has no such projection: is it the adapter of another?"
            )
        if (b[1][0], a[1][1]) != base or a[1][0] != b[1][1]:
            raise ModelError(
                f"{path}: {module}: expected A (r, {base[1]}) and B ({base[0]}, r), "
                f"got {a[1]} and {b[1]}"
            )
    return modules


def copy_adapter(source: Path, target: Path) -> None:
    """Copy the two files, byte for byte."""
    for name in FILES:
        shutil.copyfile(source / name, target / name)


def _matrix(tensor: Tensor) -> Floats:
    dtype, shape, data = tensor
    return to_float32(dtype, np.frombuffer(data, np.uint8)).reshape(shape)


class Merged:
    """A checkpoint of masters or floats with an adapter added to them."""

    def __init__(self, source: Checkpoint, path: Path) -> None:
        """Read the adapter in `path`.

        Raises:
            ModelError: it does not fit, or one of its matrices is trits without masters.
        """
        self._source, self._modules = source, check_adapter(path, source.shapes())
        self.config: Mapping[str, Any] = source.config
        self.activation_bits = source.activation_bits
        self._weights = (path / ADAPTER_WEIGHTS_NAME).read_bytes()
        self._config_text = (path / ADAPTER_CONFIG_NAME).read_bytes()
        for module in self._modules:
            if not has_masters(source, f"{module}.weight"):
                raise ModelError(
                    f"{module}: only trits are there, and an adapter is never merged into trits: "
                    "keep it beside them (--adapter), or convert the float masters"
                )

    @property
    def identity(self) -> str | None:
        """Return a hash of source and adapter; None when the source has none."""
        identity = getattr(self._source, "identity", None)
        if not isinstance(identity, str):
            return None
        parts = (identity.encode(), self._config_text, self._weights)
        return hashlib.sha256(b"".join(hashlib.sha256(p).digest() for p in parts)).hexdigest()

    @property
    def merged(self) -> list[str]:
        """Return the tensors that the adapter changes."""
        return [f"{module}.weight" for module in self._modules]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name every tensor and its logical shape."""
        return self._source.shapes()

    def is_ternary(self, name: str) -> bool:
        """Say whether `trits` answers for this tensor."""
        return self._source.is_ternary(name)

    def trits(self, name: str) -> TritMatrix:
        """Return a ternary matrix; a merged one is ternarised as its model does, by absmean.

        Raises:
            ModelError: as the source says, or a weight is not finite.
        """
        if name.removesuffix(".weight") not in self._modules:
            return self._source.trits(name)
        weights = self.floats(name)
        if not np.isfinite(weights).all():
            raise ModelError(f"{name}: expected finite weights, found infinity or NaN")
        trits, scale = ternarise_absmean(weights)
        return TritMatrix(trits, np.full((1, 1), scale, np.float32))

    def floats(self, name: str, begin: int = 0, end: int | None = None) -> Floats:
        """Read rows as float32, the adapter added."""
        values = self._source.floats(name, begin, end)
        found = self._modules.get(name.removesuffix(".weight"))
        if found is None:
            return values
        scale, a, b = found
        return values + np.float32(scale) * (_matrix(b)[begin:end] @ _matrix(a))

    def tokenizer(self) -> TokenizerFiles | None:
        """Return the source's tokenizer."""
        return self._source.tokenizer()


def has_masters(source: Checkpoint, name: str) -> bool:
    """Say whether a matrix has float weights: it is no trits, or its trits are made from floats."""
    if not source.is_ternary(name):
        return True
    found = np.abs(source.floats(name, 0, SAMPLE_ROWS))
    found = found[found > 0]
    if len(np.unique(found)) <= 1:
        return False
    return not np.isin(found, source.trits(name).scales).all()


def changed_fraction(before: Checkpoint, after: Checkpoint, names: list[str]) -> float:
    """Return the share of trits of some matrices that differ."""
    changed = total = 0
    for name in names:
        was, now = before.trits(name).trits, after.trits(name).trits
        changed += int((was != now).sum())
        total += was.size
    return changed / total if total else 0.0


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def reseal(
    model: Path, target: Path, adapter: Path | None, *, version: str, counter: int | None = None
) -> Release:
    """Make `target`: the model with another adapter, or with none; all else is hard-linked.

    Args:
        model: a sealed model directory.
        target: the new directory, which appears whole.
        adapter: a PEFT directory; None takes the adapter away.
        version: of the new release.
        counter: of the new release; None: one more than the model's.

    Raises:
        ModelError: the adapter does not fit, or there is none to take away.
        ConfigError: `target` exists.
    """
    if target.exists():
        raise ConfigError(f"{target}: exists: name a new directory")
    release = read_release(model)
    if adapter is None and ADAPTER_CONFIG_NAME not in release.files:
        raise ModelError(f"{model}: expected a model with an adapter, it has none")
    work = target.with_name(f".{target.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        for name in release.files:
            if name not in FILES:
                _link(model / name, work / name)
        if adapter is not None:
            read_adapter(adapter)
            copy_adapter(adapter, work)
        number = release.counter + 1 if counter is None else counter
        sealed = seal(work, name=release.name, version=version, counter=number)
        for name in (*FILES, RELEASE_FILE):
            if (work / name).is_file():
                _sync(work / name)
        work.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return sealed


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def describe(path: Path) -> dict[str, Any]:
    """Say of an adapter what a person wants to know: modules, rank, parameters, bytes."""
    modules = read_adapter(path)
    return {
        "modules": len(modules),
        "ranks": sorted({a[1][0] for _, a, _ in modules.values()}),
        "parameters": sum(a[1][0] * a[1][1] + b[1][0] * b[1][1] for _, a, b in modules.values()),
        "bytes": sum((path / name).stat().st_size for name in FILES),
        "base": json.loads((path / ADAPTER_CONFIG_NAME).read_text()).get("base_model_name_or_path"),
    }
