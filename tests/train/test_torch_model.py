"""The training model against formulas written out in numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgeagent.train import export as exports
from edgeagent.train import tokenizer as tokenizers
from edgeagent.train.config import ModelConfig
from edgeagent.train.generate import generate
from edgeagent.train.model import BitNet, Rows, quantise_rows, ternarise

SMALL = ModelConfig(
    vocab_size=300, hidden_size=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_size=48
)


@pytest.fixture
def model():
    torch.manual_seed(1)
    net = BitNet(SMALL)
    with torch.no_grad():
        for gain in net.others():
            if gain.ndim == 1:
                gain.uniform_(0.5, 1.5)
    return net


def np_ternarise(w):
    scale = np.float32(max(np.abs(w).mean(dtype=np.float32), 1e-5))
    return np.clip(np.rint(w / scale), -1, 1) * scale


def np_quantise(x):
    factor = 127.0 / np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5)
    return np.clip(np.rint(x * factor), -128, 127) / factor


def np_norm(x, gain):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain


def np_rotate(x, positions):
    half = x.shape[-1] // 2
    angle = positions[:, None] * 10000.0 ** (-np.arange(half) * 2 / x.shape[-1])
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    low, high = x[..., :half], x[..., half:]
    return np.concatenate((low * cos - high * sin, high * cos + low * sin), -1)


def np_attend(q, k, v):
    n, heads, dim = q.shape
    out = np.zeros_like(q)
    for head in range(heads):
        kv = head // (heads // k.shape[1])
        scores = q[:, head] @ k[:, kv].T / np.sqrt(dim)
        scores[np.triu_indices(n, 1)] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = shares / shares.sum(-1, keepdims=True) @ v[:, kv]
    return out.reshape(n, -1)


def np_forward(state, config, tokens):
    """One row of tokens through the whole model, straight from the published description."""
    w = {name: t.numpy().astype(np.float64) for name, t in state.items()}

    def linear(x, name):
        return np_quantise(x) @ np_ternarise(w[name].astype(np.float32)).astype(np.float64).T

    n = len(tokens)
    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(config.n_layers):
        p = f"model.layers.{layer}."
        h = np_norm(x, w[p + "input_layernorm.weight"])
        q, k, v = (
            linear(h, f"{p}self_attn.{name}_proj.weight").reshape(n, -1, config.head_dim)
            for name in "qkv"
        )
        positions = np.arange(n)
        mixed = np_attend(np_rotate(q, positions), np_rotate(k, positions), v)
        mixed = np_norm(mixed, w[p + "self_attn.attn_sub_norm.weight"])
        x = x + linear(mixed, p + "self_attn.o_proj.weight")
        h = np_norm(x, w[p + "post_attention_layernorm.weight"])
        gate = np.maximum(linear(h, p + "mlp.gate_proj.weight"), 0) ** 2
        h = np_norm(gate * linear(h, p + "mlp.up_proj.weight"), w[p + "mlp.ffn_sub_norm.weight"])
        x = x + linear(h, p + "mlp.down_proj.weight")
    return np_norm(x, w["model.norm.weight"]) @ w["model.embed_tokens.weight"].T


def test_ternarise_is_absmean_rounded_half_to_even():
    weight = torch.tensor([[1.0, -0.5, 0.5, 2.0], [0.0, 1.0, -1.0, -2.0]])
    scale = 1.0
    want = [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, -1.0, -1.0]]
    assert (ternarise(weight) / scale).tolist() == want


def test_a_zero_matrix_and_a_zero_row_stay_finite():
    assert ternarise(torch.zeros(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert quantise_rows(torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


def test_both_quantisers_match_numpy():
    torch.manual_seed(0)
    x = torch.randn(7, 33)
    np.testing.assert_allclose(ternarise(x).numpy(), np_ternarise(x.numpy()), rtol=1e-6)
    np.testing.assert_allclose(quantise_rows(x).numpy(), np_quantise(x.numpy()), rtol=2e-6)


@pytest.mark.parametrize("quantise", [ternarise, quantise_rows])
def test_gradients_pass_the_quantiser_unchanged(quantise):
    x = torch.randn(4, 5, requires_grad=True)
    weights = torch.randn(4, 5)
    (quantise(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights)


def test_the_forward_pass_matches_the_written_formula(model):
    tokens = np.random.default_rng(0).integers(0, SMALL.vocab_size, 23)
    with torch.no_grad():
        hidden = model(torch.tensor(tokens), torch.arange(23), [Rows(0, 1, 23)])
        got = model.logits(hidden).numpy()
    want = np_forward(model.state_dict(), SMALL, tokens)
    scale = np.abs(want).max()
    close = np.isclose(got, want, atol=2e-3 * scale).all(-1)
    assert close.mean() > 0.9  # a code on a rounding edge may fall either way


def test_rows_of_a_flat_batch_do_not_see_each_other(model):
    tokens = torch.randint(0, SMALL.vocab_size, (40,))
    positions = torch.cat(
        (
            torch.arange(10),
            torch.arange(10),
            torch.arange(5).repeat(3),
            torch.zeros(5, dtype=torch.long),
        )
    )
    with torch.no_grad():
        flat = model(tokens, positions, [Rows(0, 2, 10), Rows(20, 3, 5)])
        alone = model(tokens[25:30], torch.arange(5), [Rows(0, 1, 5)])
    torch.testing.assert_close(flat[25:30], alone, atol=1e-5, rtol=1e-4)


def test_cached_generation_equals_recomputation(model):
    prompt = [0, 2, 17, 1, 3]
    (answer,) = generate(model, [prompt], 12)
    ids = list(prompt)
    with torch.no_grad():
        for token in answer:
            n = len(ids)
            hidden = model(torch.tensor(ids), torch.arange(n), [Rows(0, 1, n)])
            assert int(model.logits(hidden[-1:]).argmax()) == token
            ids.append(token)


def test_an_export_has_the_hugging_face_layout(model, tmp_path):
    tokenizer = tokenizers.train(["hello"] * 3, 270)
    exports.export(model, tokenizer, tmp_path)
    state = load_file(str(tmp_path / "model.safetensors"))
    assert "model.layers.1.self_attn.attn_sub_norm.weight" in state
    assert "model.layers.0.mlp.ffn_sub_norm.weight" in state
    assert len(state) == 2 + 11 * SMALL.n_layers
    embedding = state["model.embed_tokens.weight"]
    assert torch.equal(embedding, embedding.half().float())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["BitNetForCausalLM"]
    assert config["quantization_config"]["quantization_mode"] == "online"
    assert (tmp_path / "tokenizer_config.json").exists()


def test_the_bundled_model_has_its_size():
    n = sum(p.numel() for p in BitNet(ModelConfig()).parameters())
    assert n == 3_480_064
