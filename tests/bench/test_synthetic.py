"""Random models: the same every time, thirds of trits, no row or column that could be skipped."""

import numpy as np
import pytest

from edgeagent.bench.shapes import SHAPES
from edgeagent.bench.synthetic import (
    random_trits,
    shard_name,
    steady_channels,
    write_weights,
)
from edgeagent.convert.pack import unpack
from edgeagent.model.safetensors import SafetensorsFile

TINY = SHAPES["tiny"]


def test_steady_channels_are_apart():
    steady = steady_channels(TINY)
    assert len(set(steady.all.tolist())) == len(steady.shift) + len(steady.spread)


@pytest.mark.parametrize("projection", TINY.projections)
def test_trits_are_thirds_and_the_same_again(projection):
    trits = random_trits(TINY, 1, projection)
    assert trits.shape == TINY.projections[projection]
    assert (trits == random_trits(TINY, 1, projection)).all()
    assert (trits != random_trits(TINY, 0, projection)).any()
    for value in (-1, 0, 1):
        assert (trits == value).mean() == pytest.approx(1 / 3, abs=0.06)


def test_the_gates_have_no_zero_row_and_no_zero_column():
    for projection in ("mlp.gate_proj", "mlp.up_proj"):
        trits = random_trits(TINY, 0, projection)
        assert trits.any(axis=0).all()
        assert trits.any(axis=1).all()


def test_what_enters_the_steady_channels_is_zero_and_nothing_else_is():
    steady = steady_channels(TINY)
    for projection in ("self_attn.o_proj", "mlp.down_proj"):
        trits = random_trits(TINY, 0, projection)
        assert not trits[steady.all].any()
        assert np.delete(trits, steady.all, axis=0).any(axis=1).all()
        assert trits.any(axis=0).all()


def test_written_weights_are_those_trits(tmp_path):
    weight_map = write_weights(TINY, tmp_path, lambda _: None)
    name = "model.layers.1.mlp.up_proj.weight"
    assert weight_map[name] == shard_name(TINY, 2)
    _, shape, data = SafetensorsFile(tmp_path / weight_map[name]).tensor(name)
    packed = np.frombuffer(data, np.uint8).reshape(shape)
    assert (unpack(packed, TINY.ffn, TINY.hidden) == random_trits(TINY, 1, "mlp.up_proj")).all()
    embedding = SafetensorsFile(tmp_path / shard_name(TINY, 0)).tensor("model.embed_tokens.weight")
    rows = np.frombuffer(embedding[2], np.float16).reshape(embedding[1])
    assert (rows[:, steady_channels(TINY).all] == 1).all()
