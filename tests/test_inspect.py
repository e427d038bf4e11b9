import json

import gguf
import numpy as np
import pytest

from edgeagent import _core
from edgeagent.cli import main
from edgeagent.convert.checkpoint import TritMatrix
from edgeagent.convert.ours import open_ours
from edgeagent.convert.to_gguf import export_gguf
from edgeagent.convert.to_hf import export_hf
from edgeagent.errors import EX_OK, ModelError
from edgeagent.inspect import (
    PROCESS_BYTES,
    format_of,
    inspect_model,
    matrix_facts,
    plane_bytes,
    refused,
    scan_bytes,
)
from edgeagent.inspect_text import bar, size, text
from edgeagent.model.generation import LoadedModel
from tests.model.test_adapter import write_adapter
from tests.tiny import make_model, write_masters

FREE = 1 << 30


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_model(
        tmp_path_factory.mktemp("inspect") / "tiny", hidden_size=256, intermediate_size=512,
        num_attention_heads=4, head_dim=64,
    )  # fmt: skip


def test_a_matrix_is_counted():
    trits = np.array([[0, 0, 0, 0], [1, 0, -1, 0], [1, 0, 0, 0]], np.int8)
    found = matrix_facts("model.layers.3.x", TritMatrix(trits, np.array([[0.5, 1.0, 2.0]], "f4")))
    assert (found.zeros, found.dead_rows, found.dead_columns) == (9, 1, 2)
    assert (found.n_scales, found.scale_min, found.scale_max) == (3, 0.5, 2.0)
    assert found.layer == 3


def test_numbers_are_those_of_the_loaded_model(made):
    facts = inspect_model(made, available_bytes=FREE)
    model = LoadedModel(made)
    assert facts["parameters"]["total"] == model.core.n_parameters
    assert sum(facts["parameters"].values()) == 2 * facts["parameters"]["total"]
    assert facts["disk_bytes"] == sum(f.stat().st_size for f in made.iterdir())
    assert facts["tokenizer"]["tokens"] == model.tokenizer.size
    assert facts["tokenizer"]["chat_template"].startswith("<|bos|>")
    weights = facts["memory"]["weight_bytes"]
    stored = model.core.ternary_bytes + model.core.other_bytes + model.core.scan_bytes
    assert weights == pytest.approx(stored, rel=0.02)
    for row in facts["memory"]["kv"]:
        session = _core.Session(model.core, 128, kv_bits=row["kv_bits"])
        assert row["kv_bytes"] == session.kv_bytes
        assert row["total_bytes"] == weights + session.kv_bytes + PROCESS_BYTES
    assert facts["convert"].startswith("nothing to do")


def test_zeros_and_dead_channels_are_those_of_the_trits(made):
    facts = inspect_model(made, available_bytes=FREE)
    source = open_ours(made)
    names = [name for name in source.shapes() if name.endswith("_proj.weight")]
    assert {row["name"] for row in facts["matrices"]} == set(names)
    for row in facts["matrices"]:
        assert row["zeros"] == (source.trits(row["name"]).trits == 0).sum()
    total = sum(row["zeros"] for row in facts["matrices"])
    assert facts["ternary"]["zeros"] == round(total / facts["ternary"]["trits"], 6)
    assert [row["layer"] for row in facts["layers"]] == [0, 1]


def test_every_format_shows_the_same_model(made, tmp_path):
    export_hf(open_ours(made), tmp_path / "hf")
    export_gguf(open_ours(made), tmp_path / "m.gguf", "gguf-tq2_0")
    want = inspect_model(made, available_bytes=FREE)
    formats = set()
    for path in (tmp_path / "hf", tmp_path / "m.gguf"):
        found = inspect_model(path, available_bytes=FREE)
        formats.add(found["format"])
        for key in ("zeros", "entropy", "dead_rows", "dead_columns", "trits"):
            assert found["ternary"][key] == want["ternary"][key]
        assert found["parameters"] == want["parameters"]
        # calculated, against the files with their headers
        calculated, written = (f["memory"]["weight_bytes"] for f in (found, want))
        assert calculated == pytest.approx(written, rel=0.02)
        assert [r["kv_bytes"] for r in found["memory"]["kv"]] == [
            r["kv_bytes"] for r in want["memory"]["kv"]
        ]
        assert "packs the trits" in found["convert"]
    assert formats == {"Hugging Face directory, bitnet", "GGUF file"}


