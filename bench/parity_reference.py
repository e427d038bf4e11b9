"""Random small models, written by transformers, with the logits that it computes for them.

    PYTHON_WITH_TORCH bench/parity_reference.py [--small] OUT [CASE...]

Every case is one family and one way of storing it.  OUT/CASE holds the checkpoint as a user would
have it, `tokenizer.json` aside, and OUT/CASE.npz what the reference makes of it in float32: the
logits of every position of a prompt and 64 greedy tokens.  Needs bench/parity-requirements.txt.

The prompt is chosen by bench/parity_prompts.py; its logits are computed three times: in float32 at
once, in float32 position by position, and in float64.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # else a C++ compiler is needed at run time
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads that wait for each other are slower

import numpy as np
import torch
from parity_prompts import answers, choose
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitNetConfig,
    BitNetForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.integrations.bitnet import pack_weights

PROMPT_SEED = 7
TINY = {
    "vocab_size": 320, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Tensors = dict[str, torch.Tensor]


def is_projection(name: str) -> bool:
    return name.endswith(tuple(f"{p}.weight" for p in PROJECTIONS))


def randomise(model: torch.nn.Module, seed: int, spread: float = 0.05) -> None:
    """Gains about 1, an embedding that float16 holds, projections of a modest size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_(1 + 0.2 * values)
            elif is_projection(name):
                weight.copy_(spread * values)
            else:
                weight.copy_((0.3 * values).bfloat16().float())


def save(model: Any, path: Path, dtype: torch.dtype = torch.float32) -> Tensors:
    model.to(dtype).save_pretrained(path)
    return load_file(path / "model.safetensors")


def rewrite(path: Path, tensors: Tensors | None, **changes: Any) -> None:
    """Replace tensors of a saved checkpoint, and keys of its config."""
    if tensors is not None:
        save_file(
            {name: t.contiguous() for name, t in tensors.items()},
            path / "model.safetensors",
            metadata={"format": "pt"},
        )
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config, indent=1))


def bitnet(linear_class: str, mode: str) -> dict[str, Any]:
    return {"quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": mode}


def pack(tensors: Tensors, *, reciprocal: bool, packed: bool = True) -> Tensors:
    """Ternarise as the reference does and store trits beside their scale."""
    out: Tensors = {}
    for name, weight in tensors.items():
        if not is_projection(name):
            out[name] = weight
            continue
        mean = weight.float().abs().mean().clamp(min=1e-5)
        trits = (weight.float() * (1 / mean)).round().clamp(-1, 1)
        out[name] = pack_weights(trits.clone()) if packed else trits
        scale = 1 / mean if reciprocal else mean.half().float()  # as GGUF's blocks can hold it
        out[f"{name}_scale"] = scale.reshape(1).to(weight.dtype)
    return out


# ---- the cases ----


def bitnet_model(seed: int, **changes: Any) -> BitNetForCausalLM:
    config = BitNetConfig(**(TINY | {"tie_word_embeddings": True} | changes))
    model = BitNetForCausalLM(config)
    randomise(model, seed)
    return model


def llama_model(seed: int, **changes: Any) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**(TINY | {"tie_word_embeddings": False} | changes)))
    randomise(model, seed)
    return model


def bitnet_online(path: Path) -> None:
    save(bitnet_model(1), path)
    rewrite(path, None, quantization_config=bitnet("autobitlinear", "online"))


def bitnet_bf16_masters(path: Path) -> None:
    save(bitnet_model(2), path, torch.bfloat16)
    rewrite(path, None, quantization_config=bitnet("autobitlinear", "online"))


def bitnet_offline_packed(path: Path) -> None:
    tensors = pack(save(bitnet_model(3), path), reciprocal=False)
    rewrite(path, tensors, quantization_config=bitnet("autobitlinear", "offline"))


def bitnet_offline_unpacked(path: Path) -> None:
    tensors = pack(save(bitnet_model(4), path), reciprocal=False, packed=False)
    rewrite(path, tensors, quantization_config=bitnet("autobitlinear", "offline"))


def bitnet_bitlinear(path: Path) -> None:
    tensors = pack(save(bitnet_model(5), path), reciprocal=True)
    rewrite(path, tensors, quantization_config=bitnet("bitlinear", "offline"))


