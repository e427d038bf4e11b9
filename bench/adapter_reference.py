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
from parity_prompts import answers, choose
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

PROMPT_SEED = 9
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


def load(path: Path, name: str) -> Any:
    """Load the base, with the adapter beside it or alone."""
    model = base.load(path)
    if name == "adapted":
        model = PeftModel.from_pretrained(model, path / "adapter").eval()
    return model


def expected(path: Path) -> dict[str, np.ndarray]:
    """Run base and adapter as PEFT loads them, and the base alone, each on a prompt of its own."""
    out = {}
    for name in ("alone", "adapted"):
        double = torch.nn.Module.double(load(path, name))
        with torch.no_grad():
            found = answers(load(path, name), double, choose(double, PROMPT_SEED))
            out |= {f"{name}_{key}": values.numpy() for key, values in found.items()}
            if name == "adapted":  # the base on the same prompt: what the adapter changes
                out["base_logits"] = base.load(path)(found["ids"][None]).logits[0].numpy()
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
