"""Which trits real updates change: rate, transitions, clusters.  Used by ``bench/delta.py``.

Planes are compared as matrices, without padding, so rows are outputs and columns are inputs
whatever the layout.  *Dispersion* is variance over mean of the flips of rows (or columns): 1 for
independent flips, more for clusters.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from edgeagent.convert.pack import unpack
from edgeagent.model.safetensors import SafetensorsFile


def entropy(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p) if 0 < p < 1 else 0.0


def planes_of(model: Path) -> dict[str, np.ndarray]:
    """Return the trits of every projection of a model directory."""
    config = json.loads((model / "config.json").read_text())
    heads = config["head_dim"] * config["num_attention_heads"]
    kv = config["head_dim"] * config["num_key_value_heads"]
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    outputs = {"q_proj": heads, "k_proj": kv, "v_proj": kv, "gate_proj": ffn, "up_proj": ffn}
    inputs = {"o_proj": heads, "down_proj": ffn}
    planes = {}
    for path in sorted(model.glob("model-*.safetensors")):
        file = SafetensorsFile(path)
        for name in [n for n, info in file.infos.items() if info.dtype == "U8"]:
            _, shape, data = file.tensor(name)
            part = name.split(".")[-2]
            sizes = outputs.get(part, hidden), inputs.get(part, hidden)
            layout = config["quantization_config"]["layout"]
            planes[name] = unpack(np.frombuffer(data, np.uint8).reshape(shape), *sizes, layout)
    return planes


def plane_bound_bits(old: np.ndarray, new: np.ndarray) -> float:
    """n H(p) for the places, and one bit for each zero that got a sign."""
    flips = old != new
    return old.size * entropy(float(flips.mean())) + int((flips & (old == 0)).sum())


def conditional_bound_bits(old: np.ndarray, new: np.ndarray) -> float:
    """The same with a rate for old zeros and one for old signs."""
    flips, zeros = old != new, old == 0
    bits = float((flips & zeros).sum())
    for some in (zeros, ~zeros):
        bits += some.sum() * entropy(float(flips[some].mean())) if some.any() else 0.0
    return bits


def dispersion(counts: np.ndarray) -> float:
    return float(counts.var() / counts.mean()) if counts.any() else 1.0


def transitions(old: np.ndarray, new: np.ndarray) -> dict[str, int]:
    pairs = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, -1), (-1, 1)]
    return {f"{a:+d} to {b:+d}": int(((old == a) & (new == b)).sum()) for a, b in pairs}


def statistics(old_dir: Path, new_dir: Path) -> dict[str, object]:
    """Everything about one pair of model directories."""
    old, new = planes_of(old_dir), planes_of(new_dir)
    both = [(old[name], new[name]) for name in old]
    flips = {name: old[name] != new[name] for name in old}
    n_trits, n_flips = (
        sum(f.size for f in flips.values()),
        sum(int(f.sum()) for f in flips.values()),
    )
    zeros = sum(int((a == 0).sum()) for a, _ in both)
    from_zero = sum(int(((a == 0) & (b != 0)).sum()) for a, b in both)
    total: dict[str, int] = {}
    for a, b in both:
        for key, count in transitions(a, b).items():
            total[key] = total.get(key, 0) + count
    return {
        "trits": n_trits,
        "flips": n_flips,
        "rate": n_flips / n_trits,
        "bound_bytes": sum(plane_bound_bits(a, b) for a, b in both) / 8,
        "conditional_bound_bytes": sum(conditional_bound_bits(a, b) for a, b in both) / 8,
        "rate_of_zeros_over_rate_of_signs": (from_zero / zeros)
        / ((n_flips - from_zero) / (n_trits - zeros)),
        "transitions": total,
        "rate_by_layer": _grouped(flips, 2),
        "rate_by_projection": _grouped(flips, -2),
        "row_dispersion": _mean([dispersion(f.sum(axis=1)) for f in flips.values()]),
        "column_dispersion": _mean([dispersion(f.sum(axis=0)) for f in flips.values()]),
        "row_dispersion_by_projection": {
            kind: _mean([dispersion(f.sum(axis=1)) for n, f in flips.items() if kind in n])
            for kind in sorted({name.split(".")[-2] for name in flips})
        },
    }


def _grouped(flips: dict[str, np.ndarray], part: int) -> dict[str, float]:
    groups: dict[str, list[np.ndarray]] = {}
    for name, array in flips.items():
        groups.setdefault(name.split(".")[part], []).append(array)
    return {
        key: sum(int(a.sum()) for a in arrays) / sum(a.size for a in arrays)
        for key, arrays in sorted(groups.items())
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
