import json
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

import edgeagent
from edgeagent import TernaryTransformer, api
from edgeagent.cli import main
from edgeagent.convert.ours import open_ours
from edgeagent.convert.to_gguf import export_gguf
from edgeagent.errors import ConfigError, ContextFull, ModelError
from edgeagent.model.generation import LoadedModel, Params
from tests.model.test_adapter import write_adapter
from tests.tiny import make_model, write_masters

PROMPT = "turn on the light"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("api") / "tiny")


@pytest.fixture
def model(made):
    with TernaryTransformer.from_pretrained(made, threads=1) as loaded:
        yield loaded


def test_importing_the_package_loads_neither_the_model_nor_numpy():
    code = (
        "import sys, edgeagent; "
        "bad = {'numpy', 'tokenizers', 'edgeagent.api', 'edgeagent._core'} & set(sys.modules); "
        "assert not bad, bad; edgeagent.TernaryTransformer; assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        edgeagent.nothing  # noqa: B018


def test_generate_is_what_the_engine_generates(made, model):
    plain = LoadedModel(made)
    steps = plain.generate(plain.encode(PROMPT, None), Params(max_tokens=20, seed=4))
    text = "".join(steps)
    result = model.generate(PROMPT, max_tokens=20, seed=4)
    assert result.text == text
    assert len(result.tokens) == result.usage["completion_tokens"] == 20
    assert model.loaded.tokenizer.decode(result.tokens) == result.text
    assert result.finish_reason == "length"
    assert result.timings["prefill_ms"] >= 0
    assert set(result.skipped) == {"multiplications_fraction", "bytes_fraction"}


def test_stream_and_chat_say_the_same_as_the_whole(model):
    whole = model.generate(PROMPT, max_tokens=12)
    assert "".join(model.stream(PROMPT, max_tokens=12)) == whole.text
    messages = [{"role": "user", "content": PROMPT}]
    answer = model.chat(messages, max_tokens=12)
    assert model.chat(PROMPT, max_tokens=12).text == answer.text
    assert "".join(model.stream(messages=messages, max_tokens=12)) == answer.text
    assert answer.tokens != whole.tokens


def test_perplexity_is_that_of_the_logits_whatever_the_stride(made, model):
    ids = model.tokenize(PROMPT)
    session, total = model.loaded.session, 0.0
    model.loaded.forget()
    for now, after in pairwise(ids):
        session.eval([now])
        logits = np.array(session.logits(), np.float64)
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[after]
    assert model.perplexity(PROMPT) == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-9)
    short = model.perplexity(PROMPT, window=4, stride=1)
    assert short == model.perplexity(PROMPT, window=4, stride=1)
    assert short != model.perplexity(PROMPT)


@pytest.mark.parametrize(("text", "kwargs"), [("", {}), (PROMPT, {"stride": 0}),
                                              (PROMPT, {"window": 4, "stride": 4})])  # fmt: skip
def test_perplexity_refuses_what_it_cannot_judge(model, text, kwargs):
    with pytest.raises(ConfigError, match="perplexity"):
        model.perplexity(text, **kwargs)


def test_every_width_of_the_cache_loads_and_others_are_refused(made):
    for bits in (4, 8, 16, 32):
        with TernaryTransformer.from_pretrained(
            made, kv_bits=bits, kv_group_size=32, threads=1, context=64
        ) as model:
            assert model.loaded.session.kv_bits == bits
            assert model.loaded.session.context == 64
    with pytest.raises(ConfigError, match="kv_bits"):
        TernaryTransformer.from_pretrained(made, kv_bits=5)


def test_what_is_asked_wrongly_is_refused_in_one_line(model):
    with pytest.raises(ConfigError, match="temprature: expected one of max_tokens"):
        model.generate(PROMPT, temprature=1)
    with pytest.raises(ConfigError, match="temperature"):
        model.generate(PROMPT, temperature=-1)
    with pytest.raises(ContextFull):
        model.generate("x" * 200)
    with pytest.raises(ConfigError, match="a prompt or messages"):
        model.stream()
    model.close()
    with pytest.raises(ConfigError, match="closed"):
        model.generate(PROMPT)


