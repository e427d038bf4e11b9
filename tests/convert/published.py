"""The config.json of published ternary checkpoints, key by key as they are on Hugging Face.

Values are those of the repositories' own files where they are public, and of the projects that
quote them: microsoft/bitnet-b1.58-2B-4T, 1bitLLM, HF1BitLLM, tiiuae, SpectraSuite, prism-ml,
openbmb.  `long_factor` and `short_factor` of MiniCPM are shortened to numbers of the same kind.
"""

from __future__ import annotations

import json
from typing import Any

_2B = {
    "architectures": ["BitNetForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_bitnet.BitNetConfig",
        "AutoModelForCausalLM": "modeling_bitnet.BitNetForCausalLM",
    },
    "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "relu2", "hidden_size": 2560,
    "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 4096,
    "model_type": "bitnet", "rms_norm_eps": 1e-05, "num_attention_heads": 20,
    "num_hidden_layers": 30, "num_key_value_heads": 5, "rope_theta": 500000.0,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "vocab_size": 128256,
    "quantization_config": {
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
    },
}  # fmt: skip
_1BITLLM = {
    "architectures": ["BitnetForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 3200,
    "initializer_range": 0.02, "input_bits": 8, "intermediate_size": 8640,
    "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 26, "num_key_value_heads": 32, "pad_token_id": 32000,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "torch_dtype": "float16", "use_cache": True,
    "vocab_size": 32002, "weight_bits": 1,
}  # fmt: skip
#: The key quantization_config is there twice, as in the file.
LLAMA3_8B_TEXT = """{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": 128009, "hidden_act": "silu", "hidden_size": 4096,
  "initializer_range": 0.02, "intermediate_size": 14336, "is_bitnet_config": true,
  "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "pretraining_tp": 1,
  "quantization_config": {"modules_to_not_convert": null, "quant_method": "bitnet"},
  "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 500000.0,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true,
  "vocab_size": 128256,
  "quantization_config": {"modules_to_not_convert": null, "quant_method": "bitnet"}
}"""
_FALCON3 = {
    "activation": "swiglu", "architectures": ["LlamaForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 11, "eos_token_id": 11, "head_dim": 256,
    "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
    "intermediate_size": 23040, "is_bitnet_config": True, "max_position_embeddings": 32768,
    "mlp_bias": False, "model_type": "llama", "num_attention_heads": 12,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "parallel_attn": False,
    "pretraining_tp": 1,
    "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "bitnet"},
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000042,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.46.1",
    "use_cache": True, "vocab_size": 131072,
}  # fmt: skip
_TRILM = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 0, "dims_per_head": 64, "eos_token_id": 0, "hidden_act": "silu",
    "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 1280,
    "max_position_embeddings": 2048, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 8, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pretraining_model_parallel": 1, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 10000.0, "rotary_pct": 1.0,
    "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True,
    "vocab_size": 50304,
}  # fmt: skip
_BONSAI = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
    "layer_types": ["full_attention"] * 28, "max_position_embeddings": 32768,
    "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
    "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "yarn",
    },
    "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151669,
}  # fmt: skip
#: No model_type, no rope_theta, no tie_word_embeddings: its own code has the defaults.
_BITCPM = {
    "architectures": ["MiniCPMForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_minicpm.MiniCPMConfig",
        "AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM",
    },
    "bos_token_id": 1, "eos_token_id": [2, 73440], "hidden_act": "silu", "hidden_size": 1536,
    "initializer_range": 0.1, "intermediate_size": 3840, "max_position_embeddings": 32768,
    "num_attention_heads": 24, "num_hidden_layers": 52, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "rope_type": "longrope", "long_factor": [1 + i * i / 20 for i in range(32)],
        "short_factor": [1 + i * i / 20 for i in range(32)],
        "original_max_position_embeddings": 32768,
    },
    "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 73448, "scale_emb": 12,
    "dim_model_base": 256, "scale_depth": 1.4,
}  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "bitnet-b1.58-2B-4T": _2B,
    "bitnet-b1.58-2B-4T-bf16": _2B | {
        "quantization_config": _2B["quantization_config"] | {"quantization_mode": "online"},
    },
    "bitnet_b1_58-large": _1BITLLM | {
        "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16,
    },
    "bitnet_b1_58-xl": _1BITLLM | {
        "hidden_size": 2048, "intermediate_size": 5460, "num_hidden_layers": 24,
    },
    "bitnet_b1_58-3B": _1BITLLM,
    "Llama3-8B-1.58": json.loads(LLAMA3_8B_TEXT),
    "Falcon3-1B": {k: v for k, v in _FALCON3.items() if k != "bos_token_id"} | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 18,
        "num_attention_heads": 8, "max_position_embeddings": 8192,
    },
    "Falcon3-3B": _FALCON3 | {"intermediate_size": 9216, "num_hidden_layers": 22},
    "Falcon3-7B": _FALCON3 | {
        "vocab_size": 131080,
        "auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"},
    },
    "Falcon3-10B": _FALCON3 | {"num_hidden_layers": 40, "bos_token_id": 1},
    "Falcon-E-3B": _FALCON3 | {
        "hidden_size": 2048, "intermediate_size": 13312, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 32768, "num_hidden_layers": 32,
        "quantization_config": {"modules_to_not_convert": None, "quant_method": "bitnet"},
    },
    "TriLM_99M": _TRILM,
    "TriLM_3.9B": _TRILM | {
        "hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 30,
        "num_attention_heads": 24, "num_key_value_heads": 24, "vocab_size": 50688,
        "dims_per_head": 128, "pretraining_model_parallel": 6,
    },
    "Ternary-Bonsai-1.7B": _BONSAI,
    "Ternary-Bonsai-8B": _BONSAI | {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536, "max_window_layers": 36, "tie_word_embeddings": False,
        "rope_scaling": {
            "factor": 4.0, "original_max_position_embeddings": 16384, "rope_type": "yarn",
        },
    },
    "BitCPM4-1B": _BITCPM,
}  # fmt: skip
