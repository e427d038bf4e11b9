"""The writer of our layout: whole or not at all, resumable, and the same bytes either way."""

import hashlib
import json

import numpy as np
import pytest

from edgeagent.convert.packed import Options, work_directory, write_model
from edgeagent.convert.seal import seal
from edgeagent.convert.sources import open_checkpoint
from edgeagent.errors import ConfigError, ModelError
from edgeagent.model.files import open_model
from edgeagent.model.safetensors import SafetensorsFile
from tests import tiny

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def masters(tmp_path):
    return tiny.write_masters(tmp_path / "masters")


class Changed:
    """A checkpoint with one tensor made to be something else."""

    def __init__(self, source, name, change, groups=None):
        self._source, self._name, self._change, self._groups = source, name, change, groups
        self.config, self.activation_bits = source.config, source.activation_bits

    def __getattr__(self, name):
        if name == "identity":
            raise AttributeError
        return getattr(self._source, name)

    def floats(self, name, begin=0, end=None):
        values = self._source.floats(name, begin, end)
        return self._change(values) if name == self._name else values

    def trits(self, name):
        matrix = self._source.trits(name)
        if self._groups and name == self._name:
            return type(matrix)(matrix.trits, np.ones((self._groups, len(matrix.trits)), "<f4"))
        return matrix


def hashes(path):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in path.iterdir()}


def test_a_directory_that_the_loader_takes(masters, tmp_path):
    seen = []
    target = tmp_path / "ours"
    source = open_checkpoint(masters)
    write_model(
        source, target, Options(report=lambda *said: seen.append(said)),
        lambda work: seal(work, name="x", version="1", counter=1),
    )  # fmt: skip
    assert open_model(target).config["quantization_config"] == {
        "quant_method": "edgeagent", "layout": 1, "activation_bits": 8,
    }  # fmt: skip
    assert [said[0] for said in seen] == [0, 1, 2, 3]
    assert not work_directory(target).exists()
    again = open_checkpoint(target)
    for name in source.shapes():
        if source.is_ternary(name):
            assert np.array_equal(again.trits(name).trits, source.trits(name).trits)
    assert open_checkpoint(target).config["eos_token_id"] == 1


def test_a_target_that_exists_is_left_alone(masters, tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        write_model(open_checkpoint(masters), tmp_path / "ours")


def test_after_a_kill_finished_shards_are_kept_and_the_bytes_are_the_same(masters, tmp_path):
    whole, target = tmp_path / "whole", tmp_path / "ours"
    write_model(open_checkpoint(masters), whole)

    def killed(done, total, item):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_model(open_checkpoint(masters), target, Options(report=killed))
    assert not target.exists()
    work = work_directory(target)
    first, second = (work / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
    kept, inode = first.stat().st_mtime_ns, first.stat().st_ino
    second.write_bytes(second.read_bytes()[:-1] + b"\x01")  # a disk that lied
    (work / "model-00003-of-00003.safetensors.partial").write_bytes(b"half of it")
    write_model(open_checkpoint(masters), target)
    assert hashes(target) == hashes(whole)
    stat = (target / first.name).stat()
    assert (stat.st_mtime_ns, stat.st_ino) == (kept, inode)


def test_what_another_source_left_is_not_kept(masters, tmp_path):
    target = tmp_path / "ours"

    def killed(done, total, item):
        if done == 2:
            raise KeyboardInterrupt

    other = tiny.write_masters(tmp_path / "other", seed=1)
    with pytest.raises(KeyboardInterrupt):
        write_model(open_checkpoint(other), target, Options(report=killed))
    write_model(open_checkpoint(masters), target)
    write_model(open_checkpoint(masters), tmp_path / "whole")
    assert hashes(target) == hashes(tmp_path / "whole")


def test_a_model_that_does_not_seal_does_not_appear(masters, tmp_path):
    def refuse(work):
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        write_model(open_checkpoint(masters), tmp_path / "ours", finish=refuse)
    assert not (tmp_path / "ours").exists()


def changed_row(value):
    def change(values):
        values = values.copy()
        values.ravel()[-1] = value
        return values

    return change


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("model.embed_tokens.weight", 7e4, "rows 0 to 271: expected numbers up to 65504"),
        ("model.embed_tokens.weight", np.nan, "found nan"),
        ("model.embed_tokens.weight", -np.inf, "found inf"),
        ("model.norm.weight", np.nan, "finite"),
    ],
)
def test_numbers_that_the_layout_cannot_hold_are_refused(masters, tmp_path, name, value, line):
    source = Changed(open_checkpoint(masters), name, changed_row(value))
    with pytest.raises(ModelError, match=line):
        write_model(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_scales_of_groups_want_layout_1(masters, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    source = Changed(open_checkpoint(masters), name, None, groups=4)
    with pytest.raises(ModelError, match="expected layout 1, got 2"):
        write_model(source, tmp_path / "two", Options(layout=2))
    write_model(source, tmp_path / "one")
    shard = SafetensorsFile(tmp_path / "one" / "model-00003-of-00003.safetensors")
    assert shard.tensor(f"{name}_scale")[1] == (4, 96)
    assert len(shard.tensor(name)[1]) == 3  # lines, though the gate is squared ReLU


def test_a_layout_chosen_for_size_gives_way_to_groups(masters, tmp_path, monkeypatch):
    monkeypatch.setattr("edgeagent.convert.packed.choose_layout", lambda n: 2)
    source = Changed(open_checkpoint(masters), UP, None, groups=4)
    write_model(source, tmp_path / "one")
    config = json.loads((tmp_path / "one" / "config.json").read_bytes())
    assert config["quantization_config"]["layout"] == 1
    shards = (tmp_path / "one").glob("*.safetensors")
    assert {SafetensorsFile(file).metadata["layout"] for file in shards} == {"1"}


def test_a_float_model_must_be_ternarised_first(masters, tmp_path):
    source = Changed(open_checkpoint(masters), UP, None)
    source.is_ternary = lambda name: False
    with pytest.raises(ModelError, match="--quantization ternary"):
        write_model(source, tmp_path / "ours")


def test_no_tokenizer_is_said_before_anything_is_written(masters, tmp_path):
    (masters / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="--tokenizer"):
        write_model(open_checkpoint(masters), tmp_path / "ours")


def test_activation_bits_are_the_source_s_or_the_option_s(masters, tmp_path):
    write_model(open_checkpoint(masters), tmp_path / "ours", Options(activation_bits=16))
    config = json.loads((tmp_path / "ours" / "config.json").read_bytes())
    assert config["quantization_config"]["activation_bits"] == 16