def test_float_models_are_told_what_to_do(tmp_path):
    path = write_masters(tmp_path / "floats", architectures=["LlamaForCausalLM"], hidden_act="silu")
    facts = inspect_model(path, available_bytes=FREE)
    assert facts["float_matrices"] == 14
    assert facts["ternary"]["matrices"] == 0
    assert "--quantization ternary" in facts["convert"]
    assert "no matrix" in text(facts)


def test_memory_grows_with_the_context_and_is_held_against_this_machine(made):
    small = inspect_model(made, context=32, available_bytes=FREE)["memory"]
    large = inspect_model(made, context=1 << 20, available_bytes=1)["memory"]
    assert small["context"] == 32
    assert large["context"] == 128  # the model has no more
    assert all(row["fits"] for row in small["kv"])
    assert not any(row["fits"] for row in large["kv"])
    bits = [row["kv_bytes"] for row in small["kv"]]
    assert bits == sorted(bits)


def test_an_adapter_is_shown_and_a_wrong_one_refused(tmp_path):
    masters = write_masters(tmp_path / "masters")
    write_adapter(masters)
    facts = inspect_model(masters, available_bytes=FREE)
    assert facts["adapter"]["ranks"] == [4]
    assert "2 modules, rank 4" in text(facts)
    write_adapter(masters, sizes={"model.layers.9.mlp.up_proj": (64, 64)},
                  config={"target_modules": ["up_proj"]})  # fmt: skip
    with pytest.raises(ModelError, match="no such projection"):
        inspect_model(masters, available_bytes=FREE)


def test_sizes_of_planes_are_those_that_are_written():
    assert plane_bytes(640, 2560, 2) == 640 * 2560 // 5
    assert plane_bytes(512, 256, 1) == 512 * 256 // 4
    assert scan_bytes(100, 64) == 0
    assert scan_bytes(128256, 2560) > 128256 * 2560 * 3 // 4


def test_bars_and_sizes():
    assert bar(0.5, 4) == "██  "
    assert bar(1.5, 4) == "████"
    assert bar(0, 4) == "    "
    assert bar(0.28125, 4) == "█▏  "
    assert [size(n) for n in (10, 2048, 3 << 20, 5 << 30)] == [
        "10 B", "2.0 KiB", "3.0 MiB", "5.00 GiB",
    ]  # fmt: skip


def test_the_command_draws_and_prints_json(made, capsys):
    assert main(["inspect", str(made), "--context", "64"]) == EX_OK
    drawn = capsys.readouterr().out
    assert "█" in drawn
    assert "kv_bits  4" in drawn
    assert "for 64 tokens" in drawn
    assert main(["inspect", str(made), "--json"]) == EX_OK
    assert json.loads(capsys.readouterr().out)["ternary"]["matrices"] == 14


def test_what_convert_refuses_is_shown_with_its_reason(tmp_path, capsys):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.add_tensor("a", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert main(["inspect", str(tmp_path / "x.gguf")]) == ModelError("").exit_code
    out = capsys.readouterr().out
    assert "refuses" in out
    assert "mamba" in out
    assert "{'F32': 1}" in out


def test_what_is_no_model_is_one_line(tmp_path, capsys):
    (tmp_path / "x").write_bytes(b"GGUF")
    (tmp_path / "y").write_bytes(b"hello")
    for name in ("x", "y", "none"):
        assert main(["inspect", str(tmp_path / name)]) != EX_OK
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    with pytest.raises(ModelError):
        format_of(tmp_path / "none")
    with pytest.raises(ModelError, match="why"):
        refused(tmp_path / "y", ModelError("why"))
