"""What is in a model, before anything of it is loaded: any format that `convert` reads, or ours.

One matrix at a time is in memory, as trits.  What an engine would need is calculated from shapes;
what it has is asked of the machine.  The module is the operator's: it needs numpy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeagent import _core
from edgeagent.convert.adapter import adapter_in, check_adapter, describe
from edgeagent.convert.checkpoint import Checkpoint, TokenizerFiles, TritMatrix
from edgeagent.convert.disk import DiskFile
from edgeagent.convert.gguf_file import GgufFile
from edgeagent.convert.head import pays
from edgeagent.convert.hf import is_projection
from edgeagent.convert.ours import packed_shapes
from edgeagent.convert.pack import choose_layout
from edgeagent.convert.report import entropy_bits
from edgeagent.convert.sources import GGUF_MAGIC, open_checkpoint
from edgeagent.errors import ModelError
from edgeagent.model.files import CONFIG_NAME, read_json
from ota.release import RELEASE_FILE

KV_BITS = (4, 8, 16, 32)
KV_GROUP = 64
#: A process with interpreter, tokenizer and the buffers of a prefill, beside weights and KV cache.
PROCESS_BYTES = 96 << 20
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Report = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class MatrixFacts:
    """One ternary matrix.

    Attributes:
        name: of the tensor.
        shape: (out, in).
        zeros: trits that are 0.
        entropy: bits a trit, order 0.
        dead_rows: outputs that are always 0.
        dead_columns: inputs that nothing looks at.
        n_scales: scales of the matrix.
        scale_min: the smallest of them.
        scale_max: the largest.
    """

    name: str
    shape: tuple[int, int]
    zeros: int
    entropy: float
    dead_rows: int
    dead_columns: int
    n_scales: int
    scale_min: float
    scale_max: float

    @property
    def layer(self) -> int:
        """Return the number of its layer."""
        return int(self.name.split(".")[2])


def matrix_facts(name: str, matrix: TritMatrix) -> MatrixFacts:
    """Look at one matrix."""
    live = matrix.trits != 0
    return MatrixFacts(
        name=name,
        shape=(live.shape[0], live.shape[1]),
        zeros=int(live.size - np.count_nonzero(live)),
        entropy=entropy_bits(matrix.trits),
        dead_rows=int((~live.any(axis=1)).sum()),
        dead_columns=int((~live.any(axis=0)).sum()),
        n_scales=int(matrix.scales.size),
        scale_min=float(matrix.scales.min()),
        scale_max=float(matrix.scales.max()),
    )


def _disk_bytes(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def format_of(path: Path) -> str:
    """Name the format of a path in words.

    Raises:
        ModelError: nothing is there.
    """
    if (path / RELEASE_FILE).is_file():
        return "edgeagent model directory"
    if path.is_dir():
        quantization = read_json(path / CONFIG_NAME).get("quantization_config")
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        return "Hugging Face directory" + (f", {method}" if method else "")
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err.strerror}") from err
    return "GGUF file" if magic == GGUF_MAGIC else "file"


def plane_bytes(out: int, width: int, layout: int) -> int:
    """Return the bytes of a matrix in our layout, in the orientation that converts choose."""
    shape = packed_shapes(out, width, layout)[-1]
    return math.prod(shape)


def scan_bytes(vocab: int, hidden: int) -> int:
    """Return the bytes of the planes of a two-stage head (docs/formats.md, section 3a)."""
    if not pays(vocab, hidden):
        return 0
    panels, groups = -(-vocab // 16), -(-hidden // 32)
    return panels * groups * (4 * 64 + 16) + 16 + vocab * (-(-hidden // 256) * 64 + 5 * 4)


def weight_bytes(source: Checkpoint) -> int:
    """Return what the model's files in our layout will take, and its weights in memory."""
    shapes = source.shapes()
    ternary = {name: shape for name, shape in shapes.items() if is_projection(name)}
    layout = choose_layout(sum(math.prod(shape) for shape in ternary.values()))
    total = sum(plane_bytes(shape[0], shape[1], layout) for shape in ternary.values())
    for name, shape in shapes.items():
        if name in (EMBEDDING, HEAD):
            total += 2 * math.prod(shape)
        elif name not in ternary:
            total += 4 * math.prod(shape)
    head = shapes.get(HEAD) or shapes[EMBEDDING]
    return total + scan_bytes(head[0], head[1])


