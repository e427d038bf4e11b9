import json

import numpy as np
import pytest

from edgeagent import TernaryTransformer
from edgeagent.cli import main
from edgeagent.convert.calibrate import (
    Calibration,
    FloatModel,
    _frequencies,
    best_alpha,
    sequences,
)
from edgeagent.convert.options import Choices, prepare
from edgeagent.convert.packed import Options, write_model
from edgeagent.convert.report import (
    JSON_NAME,
    PLOT_NAME,
    TABLE_NAME,
    entropy_bits,
    make_report,
    table,
)
from edgeagent.convert.seal import seal
from edgeagent.convert.sources import open_checkpoint
from edgeagent.convert.ternarise import Recipe, Ternarised, by_head
from edgeagent.errors import ConfigError
from edgeagent.model.safetensors import SafetensorsFile, write_safetensors
from tests.tiny import write_masters

TEXT = "the quick brown fox jumps over the lazy dog and turns on the light " * 8
LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
CONVERT = ["--name", "tiny", "--release", "1", "--counter", "1", "--json"]


@pytest.fixture
def floats(tmp_path):
    return write_masters(tmp_path / "floats", **LLAMA)


def tame(path):
    """Make the matrices of a directory small: random ones are chaotic, and float16 then shows."""
    file = SafetensorsFile(path / "model.safetensors")
    rows = []
    for name in file.infos:
        dtype, shape, data = file.tensor(name)
        values = np.frombuffer(data, "<f4") * np.float32(0.2 if len(shape) == 2 else 1)
        rows.append((name, dtype, shape, values.tobytes()))
    with (path / "tame").open("wb") as out:
        write_safetensors(out, rows, {})
    (path / "tame").rename(path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    "changes",
    [
        LLAMA,
        LLAMA | {"rope_scaling": LLAMA3},
        LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        LLAMA | {"hidden_act": "relu2", "num_key_value_heads": 2},
    ],
    ids=["llama", "llama3", "linear", "relu2"],
)
def test_the_float_model_is_the_engine_with_float16_weights(tmp_path, changes):
    """The engine in layout 5 does not quantise activations: one definition against the other."""
    source = open_checkpoint(tame(write_masters(tmp_path / "floats", **changes)))
    write_model(source, tmp_path / "f16", Options(layout=5),
                lambda work: seal(work, name="x", version="1", counter=1))  # fmt: skip
    with TernaryTransformer.from_pretrained(tmp_path / "f16", threads=1, kv_bits=32) as model:
        ids = model.tokenize(TEXT)[:128]
        loss = np.log(model.perplexity(TEXT[:127], window=128, stride=64))
    forward = FloatModel(source, sequences(ids, 128))
    forward.run(lambda name, inputs, weights: None)
    assert forward.loss() == pytest.approx(loss, abs=5e-4)
    wrong = FloatModel(source, sequences(ids, 128))
    wrong._cos = np.ones_like(wrong._cos)
    wrong.run(lambda name, inputs, weights: None)
    assert abs(wrong.loss() - loss) > 5e-3


def test_every_matrix_is_visited_once_with_the_inputs_it_has(floats):
    source = open_checkpoint(floats)
    seen = {}
    FloatModel(source, np.arange(64).reshape(2, 32)).run(
        lambda name, inputs, weights: seen.__setitem__(name, (inputs.shape, weights.shape))
    )
    want = {n: s for n, s in source.shapes().items() if n.endswith("_proj.weight")}
    assert {name: shape for name, (_, shape) in seen.items()} == want
    assert all(inputs == (64, want[name][1]) for name, (inputs, _) in seen.items())


def test_llama3_scaling_leaves_high_frequencies_and_divides_low_ones():
    config = {"rope_theta": 10000.0, "rope_scaling": LLAMA3}
    plain = _frequencies({"rope_theta": 10000.0}, 64)
    found = _frequencies(config, 64)
    assert found[0] == plain[0]
    assert found[-1] == plain[-1] / 8
    assert (np.diff(found) < 0).all()


def test_the_best_alpha_is_no_worse_than_any_on_the_grid():
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((24, 48), np.float32)
    x = rng.standard_normal((96, 48), np.float32) * np.linspace(0.1, 3, 48, dtype=np.float32)
    alpha, scale = best_alpha(x, weights)

    def left(alpha, scale):
        trits, _ = by_head(weights, (alpha,))
        return np.linalg.norm(x @ weights.T - scale * (x @ trits.astype(np.float32).T))

    best = left(alpha, scale)
    for other in np.arange(0, 1.5, 0.125):
        _, (mean,) = by_head(weights, (float(other),))
        assert best <= left(float(other), mean) * (1 + 1e-6)
    for factor in (0.95, 1.05):
        assert best < left(alpha, scale * factor)


