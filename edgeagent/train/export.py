"""Write a checkpoint as a Hugging Face directory of float masters.

The embedding is rounded to float16 values, as the product stores it; everything is kept as
float32. ``config.json`` says ``autobitlinear`` ``online``: a loader ternarises the masters itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from edgeagent.train import tokenizer as tokenizers
from edgeagent.train.config import BOS, END, ModelConfig
from edgeagent.train.model import BitNet

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EMBEDDING = "model.embed_tokens.weight"


def round_embedding(model: BitNet) -> None:
    """Round the embedding to float16 values, in place."""
    with torch.no_grad():
        weight = model.model.embed_tokens.weight
        weight.copy_(weight.half().float())


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """The content of ``config.json``."""
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "relu2",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": END,
        "pad_token_id": END,
        "torch_dtype": "float32",
        "use_cache": True,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
        },
    }


def export(model: BitNet, tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: t.detach().clone().contiguous() for name, t in model.state_dict().items()}
    state[EMBEDDING] = state[EMBEDDING].half().float()
    partial = folder / "model.safetensors.partial"
    save_file(state, str(partial), metadata={"format": "pt"})
    partial.rename(folder / "model.safetensors")
    config = json.dumps(hf_config(model.config), indent=2)
    (folder / "config.json").write_text(config + "\n")
    tokenizers.save(tokenizer, folder, model.config.max_positions)
