"""Random weights of a shape, written layer by layer.

The trits are uniform (a third each) with a fixed seed.  What a run's speed depends on besides, the
share of closed gates and of zeros at down_proj's input, must come out of the model itself, so that
the engine's own counters see it.  Three things in the weights make that possible; the gains that
`calibrate.py` finds do the rest.

    steady   a few channels of the residual stream where the embedding is 1 for every token and the
             rows of o_proj and down_proj are zero: constants, in every layer
    shift    half of them enter every row of gate_proj with +1: their gain in the norm before moves
             all gates up or down, and so sets the share that is closed
    spread   the other half enter a row with its own sign, alike in the row: their gain makes some
             rows mostly open and the others mostly closed, as trained models have them

No row and no column of any plane that could be skipped becomes zero by this.  The final norm's
gains have random signs: a tied head would otherwise answer every token with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.bench.shapes import Shape
from edgeagent.convert import head
from edgeagent.convert.pack import Trits, pack_plane
from edgeagent.model.safetensors import write_safetensors

#: Part of every cache key: grows when the same arguments give other bytes.
RECIPE = 4
SEED = 158
#: What a layer adds to the residual stream, in units of the embedding's spread: after 30 layers the
#: stream is some 2.5 times as wide, as tame as a trained one.
BRANCH_GAIN = 0.3
#: Mean square of a uniform trit.
TRIT_POWER = 2.0 / 3.0
EMBED_ROWS = 8192  # of random numbers at a time: 84 MB at 2560 channels
Report = Callable[[str], None]
Tensor = tuple[str, str, tuple[int, ...], memoryview]


@dataclass(frozen=True, slots=True)
class Steady:
    """The constant channels of the residual stream."""

    shift: NDArray[np.intp]
    spread: NDArray[np.intp]

    @property
    def all(self) -> NDArray[np.intp]:
        """Both kinds."""
        return np.concatenate([self.shift, self.spread])


def rng_of(shape: Shape, what: str) -> np.random.Generator:
    """Return the generator of one part of a shape: parts do not depend on each other's order."""
    text = f"{shape.name} {what}".encode()
    return np.random.Generator(np.random.SFC64([SEED, *text]))


def steady_channels(shape: Shape) -> Steady:
    """Choose the constant channels: enough of them that each stays below the largest activation."""
    n = max(8, shape.hidden // 128)
    chosen = rng_of(shape, "steady").permutation(shape.hidden)[: 2 * n]
    return Steady(np.sort(chosen[:n]), np.sort(chosen[n:]))


def random_trits(shape: Shape, layer: int, projection: str) -> Trits:
    """Return the (out, in) trits of one matrix."""
    n_out, n_in = shape.projections[projection]
    rng = rng_of(shape, f"{layer} {projection}")
    trits = rng.integers(-1, 2, (n_out, n_in), np.int8)
    steady = steady_channels(shape)
    if projection in ("self_attn.o_proj", "mlp.down_proj"):
        trits[steady.all] = 0
    elif projection == "mlp.gate_proj":
        trits[:, steady.shift] = 1
        trits[:, steady.spread] = rng.choice(np.array([-1, 1], np.int8), (n_out, 1))
    return trits


def scale_of(projection: str, n_in: int) -> np.float32:
    """Return a scale that keeps outputs near 1, or a branch's share of the residual stream."""
    gain = BRANCH_GAIN if projection in ("self_attn.o_proj", "mlp.down_proj") else 1.0
    return np.float32(gain / np.sqrt(TRIT_POWER * n_in))


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")


def _layer_tensors(shape: Shape, layer: int) -> Iterator[Tensor]:
    for projection, (_, n_in) in shape.projections.items():
        name = f"model.layers.{layer}.{projection}.weight"
        trits = random_trits(shape, layer, projection)
        packed = pack_plane(
            trits, projection.split(".")[-1], relu2=shape.relu2, layout=shape.layout
        )
        yield name, "U8", packed.shape, _bytes(packed)
        yield f"{name}_scale", "F32", (1,), _bytes(np.array([scale_of(projection, n_in)], "<f4"))


def _embedding(shape: Shape) -> NDArray[np.float16]:
    rng, steady = rng_of(shape, "embedding"), steady_channels(shape).all
    out = np.empty((shape.vocab, shape.hidden), "<f2")
    for begin in range(0, shape.vocab, EMBED_ROWS):
        rows = out[begin : begin + EMBED_ROWS]
        rows[:] = rng.standard_normal(rows.shape, np.float32)
        rows[:, steady] = 1.0
    return out


def _end_tensors(shape: Shape) -> Iterator[Tensor]:
    embedding = _embedding(shape)
    yield "model.embed_tokens.weight", "F16", embedding.shape, _bytes(embedding)
    if head.pays(*embedding.shape):
        for name, dtype, tensor_shape, data in head.make_scan(embedding).tensors():
            yield name, dtype, tensor_shape, memoryview(data)


def shard_name(shape: Shape, shard: int) -> str:
    """Name shard 0 (embedding), 1 to layers (planes), and layers + 1 (all norms)."""
    return f"model-{shard + 1:05d}-of-{shape.layers + 2:05d}.safetensors"


def write_shard(path: Path, layout: int, tensors: Iterator[Tensor]) -> list[str]:
    """Write one shard; return the names of its tensors."""
    held = list(tensors)
    with path.open("wb") as out:
        write_safetensors(out, held, {"format": "edgeagent", "layout": str(layout)})
    return [name for name, *_ in held]


def write_weights(shape: Shape, target: Path, report: Report) -> dict[str, str]:
    """Write everything but the norms into `target`; return tensor name to shard."""
    weight_map: dict[str, str] = {}
    for shard in range(shape.layers + 1):
        report(f"{shape.name}: writing weights, {shard + 1} of {shape.layers + 1}")
        layer = _layer_tensors(shape, shard - 1)
        name = shard_name(shape, shard)
        written = write_shard(target / name, shape.layout, layer if shard else _end_tensors(shape))
        weight_map |= dict.fromkeys(written, name)
    return weight_map


def norm_tensors(norms: dict[str, NDArray[np.float32]]) -> Iterator[Tensor]:
    """Yield norms as tensors."""
    for name, gains in norms.items():
        yield name, "F32", gains.shape, _bytes(gains)