def llama_bitlinear(path: Path) -> None:
    """As Falcon3-1.58bit: heads wider than hidden / heads, untied, the key without its details."""
    model = llama_model(6, head_dim=64, rope_theta=1000042.0, rms_norm_eps=1e-6)
    tensors = pack(save(model, path), reciprocal=True)
    rewrite(
        path, tensors, is_bitnet_config=True,
        quantization_config={"quant_method": "bitnet", "modules_to_not_convert": None},
    )  # fmt: skip


def llama_online(path: Path) -> None:
    save(llama_model(7, head_dim=32), path)
    rewrite(path, None, quantization_config=bitnet("autobitlinear", "online"))


def llama3_scaled(path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, "rope_theta": 10000.0,
    }  # fmt: skip
    tensors = pack(save(llama_model(8, rope_parameters=scaling), path), reciprocal=True)
    rewrite(path, tensors, quantization_config={"quant_method": "bitnet"})


def onebit_llm(path: Path) -> None:
    """As 1bitLLM's 3B and xl: heads of 100 channels, an FFN that is no multiple of 8."""
    model = bitnet_model(
        9, hidden_size=300, intermediate_size=580, num_attention_heads=3, num_key_value_heads=3,
        hidden_act="silu", rope_theta=10000.0,
    )  # fmt: skip
    save(model, path)
    rewrite(path, None, quantization_config=bitnet("autobitlinear", "online"))


def onebit_llm_names(path: Path) -> None:
    """Turn the reference's names into those that 1bitLLM's own code has."""
    tensors = load_file(path / "model.safetensors")
    renamed = {
        name.replace("attn_sub_norm", "inner_attn_ln").replace("ffn_sub_norm", "ffn_layernorm"): t
        for name, t in tensors.items()
    }
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    (path / "config.json").write_text(json.dumps(config))
    rewrite(
        path, renamed, architectures=["BitnetForCausalLM"], model_type="llama", weight_bits=1,
        input_bits=8,
    )  # fmt: skip


