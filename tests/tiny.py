"""Small random models in every layout that a test may want; made, not canned."""

from __future__ import annotations

import json

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgeagent.convert.packed import write_model
from edgeagent.convert.seal import seal
from edgeagent.convert.sources import open_checkpoint
from edgeagent.model.safetensors import write_safetensors

SPECIAL = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = (
    "<|bos|>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONFIG = {
    "architectures": ["BitNetForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 272,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "relu2",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def write_tokenizer(path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(SPECIAL + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "chat_template": TEMPLATE}
    config["begin_with_bos"] = True
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def shapes(c):
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    h, f = c["hidden_size"], c["intermediate_size"]
    yield "model.embed_tokens.weight", (c["vocab_size"], h)
    yield "model.norm.weight", (h,)
    for n in range(c["num_hidden_layers"]):
        at = f"model.layers.{n}"
        yield f"{at}.input_layernorm.weight", (h,)
        yield f"{at}.post_attention_layernorm.weight", (h,)
        yield f"{at}.self_attn.attn_sub_norm.weight", (q,)
        yield f"{at}.mlp.ffn_sub_norm.weight", (f,)
        for name, shape in {"q": (q, h), "k": (kv, h), "v": (kv, h), "o": (h, q)}.items():
            yield f"{at}.self_attn.{name}_proj.weight", shape
        for name, shape in {"gate": (f, h), "up": (f, h), "down": (h, f)}.items():
            yield f"{at}.mlp.{name}_proj.weight", shape


def write_masters(path, seed=0, *, drift=0.0, **changes):
    """Write a Hugging Face directory of random float masters.

    Models of one ``seed`` whose ``drift`` differs are as a model before and after a fine-tune.
    """
    config = CONFIG | changes
    rng, noise = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    path.mkdir()
    tensors = []
    for name, shape in shapes(config):
        values = rng.standard_normal(shape, np.float32) if len(shape) == 2 else np.ones(shape)
        if "proj" in name:
            values = values + np.float32(drift) * noise.standard_normal(shape, np.float32)
        tensors.append((name, "F32", shape, values.astype("<f4").tobytes()))
    with (path / "model.safetensors").open("wb") as out:
        write_safetensors(out, tensors, {})
    (path / "config.json").write_text(json.dumps(config))
    write_tokenizer(path)
    return path


def make_model(path, seed=0, *, name="tiny", version="1.0.0", counter=1, **changes):
    """Write a sealed random model directory and return its path."""
    masters = write_masters(path.with_name(path.name + ".masters"), seed, **changes)
    write_model(open_checkpoint(masters), path)
    seal(path, name=name, version=version, counter=counter)
    return path
