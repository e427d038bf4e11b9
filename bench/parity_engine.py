"""Does the engine compute what transformers and PEFT compute?  python -m bench.parity_engine

Random ternary models without an int8 step, in Llama's and Qwen3's shape, with every scaling of
rotary positions, every kind of weight scale and PEFT adapters: the reference gets the dequantised
weights in float32, the engine the trits.  Prints a row a case; exit status 1 when a logit is off by
more than 1e-3 or a greedy token differs.  Needs torch, transformers and peft; asks no net.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(TORCHDYNAMO_DISABLE="1", HF_HUB_OFFLINE="1")  # no compiler, no look-ups

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from edgeagent import _core
from edgeagent.model.files import read_adapter
from tests.core.toy import LLAMA3, LONG, Shape, Toy, make_toy

TOKENS = [1, 5, 9, 61, 33, 33, 2, 17, 4, 90, 11, 8, 7, 7, 99]
GREEDY_TOKENS = 64
CONTEXT = 96
LOGIT_BOUND = 1e-3

PLAIN: dict[str, Any] = {
    "act": "silu",
    "sub_norms": False,
    "activation_bits": 16,
    "tied": False,
    "context": 512,
}
QWEN3: dict[str, Any] = {"head_norms": True, "head_dim": 96, "output_major": ()}
CASES = {
    "one scale a matrix": Shape(**PLAIN),
    "one scale a row": Shape(**PLAIN, group=0),
    "base 3": Shape(**PLAIN, layout=2, output_major=()),
    "odd sizes": Shape(**PLAIN, hidden=72, heads=3, kv_heads=1, head_dim=20, ffn=546),
    "12 layers": Shape(**PLAIN, layers=12),
    "rope linear": Shape(**PLAIN, rope={"rope_type": "linear", "factor": 4.0}),
    "rope llama3": Shape(**PLAIN, rope=LLAMA3, theta=500000.0),
    "rope longrope, short": Shape(**PLAIN, rope=LONG, head_dim=32),
    "rope longrope, long": Shape(
        **PLAIN, rope=LONG | {"original_max_position_embeddings": 8}, head_dim=32
    ),
    "qwen3": Shape(**PLAIN, **QWEN3),
    "qwen3, groups of 128": Shape(**PLAIN | {"tied": True}, **QWEN3, group=128, ffn=384),
    "qwen3, groups of 64": Shape(**PLAIN, **QWEN3, group=64, theta=1e6),
}
TARGETS = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, rslora": {"use_rslora": True},
    "lora, patterns": {
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"layers.1.mlp.down_proj": 40},
    },
}


def dense(toy: Toy, module: str) -> np.ndarray:
    """Return the float32 weights of a ternary matrix."""
    trits, scale = toy.weights[f"{module}.weight"], toy.weights[f"{module}.weight_scale"]
    if scale.ndim == 2:
        scale = np.repeat(scale.T, trits.shape[1] // len(scale), axis=1)
    return trits.astype(np.float32) * scale


def reference(toy: Toy) -> Any:
    """Return the same model in transformers."""
    s = toy.shape
    config_class, model_class = (
        (Qwen3Config, Qwen3ForCausalLM) if s.head_norms else (LlamaConfig, LlamaForCausalLM)
    )
    config = config_class(
        vocab_size=s.vocab,
        hidden_size=s.hidden,
        intermediate_size=s.ffn,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        head_dim=s.head_dim,
        max_position_embeddings=s.context,
        rms_norm_eps=1e-5,
        hidden_act=s.act,
        tie_word_embeddings=s.tied,
        rope_parameters={"rope_theta": s.theta, **(s.rope or {"rope_type": "default"})},
    )
    model = model_class(config).float().eval()
    weights = {}
    for name in model.state_dict():
        module = name.removesuffix(".weight")
        if f"{module}.weight_scale" in toy.weights:
            array = dense(toy, module)
        else:
            tied = name == "lm_head.weight" and s.tied
            array = toy.weights["model.embed_tokens.weight" if tied else name]
        weights[name] = torch.from_numpy(np.array(array, np.float32))
    model.load_state_dict(weights)
    return model


def their_run(model: Any) -> tuple[np.ndarray, list[int]]:
    """Return logits after TOKENS and the greedy tokens, without a cache: nothing to get wrong."""
    ids = list(TOKENS)
    first = None
    with torch.no_grad():
        for _ in range(GREEDY_TOKENS):
            logits = model(torch.tensor([ids])).logits[0, -1].numpy()
            first = logits if first is None else first
            ids.append(int(logits.argmax()))
    return first, ids[len(TOKENS) :]


def our_run(toy: Toy, adapter: Path | None) -> tuple[np.ndarray, list[int]]:
    """Return the same of the engine, with a float32 KV cache."""
    model = _core.Model(toy.config, toy.tensors())
    session = _core.Session(model, CONTEXT, 2, kv_bits=32)
    if adapter:
        session.set_adapter(_core.Adapter(model, read_adapter(adapter)))
    session.eval(TOKENS)
    logits, sampler, tokens = np.array(session.logits()), _core.Sampler(), []
    for _ in range(GREEDY_TOKENS):
        tokens.append(sampler.sample(session))
        session.eval(tokens[-1:])
    return logits, tokens


def report(name: str, toy: Toy, model: Any, adapter: Path | None = None) -> bool:
    """Print one row; say whether both agree."""
    (want, want_tokens), (got, got_tokens) = their_run(model), our_run(toy, adapter)
    same = next((i for i, (a, b) in enumerate(zip(got_tokens, want_tokens, strict=True)) if a != b),
                GREEDY_TOKENS)  # fmt: skip
    error = float(np.abs(got - want).max())
    print(f"| {name} | {np.abs(want).max():.1f} | {error:.1e} | {same} of {GREEDY_TOKENS} |")
    return error < LOGIT_BOUND and same == GREEDY_TOKENS


def adapted(toy: Toy, options: dict[str, Any], path: Path) -> Any:
    """Return the reference with a random adapter, which is saved in `path`."""
    config = LoraConfig(r=6, lora_alpha=12, target_modules=TARGETS, **options)
    model = get_peft_model(reference(toy), config)
    for name, weights in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weights, 0, 0.08)
    model.save_pretrained(path)
    return model


def main() -> int:
    """Run every case."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    print("| case | largest logit | largest difference | greedy tokens equal |\n|---|---|---|---|")
    good = [report(name, toy, reference(toy)) for name, toy in
            ((name, make_toy(shape, seed=3)) for name, shape in CASES.items())]  # fmt: skip
    for name, options in ADAPTERS.items():
        toy = make_toy(Shape(**PLAIN), seed=5)
        with tempfile.TemporaryDirectory() as directory:
            model = adapted(toy, options, Path(directory))
            good.append(report(name, toy, model, Path(directory)))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