def shards(weight: torch.Tensor, parts: int, along: int, generator: torch.Generator) -> Any:
    """Random trits with a scale for each of some parts of the rows or columns."""
    trits = torch.randint(-1, 2, weight.shape, generator=generator).float()
    scales = 0.02 + 0.04 * torch.rand(parts, generator=generator)
    scales = scales.half().float().repeat_interleave(weight.shape[along] // parts)
    return trits * (scales[:, None] if along == 0 else scales[None, :])


def trilm(path: Path) -> None:
    """Ternary floats, several scales a matrix (by rows, and by columns for o and down)."""
    model = llama_model(10, num_key_value_heads=8)
    generator = torch.Generator().manual_seed(110)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if is_projection(name):
                along = 1 if "o_proj" in name or "down_proj" in name else 0
                weight.copy_(shards(weight, 2, along, generator))
    save(model, path, torch.float16)


def trilm_linear(path: Path) -> None:
    """One scale a row, positions compressed by 2."""
    model = llama_model(11, rope_parameters={"rope_type": "linear", "factor": 2.0,
                                             "rope_theta": 10000.0})  # fmt: skip
    generator = torch.Generator().manual_seed(111)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if is_projection(name):
                weight.copy_(shards(weight, weight.shape[0], 0, generator))
    save(model, path, torch.float16)


def bonsai(path: Path, **changes: Any) -> None:
    """Qwen3 with a scale for each 128 inputs, in the embedding and the head too."""
    model = Qwen3ForCausalLM(Qwen3Config(**(TINY | {
        "head_dim": 64, "tie_word_embeddings": False, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
    } | changes)))  # fmt: skip
    randomise(model, 12)
    generator = torch.Generator().manual_seed(112)
    with torch.no_grad():
        for _, weight in model.named_parameters():
            if weight.dim() == 2:
                trits = torch.randint(-1, 2, weight.shape, generator=generator).float()
                groups = (weight.shape[0], weight.shape[1] // 128)
                scales = (0.02 + 0.03 * torch.rand(groups, generator=generator)).half().float()
                weight.copy_(trits * scales.repeat_interleave(128, 1))
    save(model, path, torch.float16)


def bonsai_yarn(path: Path) -> None:
    """As Ternary-Bonsai is published: its context is stretched by four."""
    scaling = {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
        "rope_theta": 10000.0,
    }  # fmt: skip
    bonsai(path, rope_parameters=scaling)


def minicpm(path: Path, original: int = 96) -> None:
    """MiniCPM with LongRoPE.  transformers has its function under the name of Granite.

    The session of 80 positions takes the short factors, or with a smaller `original` the long ones.
    """
    half = 16
    scaling = {
        "rope_type": "longrope", "original_max_position_embeddings": original,
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.01 * i for i in range(half)],
        "long_factor": [1.0 + 0.1 * i for i in range(half)],
    }  # fmt: skip
    depth, base = 1.4, 64
    model = GraniteForCausalLM(GraniteConfig(**(TINY | {
        "tie_word_embeddings": True, "rope_parameters": scaling, "embedding_multiplier": 12.0,
        "residual_multiplier": depth / TINY["num_hidden_layers"] ** 0.5,
        "attention_multiplier": 32**-0.5, "logits_scaling": TINY["hidden_size"] / base,
    })))  # fmt: skip
    randomise(model, 13)
    generator = torch.Generator().manual_seed(113)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if is_projection(name):
                weight.copy_(shards(weight, 1, 0, generator))
    save(model, path, torch.float16)


def minicpm_long(path: Path) -> None:
    minicpm(path, original=8)


def minicpm_names(path: Path) -> None:
    rewrite(
        path, None, architectures=["MiniCPMForCausalLM"], model_type="minicpm", scale_emb=12,
        scale_depth=1.4, dim_model_base=64,
    )  # fmt: skip


def llama_odd(path: Path) -> None:
    """Packed, with sizes that are multiples of 4 and of nothing more."""
    model = llama_model(
        14, hidden_size=264, intermediate_size=484, num_attention_heads=6, num_key_value_heads=3,
        vocab_size=331,
    )  # fmt: skip
    rewrite(
        path, pack(save(model, path), reciprocal=True),
        quantization_config={"quant_method": "bitnet"},
    )  # fmt: skip


def bitnet_untied(path: Path) -> None:
    tensors = pack(save(bitnet_model(15, tie_word_embeddings=False), path), reciprocal=False)
    rewrite(path, tensors, quantization_config=bitnet("autobitlinear", "offline"))


Case = Callable[[Path], None]
#: name -> (writes what the reference loads, turns that into what a user has)
CASES: dict[str, tuple[Case, Case | None]] = {
    "bitnet-online": (bitnet_online, None),
    "bitnet-bf16-masters": (bitnet_bf16_masters, None),
    "bitnet-offline-packed": (bitnet_offline_packed, None),
    "bitnet-offline-unpacked": (bitnet_offline_unpacked, None),
    "bitnet-bitlinear": (bitnet_bitlinear, None),
    "bitnet-untied": (bitnet_untied, None),
    "llama-bitlinear": (llama_bitlinear, None),
    "llama-online": (llama_online, None),
    "llama-odd": (llama_odd, None),
    "llama3-scaled": (llama3_scaled, None),
    "1bitllm": (onebit_llm, onebit_llm_names),
    "trilm": (trilm, None),
    "trilm-rows-linear": (trilm_linear, None),
    "bonsai": (bonsai, None),
    "bonsai-yarn": (bonsai_yarn, None),
    "minicpm-longrope": (minicpm, minicpm_names),
    "minicpm-long-factors": (minicpm_long, minicpm_names),
}


def load(path: Path) -> Any:
    """Load a checkpoint in float32."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return torch.nn.Module.float(model)  # of packed models too, where `model.float` refuses


def expected(path: Path) -> dict[str, np.ndarray]:
    """Run the reference on what lies in `path`."""
    double = torch.nn.Module.double(load(path))
    with torch.no_grad():
        found = answers(load(path), double, choose(double, PROMPT_SEED))
    return {name: values.numpy() for name, values in found.items()}


#: `--small`: fixtures of some kilobytes for tests/convert, of these cases.
SMALL = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4,
}  # fmt: skip
SMALL_CASES = (
    "bitnet-bf16-masters", "bitnet-offline-packed", "bitnet-offline-unpacked", "bitnet-bitlinear",
    "llama-bitlinear", "llama3-scaled", "trilm",
)  # fmt: skip


def main(argv: list[str]) -> int:
    small = argv[:1] == ["--small"]
    if small:
        argv = [argv[1], *(argv[2:] or SMALL_CASES)]
        TINY.update(SMALL)
    out = Path(argv[0])
    out.mkdir(parents=True, exist_ok=True)
    for name in argv[1:] or CASES:
        write, disguise = CASES[name]
        write(out / name)
        np.savez(out / f"{name}.npz", **expected(out / name))
        if disguise is not None:
            disguise(out / name)
        print(name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