def test_foreign_formats_are_converted_once_and_answer_alike(made, tmp_path):
    masters = write_masters(tmp_path / "masters")
    cache = tmp_path / "cache"
    first = api.resolve(masters, cache_dir=cache)
    again = api.resolve(masters, cache_dir=cache)
    assert first == again
    assert first.parent == cache
    before = (first / "release.json").stat().st_mtime_ns
    with TernaryTransformer.from_pretrained(masters, cache_dir=cache, threads=1) as model:
        text = model.generate(PROMPT, max_tokens=10).text
    assert (first / "release.json").stat().st_mtime_ns == before
    with TernaryTransformer.from_pretrained(made, threads=1) as model:
        assert model.generate(PROMPT, max_tokens=10).text == text
    (masters / "config.json").write_text((masters / "config.json").read_text() + " ")
    assert api.resolve(masters, cache_dir=cache) != first


def test_a_gguf_file_loads_too(tmp_path):
    big = make_model(tmp_path / "big", hidden_size=256, intermediate_size=256,
                     num_attention_heads=4, head_dim=64, num_hidden_layers=1)  # fmt: skip
    export_gguf(open_ours(big), tmp_path / "big.gguf", "gguf-tq2_0")
    with TernaryTransformer.from_pretrained(
        tmp_path / "big.gguf", cache_dir=tmp_path / "cache", threads=1
    ) as model:
        found = model.generate(PROMPT, max_tokens=10)
    with TernaryTransformer.from_pretrained(big, threads=1) as model:
        want = model.generate(PROMPT, max_tokens=10)
    assert found.usage == want.usage  # scales are float16 in a GGUF: tokens may differ


def test_an_adapter_beside_a_foreign_model_is_kept(tmp_path):
    masters = write_masters(tmp_path / "masters")
    write_adapter(masters)
    with TernaryTransformer.from_pretrained(masters, cache_dir=tmp_path / "c", threads=1) as model:
        assert model.loaded.session.adapter is not None
        with_adapter = model.generate(PROMPT, max_tokens=10).tokens
        model.set_adapter(None)
        without = model.generate(PROMPT, max_tokens=10).tokens
        model.set_adapter(masters)
        assert model.generate(PROMPT, max_tokens=10).tokens == with_adapter != without


def test_what_is_no_model_is_refused(tmp_path, made, monkeypatch):
    with pytest.raises(ModelError, match="nothing is there"):
        api.resolve(tmp_path / "none")
    with pytest.raises(ConfigError, match="leave --tokenizer out"):
        api.resolve(made, tokenizer=made)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError):
        api.resolve(tmp_path / "x.gguf", cache_dir=tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    monkeypatch.setattr(api, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"edgeagent\[fleet\]"):
        api.resolve(tmp_path / "x.gguf")


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("EDGEAGENT_CACHE", raising=False)
    assert api.default_cache() == tmp_path / "edgeagent" / "models"
    monkeypatch.setenv("EDGEAGENT_CACHE", str(tmp_path / "mine"))
    assert api.default_cache() == tmp_path / "mine"


def test_generate_on_the_command_line_takes_foreign_formats(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGEAGENT_CACHE", str(tmp_path / "cache"))
    masters = write_masters(tmp_path / "masters")
    args = ["generate", "--model", str(masters), "--prompt", PROMPT, "--max-tokens", "5"]
    assert main([*args, "--json", "--zero-skip"]) == 0
    with_skip = json.loads(capsys.readouterr().out)
    assert main([*args, "--json", "--no-zero-skip"]) == 0
    without = json.loads(capsys.readouterr().out)
    assert with_skip["text"] == without["text"]
    assert with_skip["model"]["name"] == "masters"