@pytest.mark.parametrize("heads", [False, True])
def test_calibration_beats_the_schemes_on_the_text_it_saw(floats, tmp_path, heads):
    text = tmp_path / "text"
    text.write_text(TEXT)
    source = open_checkpoint(floats)
    errors = {}
    for name, choices in {
        "absmean": Choices("ternary", "absmean", calibrate=text),
        "threshold": Choices("ternary", "threshold", calibrate=text),
        "auto": Choices("ternary", None, "auto", heads, calibrate=text),
    }.items():
        prepared = prepare(floats, source, choices)
        errors[name] = prepared.facts["output_error"]
        assert prepared.facts["float_loss"] > 0
    assert errors["auto"] < errors["absmean"] < errors["threshold"]
    q = "model.layers.0.self_attn.q_proj.weight"
    assert prepared.checkpoint.trits(q).scales.shape == ((1, 64) if heads else (1, 1))


def test_the_report_says_what_the_trits_are(floats):
    source = Ternarised(open_checkpoint(floats), Recipe("twn"))
    rows = make_report(source, {})
    assert len(rows) == 14
    for row in rows:
        trits = source.trits(row.name)
        assert row.zeros == (trits.trits == 0).mean()
        left = source.masters(row.name) - trits.trits * trits.scales
        want = np.linalg.norm(left) / np.linalg.norm(source.masters(row.name))
        assert row.weight_error == pytest.approx(want, rel=1e-4)
        assert row.output_error is None
        assert row.alphas == (0.7,)
    assert len(table(rows).splitlines()) == 15


def test_entropy_is_that_of_the_counts():
    trits = np.array([[0, 0, 1, -1]], np.int8)
    assert entropy_bits(trits) == 1.5
    assert entropy_bits(np.ones((3, 3), np.int8)) == 0
    assert entropy_bits(np.array([[-1, 0, 1]], np.int8)) == pytest.approx(np.log2(3))


def test_the_command_writes_table_json_and_plot(floats, tmp_path, capsys):
    text, out = tmp_path / "text", tmp_path / "report"
    text.write_text(TEXT)
    args = ["convert", str(floats), str(tmp_path / "model"), "--quantization", "ternary"]
    args += ["--alpha", "auto", "--calibrate", str(text), "--report", str(out), *CONVERT]
    assert main(args) == 0
    summary = json.loads(capsys.readouterr().out)
    document = json.loads((out / JSON_NAME).read_text())
    assert document["zeros"] == summary["zeros"]
    assert len(document["layers"]) == 14
    assert all(0 <= row["output_error"] < 1 for row in document["layers"])
    assert "q_proj" in (out / TABLE_NAME).read_text()
    assert (out / PLOT_NAME).read_bytes().startswith(b"\x89PNG")
    model = open_checkpoint(tmp_path / "model")
    found = {n: float((model.trits(n).trits == 0).mean()) for n in model.shapes() if "_proj" in n}
    assert found == pytest.approx({row["name"]: row["zeros"] for row in document["layers"]})


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        (Choices(scheme="twn"), "belong to --quantization ternary"),
        (Choices("int8", alpha="0.1"), "belong to --quantization ternary"),
        (Choices("ternary", alpha="auto"), "--calibrate FILE"),
        (Choices("ternary", "twn", "auto"), "has no alpha"),
        (Choices("ternary", heads=True), "--alpha auto"),
        (Choices("ternary", "absmean", "0.1"), "--scheme threshold"),
        (Choices("fp4"), "--quantization: expected"),
    ],
)
def test_options_that_contradict_each_other_are_refused(floats, choices, line):
    with pytest.raises(ConfigError, match=line):
        prepare(floats, open_checkpoint(floats), choices)


def test_a_text_that_is_missing_or_too_short_is_refused(floats, tmp_path):
    source = open_checkpoint(floats)
    with pytest.raises(ConfigError, match="No such file"):
        prepare(floats, source, Choices("ternary", calibrate=tmp_path / "none"))
    (tmp_path / "short").write_text("hi")
    with pytest.raises(ConfigError, match="at least 128 tokens, got 2"):
        prepare(floats, source, Choices("ternary", calibrate=tmp_path / "short"))


def test_a_float_model_without_a_scheme_is_refused_with_what_to_do(floats, tmp_path, capsys):
    assert main(["convert", str(floats), str(tmp_path / "out"), *CONVERT]) != 0
    assert "--quantization ternary" in capsys.readouterr().err


def test_a_calibration_measures_what_it_is_given(floats):
    source = open_checkpoint(floats)
    ternarised = Ternarised(source, Recipe("twn"))
    watch = Calibration(ternarised, choose=False, heads=False)
    name = "model.layers.0.mlp.up_proj.weight"
    x = np.random.default_rng(0).standard_normal((16, 64), np.float32)
    weights = source.floats(name)
    watch.visit(name, x, weights)
    watch.visit("model.norm.weight", x, weights)
    found = ternarised.trits(name)
    y = x @ weights.T
    want = np.linalg.norm(y - x @ (found.trits * found.scales).T) / np.linalg.norm(y)
    assert watch.errors == {name: pytest.approx(want, rel=1e-4)}
    assert watch.chosen == {}