def _weights(source: Checkpoint, path: Path) -> int:
    """Return the bytes of weights: of a directory of ours as they are, else calculated."""
    if (path / RELEASE_FILE).is_file():
        return sum(file.stat().st_size for file in path.glob("model-*.safetensors"))
    return weight_bytes(source)


def memory_facts(source: Checkpoint, context: int, available: int, weights: int) -> dict[str, Any]:
    """Return what a context of so many tokens needs, for every width of the KV cache."""
    config = source.config
    heads = int(config["num_attention_heads"])
    rows = []
    for bits in KV_BITS:
        kv = _core.kv_bytes(
            n_layers=int(config["num_hidden_layers"]),
            n_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            context=context,
            kv_bits=bits,
            kv_group_size=KV_GROUP,
        )
        needed = weights + kv + PROCESS_BYTES
        rows.append(
            {"kv_bits": bits, "kv_bytes": kv, "total_bytes": needed, "fits": needed <= available}
        )
    return {
        "context": context,
        "weight_bytes": weights,
        "process_bytes": PROCESS_BYTES,
        "available_bytes": available,
        "kv": rows,
    }


def _tokenizer_facts(files: TokenizerFiles | None) -> dict[str, Any] | None:
    if files is None:
        return None
    model = files.tokenizer.get("model") or {}
    vocab = model.get("vocab") or ()
    template = files.config.get("chat_template")
    return {
        "kind": model.get("type"),
        "tokens": len(vocab) + _added(files.tokenizer, vocab),
        "bos": _text(files.config.get("bos_token")),
        "eos": _text(files.config.get("eos_token")),
        "stop_ids": list(files.stop_ids),
        "chat_template": template if isinstance(template, str) else None,
    }


def _added(tokenizer: Mapping[str, Any], vocab: Any) -> int:
    added = tokenizer.get("added_tokens") or ()
    return sum(1 for token in added if isinstance(vocab, dict) and token["content"] not in vocab)


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _what_convert_does(source: Checkpoint, path: Path, floats: list[str]) -> str:
    if (path / RELEASE_FILE).is_file():
        return "nothing to do: it loads as it is"
    if floats:
        return (
            f"refuses as it is: {len(floats)} float matrices, {floats[0]} the first; "
            "ternarise them with --quantization ternary"
        )
    bits = source.activation_bits
    return f"packs the trits as they are, with {bits}-bit activations"


