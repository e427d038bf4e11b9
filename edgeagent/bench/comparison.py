"""The weights of a synthetic model once more, in other formats.

One bit, eight bits and float16, and the trits packed for an engine that skips nothing.

Speed does not depend on their values, so they are made from the trits: binary gives every zero a
sign, int8 and float16 spread a trit over its neighbourhood.  Embedding, head and norms are the
ternary model's own files.  docs/formats.md, section 3b, has the packings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.bench.model_dir import fresh, link, settle, write_json
from edgeagent.bench.shapes import Shape
from edgeagent.bench.synthetic import (
    RECIPE,
    Report,
    Tensor,
    random_trits,
    rng_of,
    scale_of,
    shard_name,
    write_shard,
)
from edgeagent.convert.pack import (
    Trits,
    pack_binary,
    pack_input_major,
    pack_int8,
    pack_tiles3,
)
from edgeagent.convert.seal import hash_files
from edgeagent.model.files import CONFIG_NAME, QUANT_METHOD, read_json
from ota.release import RELEASE_FILE, Health, make_release

#: An int8 weight is 64 times a trit and less than 64 around it.
INT8_STEP = 64
Pack = Callable[[Trits, np.random.Generator], NDArray[Any]]


def _int8(trits: Trits, rng: np.random.Generator) -> NDArray[np.int8]:
    spread: NDArray[np.int8] = rng.integers(1 - INT8_STEP, INT8_STEP, trits.shape, np.int8)
    return spread + trits * np.int8(INT8_STEP)


def _binary_plane(trits: Trits, rng: np.random.Generator) -> NDArray[np.uint8]:
    coin = rng.integers(0, 2, trits.shape, np.int8)
    return pack_binary(2 * trits + coin > 0)


def _int8_plane(trits: Trits, rng: np.random.Generator) -> NDArray[np.uint8]:
    return pack_int8(_int8(trits, rng))


def _f16_plane(trits: Trits, rng: np.random.Generator) -> NDArray[np.float16]:
    return _int8(trits, rng).astype(np.float16)


def _trit_lines(trits: Trits, _: np.random.Generator) -> NDArray[np.uint8]:
    return pack_input_major(trits)


def _trit_tiles(trits: Trits, _: np.random.Generator) -> NDArray[np.uint8]:
    return pack_tiles3(trits)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One of the formats: its layout in config.json, and the integer that a trit of 1 becomes."""

    layout: int
    dtype: str
    step: int
    pack: Pack


COMPARISONS = {
    "lines": Comparison(1, "U8", 1, _trit_lines),
    "tiles": Comparison(2, "U8", 1, _trit_tiles),
    "binary": Comparison(3, "U8", 1, _binary_plane),
    "int8": Comparison(4, "U8", INT8_STEP, _int8_plane),
    "f16": Comparison(5, "F16", INT8_STEP, _f16_plane),
}


def _layer_tensors(shape: Shape, layer: int, form: Comparison) -> Iterator[Tensor]:
    for projection, (_, n_in) in shape.projections.items():
        name = f"model.layers.{layer}.{projection}.weight"
        rng = rng_of(shape, f"{layer} {projection} spread")
        plane = form.pack(random_trits(shape, layer, projection), rng)
        data = np.ascontiguousarray(plane).data.cast("B")
        scale = np.array([scale_of(projection, n_in) / np.float32(form.step)], "<f4")
        yield name, form.dtype, plane.shape, data
        yield f"{name}_scale", "F32", (1,), scale.data.cast("B")


def ensure_comparison(ternary: Path, shape: Shape, weights: str, report: Report) -> Path:
    """Return the directory of the ternary model's twin in a format, made now if it is not there."""
    form = COMPARISONS[weights]
    path = ternary.with_name(f"{ternary.name}-{weights}")
    if path.exists():
        return path
    partial = fresh(path)
    planes = {shard_name(shape, i + 1): i for i in range(shape.layers)}
    for file in ternary.iterdir():
        if file.name not in (*planes, CONFIG_NAME, RELEASE_FILE):
            link(file, partial / file.name)
    for name, layer in planes.items():
        report(f"{shape.name}: writing {weights} weights, {layer + 1} of {shape.layers}")
        write_shard(partial / name, form.layout, _layer_tensors(shape, layer, form))
    config = read_json(ternary / CONFIG_NAME)
    config["quantization_config"] = {"quant_method": QUANT_METHOD, "layout": form.layout}
    write_json(partial / CONFIG_NAME, config)
    release = make_release(
        f"bench-{shape.name}-{weights}", str(RECIPE), 1, hash_files(partial), Health()
    )
    (partial / RELEASE_FILE).write_bytes(release.text)
    return settle(partial, path)
