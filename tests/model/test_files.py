"""A model directory is taken whole or not at all."""

import json

import pytest

from edgeagent.errors import ModelError
from edgeagent.model.files import open_model, verify
from edgeagent.model.generation import LoadedModel
from tests.tiny import make_model


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model")


def reseal(path):
    """Make release.json agree with what lies there, as an attacker with the files could."""
    from edgeagent.convert.seal import hash_files
    from edgeagent.model.files import read_release
    from ota.release import make_release

    old = read_release(path)
    new = make_release(old.name, old.version, old.counter, hash_files(path), old.health)
    (path / "release.json").write_bytes(new.text)


def test_a_sound_directory_opens(model):
    files = open_model(model)
    assert files.release.name == "tiny"
    assert files.tensors["model.norm.weight"][:2] == ("F32", (64,))


@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "config.json"])
def test_one_flipped_bit_anywhere_is_found(model, name):
    data = bytearray((model / name).read_bytes())
    data[len(data) // 2] ^= 1
    (model / name).write_bytes(data)
    with pytest.raises(ModelError, match=rf"{name}: expected sha256 .* damaged"):
        verify(model)


def test_a_file_cut_short_says_both_sizes(model):
    shard = model / "model-00001-of-00003.safetensors"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"expected {size} bytes, got {size - 100}"):
        verify(model)


def test_a_missing_file_and_a_missing_release_are_named(model):
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer.json: cannot be read"):
        verify(model)
    (model / "release.json").unlink()
    with pytest.raises(ModelError, match="expected a model directory with release.json"):
        verify(model)


def test_an_unpacked_checkpoint_says_how_to_convert_it(model):
    config = json.loads((model / "config.json").read_text())
    del config["quantization_config"]
    (model / "config.json").write_text(json.dumps(config))
    reseal(model)
    with pytest.raises(ModelError, match="run `edgeagent convert`"):
        open_model(model)


def test_an_index_that_contradicts_a_shard_is_refused(model):
    index = json.loads((model / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.norm.weight"]
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    reseal(model)
    with pytest.raises(ModelError, match=r"model.norm.weight: .* disagree"):
        open_model(model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 128),
        ("num_hidden_layers", 3),
        ("num_attention_heads", 3),
        ("num_key_value_heads", 0),
        ("vocab_size", 1 << 40),
        ("max_position_embeddings", 1 << 40),
        ("hidden_act", "gelu"),
        ("rms_norm_eps", -1.0),
        ("head_dim", 33),
    ],
)
def test_a_config_that_does_not_fit_its_tensors_never_reaches_the_engine(model, key, value):
    config = json.loads((model / "config.json").read_text()) | {key: value}
    (model / "config.json").write_text(json.dumps(config))
    reseal(model)
    with pytest.raises(ModelError) as err:
        LoadedModel(model)
    assert "\n" not in str(err.value)