def _parameters(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    matrices = sum(size for name, size in sizes.items() if is_projection(name))
    vocabulary = sum(size for name, size in sizes.items() if name in (EMBEDDING, HEAD))
    total = sum(sizes.values())
    return {
        "total": total, "matrices": matrices, "embedding_and_head": vocabulary,
        "norms": total - matrices - vocabulary,
    }  # fmt: skip


def _matrices(source: Checkpoint, ternary: list[str], report: Report) -> list[MatrixFacts]:
    found = []
    for done, name in enumerate(ternary):
        report(done, len(ternary), name)
        found.append(matrix_facts(name, source.trits(name)))
    if ternary:
        report(len(ternary), len(ternary), "")
    return found


def inspect_model(
    path: Path,
    *,
    context: int | None = None,
    available_bytes: int,
    tokenizer: Path | None = None,
    i2s_variant: str = "canonical",
    report: Report = lambda done, total, what: None,
) -> dict[str, Any]:
    """Describe a model; JSON-ready.

    Args:
        path: file or directory.
        context: tokens to calculate memory for; None: all that the model has.
        available_bytes: of memory on this machine.
        tokenizer: of a file that has none.
        i2s_variant: how I2_S tensors are laid out.
        report: is told of the progress.

    Raises:
        ModelError: no model that we read; the line is what `convert` would say.
    """
    kind = format_of(path)
    source = open_checkpoint(path, tokenizer=tokenizer, i2s_variant=i2s_variant)
    shapes = source.shapes()
    projections = [name for name in shapes if is_projection(name)]
    ternary = [name for name in projections if source.is_ternary(name)]
    matrices = _matrices(source, ternary, report)
    floats = [name for name in projections if name not in set(ternary)]
    trained = int(source.config.get("max_position_embeddings") or 0)
    parameters, disk = _parameters(shapes), _disk_bytes(path)
    adapter = adapter_in(path) if path.is_dir() else None
    if adapter is not None:
        check_adapter(adapter, shapes)
    return {
        "path": str(path),
        "format": kind,
        "config": {key: value for key, value in source.config.items() if value is not None},
        "activation_bits": source.activation_bits,
        "parameters": parameters,
        "disk_bytes": disk,
        "bits_a_parameter": round(8 * disk / parameters["total"], 3),
        "ternary": totals(matrices),
        "float_matrices": len(floats),
        "layers": layers(matrices),
        "matrices": [
            {field: getattr(m, field) for field in MatrixFacts.__dataclass_fields__}
            for m in matrices
        ],
        "tokenizer": _tokenizer_facts(source.tokenizer()),
        "adapter": None if adapter is None else describe(adapter),
        "memory": memory_facts(
            source, min(context or trained, trained), available_bytes, _weights(source, path)
        ),
        "convert": _what_convert_does(source, path, floats),
    }


def refused(path: Path, error: ModelError) -> dict[str, Any]:
    """Describe what `convert` refuses, as far as its container can be read.

    Raises:
        ModelError: `error`, where not even that can be.
    """
    facts: dict[str, Any] = {
        "path": str(path),
        "format": format_of(path),
        "disk_bytes": _disk_bytes(path),
        "convert": f"refuses: {error}",
    }
    if facts["format"] == "GGUF file":
        try:
            file = GgufFile(DiskFile(path))
        except ModelError:
            raise error from None
        kinds = Counter(tensor.kind.name for tensor in file.tensors.values())
        facts["architecture"] = file.metadata.get("general.architecture")
        facts["tensors"] = dict(sorted(kinds.items()))
    elif path.is_dir():
        facts["architecture"] = read_json(path / CONFIG_NAME).get("architectures")
    else:
        raise error
    return facts


def totals(matrices: list[MatrixFacts]) -> dict[str, Any]:
    """Sum up all ternary matrices."""
    trits = sum(math.prod(m.shape) for m in matrices)
    if not trits:
        return {"matrices": 0, "trits": 0}
    entropy = sum(m.entropy * math.prod(m.shape) for m in matrices) / trits
    return {
        "matrices": len(matrices),
        "trits": trits,
        "zeros": round(sum(m.zeros for m in matrices) / trits, 6),
        "entropy": round(entropy, 4),
        "dead_rows": sum(m.dead_rows for m in matrices),
        "dead_columns": sum(m.dead_columns for m in matrices),
        "scales": sum(m.n_scales for m in matrices),
    }


def layers(matrices: list[MatrixFacts]) -> list[dict[str, Any]]:
    """Sum up each layer."""
    out = []
    for layer in sorted({m.layer for m in matrices}):
        own = [m for m in matrices if m.layer == layer]
        out.append(
            totals(own)
            | {
                "layer": layer,
                "scale_min": min(m.scale_min for m in own),
                "scale_max": max(m.scale_max for m in own),
            }
        )
    return out
