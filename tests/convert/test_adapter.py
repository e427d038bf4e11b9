import json

import numpy as np
import pytest

from edgeagent.cli import main
from edgeagent.convert.adapter import Merged, changed_fraction, check_adapter, reseal
from edgeagent.convert.options import Choices, prepare
from edgeagent.convert.ours import open_ours
from edgeagent.convert.pack import ternarise_absmean
from edgeagent.convert.packed import write_model
from edgeagent.convert.seal import seal
from edgeagent.convert.sources import open_checkpoint
from edgeagent.convert.to_hf import export_hf
from edgeagent.errors import ConfigError, ModelError
from edgeagent.model.generation import LoadedModel
from tests.model.test_adapter import DOWN, Q, weights, write_adapter
from tests.tiny import make_model, write_masters

FILES = {"adapter_config.json", "adapter_model.safetensors"}
CONVERT = ["--name", "tiny", "--release", "1", "--counter", "1", "--json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "tiny"
    make_model(path)
    write_adapter(path.parent / "lora")
    return path


def logits(path):
    return LoadedModel(path).logits_sha256([1, 2, 3])


def test_adding_and_removing_make_directories_that_differ_in_two_files(made, tmp_path):
    added = reseal(made, tmp_path / "with", made.parent / "lora", version="1.1")
    base = LoadedModel(made).release
    assert set(added.files) - set(base.files) == FILES
    assert all(added.files[name] == entry for name, entry in base.files.items())
    assert (added.name, added.counter) == (base.name, base.counter + 1)
    for name in base.files:
        assert (made / name).samefile(tmp_path / "with" / name)
    assert logits(tmp_path / "with") != logits(made)
    model = LoadedModel(tmp_path / "with")
    assert all(check["ok"] for check in model.check_health())
    removed = reseal(tmp_path / "with", tmp_path / "without", None, version="1.2")
    assert removed.root == base.root
    assert logits(tmp_path / "without") == logits(made)


def test_the_files_are_what_peft_wrote(made, tmp_path):
    reseal(made, tmp_path / "with", made.parent / "lora", version="1.1")
    for name in FILES:
        assert (tmp_path / "with" / name).read_bytes() == (made.parent / "lora" / name).read_bytes()


def test_what_does_not_fit_leaves_nothing_behind(made, tmp_path):
    write_adapter(tmp_path / "other", sizes={Q: (64, 32)}, config={"target_modules": ["q_proj"]})
    with pytest.raises(ModelError):
        reseal(made, tmp_path / "out", tmp_path / "other", version="2")
    with pytest.raises(ModelError, match="has none"):
        reseal(made, tmp_path / "out", None, version="2")
    with pytest.raises(ModelError):
        reseal(made, tmp_path / "out", tmp_path, version="2")
    with pytest.raises(ConfigError, match="exists"):
        reseal(made, made, made.parent / "lora", version="2")
    assert {p.name for p in tmp_path.iterdir()} == {"other"}


def test_an_adapter_of_another_model_is_refused_by_name(made, tmp_path):
    shapes = open_checkpoint(made).shapes()
    write_adapter(tmp_path / "a", sizes={"model.layers.7.self_attn.q_proj": (64, 64)},
                  config={"target_modules": ["q_proj"]})  # fmt: skip
    with pytest.raises(ModelError, match=r"layers\.7.*no such projection"):
        check_adapter(tmp_path / "a", shapes)
    write_adapter(tmp_path / "b", sizes={Q: (32, 64)}, config={"target_modules": ["q_proj"]})
    with pytest.raises(ModelError, match=r"B \(64, r\)"):
        check_adapter(tmp_path / "b", shapes)


def test_merging_adds_to_masters_and_ternarises_again(tmp_path):
    masters = write_masters(tmp_path / "masters")
    write_adapter(tmp_path / "lora")
    source = open_checkpoint(masters)
    merged = Merged(source, tmp_path / "lora")
    arrays = weights()
    for module in (Q, DOWN):
        a, b = (arrays[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
        want = source.floats(f"{module}.weight") + np.float32(2) * (b @ a)
        np.testing.assert_allclose(merged.floats(f"{module}.weight"), want, rtol=1e-5, atol=1e-6)
        found = merged.trits(f"{module}.weight")
        assert np.array_equal(found.trits, ternarise_absmean(merged.floats(f"{module}.weight"))[0])
        np.testing.assert_array_equal(
            merged.floats(f"{module}.weight", 3, 7), merged.floats(f"{module}.weight")[3:7]
        )
    untouched = "model.layers.0.self_attn.k_proj.weight"
    assert np.array_equal(merged.trits(untouched).trits, source.trits(untouched).trits)
    names = [f"{module}.weight" for module in (Q, DOWN)]
    fraction = changed_fraction(source, merged, names)
    differ = [source.trits(n).trits != merged.trits(n).trits for n in names]
    assert fraction == sum(d.sum() for d in differ) / sum(d.size for d in differ)
    assert 0.05 < fraction < 0.95
    assert merged.identity != source.identity


def test_an_adapter_of_nothing_changes_no_trit(tmp_path):
    masters = write_masters(tmp_path / "masters")
    write_adapter(tmp_path / "lora", config={"lora_alpha": 0})
    source = open_checkpoint(masters)
    merged = Merged(source, tmp_path / "lora")
    assert changed_fraction(source, merged, merged.merged) == 0.0


def test_packed_trits_are_never_merged_into(made, tmp_path):
    export_hf(open_ours(made), tmp_path / "hf")
    for path in (made, tmp_path / "hf"):
        with pytest.raises(ModelError, match="never merged into trits"):
            Merged(open_checkpoint(path), made.parent / "lora")


def test_adapters_survive_a_conversion(tmp_path, capsys):
    masters = write_masters(tmp_path / "masters")
    write_adapter(masters)
    assert main(["convert", str(masters), str(tmp_path / "out"), *CONVERT]) == 0
    capsys.readouterr()
    assert set(LoadedModel(tmp_path / "out").release.files) >= FILES
    # and from our own directory into another layout
    again = ["convert", str(tmp_path / "out"), str(tmp_path / "two"), "--layout", "2", *CONVERT]
    assert main(again) == 0
    assert logits(tmp_path / "two") == logits(tmp_path / "out")


def test_merging_on_the_command_line_prints_what_changed(tmp_path, capsys):
    masters = write_masters(tmp_path / "masters")
    write_adapter(tmp_path / "lora")
    args = ["convert", str(masters), str(tmp_path / "out"), *CONVERT]
    assert main([*args, "--merge-adapter", str(tmp_path / "lora")]) == 0
    summary = json.loads(capsys.readouterr().out)
    source = open_checkpoint(masters)
    merged = Merged(source, tmp_path / "lora")
    assert summary["changed_trits"] == changed_fraction(source, merged, merged.merged)
    assert not FILES & set(LoadedModel(tmp_path / "out").release.files)
    found = open_checkpoint(tmp_path / "out").trits(f"{Q}.weight").trits
    assert np.array_equal(found, merged.trits(f"{Q}.weight").trits)


def test_merging_into_a_float_model_counts_against_the_same_scheme(tmp_path):
    masters = write_masters(tmp_path / "masters", architectures=["LlamaForCausalLM"],
                            hidden_act="silu")  # fmt: skip
    write_adapter(tmp_path / "lora", config={"lora_alpha": 0})
    source = open_checkpoint(masters)
    choices = Choices("ternary", "twn", merge_adapter=tmp_path / "lora")
    assert prepare(masters, source, choices).facts["changed_trits"] == 0.0


def test_both_ways_at_once_are_refused(made):
    choices = Choices(adapter=made, merge_adapter=made)
    with pytest.raises(ConfigError, match="--merge-adapter"):
        prepare(made, open_checkpoint(made), choices)


def test_the_adapter_command(made, tmp_path, capsys):
    lora, out = str(made.parent / "lora"), str(tmp_path / "out")
    assert main(["adapter", "add", str(made), lora, out, "--release", "1.1", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["adapter_modules"] == 2
    assert summary["adapter_ranks"] == [4]
    assert summary["adapter_parameters"] == 4 * (64 + 64) + 4 * (96 + 64)
    back = str(tmp_path / "back")
    assert main(["adapter", "remove", out, back, "--release", "1.2"]) == 0
    assert "1.2" in capsys.readouterr().out
    assert main(["adapter", "remove", back, out + "2", "--release", "1.2"]) != 0
    assert "has none" in capsys.readouterr().err


def test_comparison_formats_convert_and_load(tmp_path, capsys):
    masters = write_masters(tmp_path / "masters", architectures=["LlamaForCausalLM"],
                            hidden_act="silu")  # fmt: skip
    for kind, layout in (("binary", 3), ("int8", 4), ("f16", 5)):
        out = tmp_path / kind
        assert main(["convert", str(masters), str(out), "--quantization", kind, *CONVERT]) == 0
        config = json.loads((out / "config.json").read_text())
        assert config["quantization_config"]["layout"] == layout
        model = LoadedModel(out, comparison=True)
        assert all(check["ok"] for check in model.check_health())
        with pytest.raises(ModelError, match="layout 1 or 2"):
            LoadedModel(out)
    capsys.readouterr()


def test_binary_of_a_ternary_model_is_refused(made, tmp_path, capsys):
    args = ["convert", str(made), str(tmp_path / "out"), "--quantization", "binary", *CONVERT]
    assert main(args) != 0
    assert "binary has no zero" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_partly_written_adapter_is_refused_by_the_writer(made, tmp_path):
    source = open_checkpoint(made)
    prepared = prepare(made, source, Choices(adapter=made.parent / "lora"))

    def finish(work):
        prepared.finish(work)
        (work / "adapter_model.safetensors").unlink()
        seal(work, name="x", version="1", counter=1)

    with pytest.raises(ModelError, match="or neither"):
        write_model(source, tmp_path / "out", finish=finish)
    assert not (tmp_path / "out").exists()
