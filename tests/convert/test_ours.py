"""Our model directory, read back: every layout, orientation and kind of scale."""

import json

import numpy as np
import pytest

from edgeagent.convert import pack
from edgeagent.convert.ours import OurCheckpoint, dequantise, open_ours, projection_shapes
from edgeagent.errors import ModelError
from edgeagent.model.safetensors import SafetensorsFile, write_safetensors
from tests.convert.checkpoints import (
    MemoryCheckpoint,
    assert_same_trits,
    matrices,
    reseal,
    write_ours,
)

ODD = {"hidden_size": 200, "intermediate_size": 330, "head_dim": 50, "vocab_size": 272}
ORIENTATIONS = {
    1: [pack.pack_output_major, pack.pack_input_major],
    2: [pack.pack_rows3, pack.pack_channels3, pack.pack_tiles3],
}


@pytest.mark.parametrize("shape", [{}, ODD], ids=["even", "odd"])
@pytest.mark.parametrize(
    ("layout", "pack_one"), [(n, f) for n, fs in ORIENTATIONS.items() for f in fs]
)
def test_every_orientation_comes_back(tmp_path, layout, pack_one, shape):
    source = MemoryCheckpoint(**shape)
    path = write_ours(
        tmp_path / "m", source, layout=layout, orient=lambda trits, _name: pack_one(trits)
    )
    ours = open_ours(path)
    assert ours.shapes() == source.shapes()
    assert_same_trits(source, ours)


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_scales_of_matrices_rows_and_groups_come_back(tmp_path, groups):
    source = MemoryCheckpoint(groups=groups, bits=16)
    ours = open_ours(write_ours(tmp_path / "m", source))
    assert_same_trits(source, ours)
    assert ours.activation_bits == 16
    for name, matrix in matrices(source):
        assert ours.scale_groups(name) == max(groups, 1)
        want = matrix.trits.astype(np.float32).copy()
        run = want.shape[1] // max(groups, 1)
        for o in range(want.shape[0]):
            for k in range(want.shape[1]):
                want[o, k] *= matrix.scales[k // run, o if groups else 0]
            if o == 5:
                break
        np.testing.assert_array_equal(ours.floats(name, 0, 6), want[:6])


def test_floats_come_back_by_rows(tmp_path):
    source = MemoryCheckpoint(tie_word_embeddings=False)
    ours = open_ours(write_ours(tmp_path / "m", source))
    for name in ("lm_head.weight", "model.norm.weight"):
        np.testing.assert_array_equal(ours.floats(name, 3, 9), source.floats(name)[3:9])
    assert "quantization_config" not in ours.config
    assert ours.config["hidden_size"] == source.config["hidden_size"]


def test_the_planes_of_the_head_are_no_tensors_of_the_model(tmp_path):
    source = MemoryCheckpoint()
    path = write_ours(tmp_path / "m", source)
    shard = path / "model-00001-of-00001.safetensors"
    change(shard, lambda tensors: [*tensors, ("lm_head.scan.levels", "U8", (16,), bytes(16))])
    assert not any("scan" in name for name in open_ours(path).shapes())


def test_the_tokenizer_comes_along(tmp_path):
    files = open_ours(write_ours(tmp_path / "m", MemoryCheckpoint())).tokenizer()
    assert files.config["begin_with_bos"] is True
    assert files.stop_ids == (1,)


def change(shard, how):
    """Rewrite a shard, its index and the release."""
    file = SafetensorsFile(shard)
    tensors = [(n, *file.tensor(n)[:2], bytes(file.tensor(n)[2])) for n in file.infos]
    tensors = how(tensors)
    with shard.open("wb") as out:
        write_safetensors(out, tensors, {})
    index = {name: shard.name for name, *_ in tensors}
    (shard.parent / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    reseal(shard.parent)


def replacing(name, dtype, shape, data):
    return lambda tensors: [t for t in tensors if t[0] != name] + [(name, dtype, shape, data)]


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (replacing(Q, "U8", (1, 255, 64), bytes(255 * 64)), "expected one of"),
        (replacing("x.y.weight", "U8", (4,), bytes(4)), "U8 is for projections"),
    ],
)
def test_planes_that_no_matrix_has_are_refused_at_once(tmp_path, how, reason):
    path = write_ours(tmp_path / "m", MemoryCheckpoint())
    change(path / "model-00001-of-00001.safetensors", how)
    with pytest.raises(ModelError, match=reason):
        open_ours(path)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (replacing(f"{Q}_scale", "F32", (2,), bytes(8)), r"expected F32 \[1\]"),
        (replacing(f"{Q}_scale", "F16", (1,), bytes(2)), r"got F16 \[1\]"),
        (replacing(f"{Q}_scale", "F32", (3, 256), bytes(3072)), r"got F32 \[3, 256\]"),
        (replacing(Q, "U8", (1, 256, 64), b"\xff" * 256 * 64), "q_proj"),
    ],
)
def test_bytes_that_are_no_trits_are_refused_when_read(tmp_path, how, reason):
    path = write_ours(tmp_path / "m", MemoryCheckpoint())
    change(path / "model-00001-of-00001.safetensors", how)
    with pytest.raises(ModelError, match=reason):
        open_ours(path).trits(Q)


def test_layouts_of_a_bench_are_refused(tmp_path):
    path = write_ours(tmp_path / "m", MemoryCheckpoint())
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["layout"] = 3
    (path / "config.json").write_text(json.dumps(config))
    reseal(path)
    with pytest.raises(ModelError, match="layout 1 or 2"):
        open_ours(path)


def test_sizes_that_are_no_numbers_are_refused():
    with pytest.raises(ModelError, match="a size is missing"):
        projection_shapes({"hidden_size": 1})
    with pytest.raises(ModelError, match="a size is missing"):
        projection_shapes(MemoryCheckpoint().config | {"intermediate_size": "x"})


def test_a_checkpoint_of_ours_is_one(tmp_path):
    from edgeagent.convert.checkpoint import Checkpoint

    ours: Checkpoint = open_ours(write_ours(tmp_path / "m", MemoryCheckpoint()))
    assert isinstance(ours, OurCheckpoint)
    name = next(iter(dict(matrices(ours))))
    np.testing.assert_array_equal(dequantise(ours.trits(name)), ours.floats(name))
