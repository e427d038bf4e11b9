"""The real update pair that ships with the package: what its delta costs beside other ways.

    python bench/pair.py            writes bench/results/pair-<date>.json

The bound is that of independent flips, summed over planes: n H(p) for the places and one bit for
each zero that got a sign.  Scales, hashes and the manifest are extra and are part of our figure.
"""

from __future__ import annotations

import datetime
import io
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import zstandard

from edgeagent.convert.pack import unpack
from edgeagent.demo import rebuild_previous
from edgeagent.model.safetensors import SafetensorsFile
from edgeagent.paths import bundled_model
from ota.encoder import Encoder
from ota.storage import Directory, read_release

ROOT = Path(__file__).parent


def trits_of(file: SafetensorsFile, name: str, config: dict[str, int]) -> np.ndarray:
    """Return the trits of one plane without its padding, which never changes."""
    _, shape, data = file.tensor(name)
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    heads["v_proj"] = heads["k_proj"]
    sizes = {part: config[key] * config["head_dim"] for part, key in heads.items()}
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    sizes |= {"o_proj": hidden, "down_proj": hidden, "gate_proj": ffn, "up_proj": ffn}
    part = name.split(".")[-2]
    inputs = {"o_proj": sizes["q_proj"], "down_proj": ffn}.get(part, hidden)
    return unpack(np.frombuffer(data, np.uint8).reshape(shape), sizes[part], inputs)


def entropy(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p) if 0 < p < 1 else 0.0


def plane_bound_bits(old: np.ndarray, new: np.ndarray) -> tuple[int, int, float]:
    flips = old != new
    n_flips = int(flips.sum())
    signs = int((flips & (old == 0)).sum())
    return old.size, n_flips, old.size * entropy(n_flips / old.size) + signs


def patch_from(old: bytes, new: bytes) -> int:
    """Length of what ``zstd -19 --patch-from`` would write."""
    prefix = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    window_log = max(10, (len(old) + len(new)).bit_length())
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=window_log)
    return len(
        zstandard.ZstdCompressor(dict_data=prefix, compression_params=parameters).compress(new)
    )


def delta_bytes(old: Path, new: Path) -> int:
    out = io.BytesIO()
    with Directory(old) as base, Directory(new) as result:
        Encoder((read_release(old), base), (read_release(new), result)).write(out)
    return len(out.getvalue())


def measure(old: Path, new: Path) -> dict[str, object]:
    trits = flips = 0
    bits = 0.0
    patch = full = 0
    config = json.loads((new / "config.json").read_text())
    for path in sorted(new.glob("model-*.safetensors")):
        before, after = SafetensorsFile(old / path.name), SafetensorsFile(path)
        for name, info in after.infos.items():
            if info.dtype == "U8":
                pair = (trits_of(file, name, config) for file in (before, after))
                counts = plane_bound_bits(*pair)
                trits, flips, bits = trits + counts[0], flips + counts[1], bits + counts[2]
        old_bytes, new_bytes = (old / path.name).read_bytes(), path.read_bytes()
        patch += patch_from(old_bytes, new_bytes) if old_bytes != new_bytes else 0
        full += len(zstandard.ZstdCompressor(level=19).compress(new_bytes))
    ours, bound = delta_bytes(old, new), bits / 8
    return {
        "trits": trits,
        "flip_rate": round(flips / trits, 5),
        "bound_bytes": round(bound),
        "delta_bytes": ours,
        "delta_over_bound": round(ours / bound, 4),
        "patch_from_bytes": patch,
        "patch_from_over_bound": round(patch / bound, 4),
        "full_zstd19_bytes": full,
    }


def main() -> None:
    now = datetime.datetime.now(datetime.UTC)
    with tempfile.TemporaryDirectory() as directory:
        old, new = rebuild_previous(Path(directory)), bundled_model()
        releases = read_release(old), read_release(new)
        result = {
            "date": now.isoformat(timespec="seconds"),
            "pair": [f"{release.name} {release.version}" for release in releases],
            **measure(old, new),
        }
    text = json.dumps(result, indent=1) + "\n"
    (ROOT / "results" / f"pair-{now:%Y-%m-%d}.json").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
