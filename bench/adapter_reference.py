"""Random LoRA adapters of random small models, written by PEFT, with the logits it computes.

    PYTHON_WITH_TORCH bench/adapter_reference.py OUT

OUT/CASE holds the base as a user would have it, OUT/CASE/adapter what PEFT saves, and OUT/CASE.npz
what transformers and PEFT make of both in float32 (see parity_reference.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import parity_reference as base
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

ALL = list(base.PROJECTIONS)
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "bitnet-all": (base.bitnet_online, {"r": 8, "lora_alpha": 16, "target_modules": ALL}),
    "bitnet-qv": (
        base.bitnet_bf16_masters,
        {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    ),
    "llama-rslora-patterns": (
        base.llama_online,
        {
            "r": 8, "lora_alpha": 8, "target_modules": ALL, "use_rslora": True,
            "rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 5},
            "alpha_pattern": {"gate_proj": 3},
        },
    ),
    "trilm-all": (base.trilm, {"r": 16, "lora_alpha": 32, "target_modules": ALL}),
}  # fmt: skip


def write_adapter(path: Path, settings: dict[str, Any], seed: int) -> None:
    """Let PEFT make and save an adapter whose effect is about that of the base."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                spread = 0.05 if "lora_A" in name else 0.1
                weight.copy_(spread * torch.randn(weight.shape, generator=generator))
    adapted.save_pretrained(path / "adapter")


def expected(path: Path) -> dict[str, np.ndarray]:
    """Run base and adapter as PEFT loads them; and the base alone."""
    out = {}
    for name in ("alone", "adapted"):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        vocab = model.config.vocab_size
        if name == "adapted":
            model = PeftModel.from_pretrained(model, path / "adapter").eval()
        ids = torch.randint(
            2, vocab, (1, base.PROMPT_TOKENS), generator=torch.Generator().manual_seed(9)
        )
        with torch.no_grad():
            runs = [model(ids).logits[0]]
            runs += [
                torch.cat([model(ids[:, : n + 1]).logits[0, -1:] for n in range(ids.shape[1])])
            ]
            tokens = ids
            for _ in range(base.GREEDY_TOKENS):
                best = model(tokens).logits[0, -1].argmax()
                tokens = torch.cat([tokens, best.reshape(1, 1)], 1)
            runs.append(torch.nn.Module.double(model)(ids).logits[0].float())
        out[f"{name}_logits"] = torch.stack(runs).numpy()
        out[f"{name}_greedy"] = tokens[0, ids.shape[1] :].numpy().astype(np.int32)
        out["ids"] = ids[0].numpy().astype(np.int32)
    return out


def main(argv: list[str]) -> int:
    out = Path(argv[0])
    out.mkdir(parents=True, exist_ok=True)
    for seed, (name, (write, settings)) in enumerate(CASES.items()):
        write(out / name)
        write_adapter(out / name, settings, 50 + seed)
        np.savez(out / f"{name}.npz", **expected(out / name))
        print(name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
