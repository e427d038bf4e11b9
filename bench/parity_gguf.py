"""The same random models as GGUF files, in the types of each of the programs that write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeagent.convert import gguf_types
from edgeagent.convert.checkpoint import Checkpoint, TritMatrix
from edgeagent.convert.gguf_write import Planned, write_gguf_file
from edgeagent.convert.sources import open_checkpoint
from edgeagent.convert.to_gguf import gguf_name, interleave

#: Case -> the architectures and ternary types that it is written in.
TWINS = {
    "bitnet-offline-packed": [("bitnet-b1.58", "I2_S"), ("bitnet-25", "I2_S"), ("bitnet", "TQ2_0")],
    "llama-bitlinear": [("llama", "I2_S")],
    "trilm-rows-linear": [("llama", "F16"), ("llama", "TQ1_0")],
    "bonsai": [
        ("qwen3", "Q2_0_G128"),
        ("qwen3", "Q2_0_G64"),
        ("qwen3", "PTQ1_0"),
        ("qwen3", "PQ2_0"),
    ],
    "bonsai-yarn": [("qwen3", "PQ2_0")],
    "minicpm-longrope": [("minicpm", "TQ2_0")],
    "minicpm-long-factors": [("minicpm", "TQ1_0")],
}
NUMBERS = {
    "F32": 0, "F16": 1, "TQ1_0": 34, "TQ2_0": 35, "I2_S": 36, "Q2_0_G64": 42, "Q2_0_G128": 42,
    "PQ2_0": 142, "PTQ1_0": 143,
}  # fmt: skip
INTERLEAVED = ("llama", "minicpm")


def metadata(c: Any, arch: str) -> dict[str, Any]:
    """Keys as the family's own converters write them."""
    keys = {
        "general.architecture": arch,
        f"{arch}.vocab_size": c["vocab_size"],
        f"{arch}.context_length": c["max_position_embeddings"],
        f"{arch}.embedding_length": c["hidden_size"],
        f"{arch}.feed_forward_length": c["intermediate_size"],
        f"{arch}.block_count": c["num_hidden_layers"],
        f"{arch}.attention.head_count": c["num_attention_heads"],
        f"{arch}.attention.head_count_kv": c["num_key_value_heads"],
        f"{arch}.attention.key_length": c["head_dim"],
        f"{arch}.attention.layer_norm_rms_epsilon": float(c["rms_norm_eps"]),
        f"{arch}.rope.dimension_count": c["head_dim"],
        f"{arch}.rope.freq_base": float(c["rope_theta"]),
    }
    if arch == "bitnet":
        keys["bitnet.hidden_activation"] = c["hidden_act"]
    scaling = c["rope_scaling"] or {}
    if scaling.get("rope_type") == "linear":
        keys |= {
            f"{arch}.rope.scaling.type": "linear",
            f"{arch}.rope.scaling.factor": scaling["factor"],
        }
    if "beta_fast" in scaling:  # YaRN; its other keys are left out, as llama.cpp's converter does
        keys |= {
            f"{arch}.rope.scaling.type": "yarn",
            f"{arch}.rope.scaling.factor": scaling["factor"],
            f"{arch}.rope.scaling.original_context_length": scaling[
                "original_max_position_embeddings"
            ],
        }
    if arch == "minicpm":
        keys |= {
            "minicpm.embedding_scale": float(c["scale_emb"]),
            "minicpm.residual_scale": c["scale_depth"] / c["num_hidden_layers"] ** 0.5,
            "minicpm.logit_scale": c["hidden_size"] / c["dim_model_base"],
            "minicpm.rope.scaling.type": "longrope",
            "minicpm.rope.scaling.original_context_length": c["rope_scaling"][
                "original_max_position_embeddings"
            ],
        }
    return keys


def encode(matrix: TritMatrix, kind: str) -> np.ndarray:
    """The bytes of a matrix in a type; scales of groups are repeated for each block."""
    if kind == "I2_S":
        return gguf_types.encode_i2s(matrix.trits, float(matrix.scales[0, 0]))
    kind = "Q2_0_G128" if kind == "PQ2_0" else kind
    blocks = matrix.trits.shape[1] // gguf_types.TERNARY_BLOCKS[kind].weights
    scales = np.broadcast_to(matrix.scales.T, (matrix.trits.shape[0], matrix.scales.shape[0]))
    scales = np.repeat(scales, blocks // scales.shape[1], axis=1)
    return gguf_types.encode_blocks(kind, matrix.trits, scales)


def _values(source: Checkpoint, name: str, arch: str, kind: str) -> tuple[str, np.ndarray]:
    """Type and bytes of one tensor."""
    if name.endswith("norm.weight"):
        return "F32", source.floats(name)
    if not source.is_ternary(name):
        return "F16", source.floats(name).astype("<f2")
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    key = heads.get(name.split(".")[-2])
    n = source.config[key] if key and arch in INTERLEAVED else 1
    if kind == "F16":
        values = source.floats(name)
        return kind, (interleave(values, n) if n > 1 else values).astype("<f2")
    matrix = source.trits(name)
    if n > 1:
        scales = matrix.scales
        if scales.shape[1] > 1:  # of rows, so they move with them
            scales = interleave(scales.T, n).T
        matrix = TritMatrix(interleave(matrix.trits, n), scales)
    return kind, encode(matrix, kind)


def write(source: Checkpoint, path: Path, arch: str, kind: str) -> None:
    """Write a checkpoint with its projections in `kind`."""
    planned, data = [], []
    for name, shape in source.shapes().items():
        of, values = _values(source, name, arch, kind)
        planned.append(Planned(gguf_name(name), NUMBERS[of], shape, values.nbytes))
        data.append(values)
    scaling = source.config["rope_scaling"] or {}
    for length in ("long", "short"):
        if f"{length}_factor" in scaling and "beta_fast" not in scaling:
            factors = np.array(scaling[f"{length}_factor"], "<f4")
            name = f"rope_factors_{length}.weight"
            planned.append(Planned(name, NUMBERS["F32"], factors.shape, factors.nbytes))
            data.append(factors)
    write_gguf_file(path, metadata(source.config, arch), planned, lambda i: iter([data[i]]))


def gguf_twins(case: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write the twins of a case; yield what each is, and its file."""
    for arch, kind in TWINS.get(case.name, ()):
        path = folder / f"{case.name}.{arch}.{kind}.gguf"
        write(open_checkpoint(case), path, arch, kind)
        yield f"as {arch} {kind}", path
