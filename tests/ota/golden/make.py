"""Make the golden vectors of the container: run it only when the format changes.

    PYTHONPATH=. python tests/ota/golden/make.py

Each vector is two small models and the container between them; together they use every kind of
region, every layout and orientation with padding, every width, both flags and both priors.
``docs/etd_reader.py`` and the product must both make ``new`` from ``old`` and ``delta``.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np

from edgeagent.convert import pack as packing
from tests.ota.codec import encode, release_of
from tests.ota.models import safetensors

HERE = Path(__file__).parent
SEED = 3


def matrices(rng):
    """Trits by tensor name, and how each is packed."""
    return {
        "rows": (random(rng, 40, 200), packing.pack_output_major),
        "lines": (random(rng, 300, 20), packing.pack_input_major),
        "rows3": (random(rng, 12, 400), packing.pack_rows3),
        "channels3": (random(rng, 330, 12), packing.pack_channels3),
        "tiles3": (random(rng, 100, 24), packing.pack_tiles3),
    }


def random(rng, rows, cols):
    return rng.choice([-1, 0, 1], (rows, cols), p=[0.3, 0.4, 0.3]).astype(np.int8)


def flip(trits, rates, rng):
    hit = rng.random(trits.shape) < rates
    fate = np.where(rng.random(trits.shape) < 0.02, -trits, 0)
    return np.where(hit, np.where(trits == 0, rng.choice([-1, 1], trits.shape), fate), trits)


def shard(trits, floats):
    planes = {name: pack(t.astype(np.int8)) for name, (t, pack) in trits.items()}
    return safetensors({**planes, **floats})


def flips(rng):
    """All orientations; one plane does not change; a scale and some norms do."""
    old = matrices(rng)
    new = {n: (flip(t, 0.03, rng) if n != "rows3" else t, p) for n, (t, p) in old.items()}
    new["rows3"] = (flip(old["rows3"][0], 0.2, rng), packing.pack_rows3)
    half = rng.normal(0, 0.05, 300).astype(np.float16)
    full = rng.normal(1, 0.1, 40).astype(np.float32)
    moved = {"half": half + np.float16(1e-3), "float": full * np.float32(1.0001)}
    shards = shard(old, {"half": half, "float": full}), shard(new, moved)
    texts = b'{"version": 1, "words": ["a", "b"]}', b'{"version": 2, "words": ["a", "b", "c"]}'
    return tuple(
        {"m.safetensors": data, "config.json": text, "tokenizer.json": b"kept"}
        for data, text in zip(shards, texts, strict=True)
    )


def clusters(rng):
    """Flips in few rows and few columns, so that lines and places get rates of their own."""
    trits = random(rng, 64, 1024)
    hot = np.where(rng.random(64) < 0.15, 0.5, 0.002)[:, None]
    places = np.where(rng.random(1024) < 0.05, 0.5, 0.002)
    old = {"w": (trits, packing.pack_output_major), "v": (trits, packing.pack_output_major)}
    new = {
        "w": (flip(trits, hot, rng), packing.pack_output_major),
        "v": (flip(trits, places, rng), packing.pack_output_major),
    }
    return {"m.safetensors": shard(old, {})}, {"m.safetensors": shard(new, {})}


def renamed(rng):
    """Files that come, go and change their names; planes without padding, walked as one line."""
    trits = {"lines": random(rng, 256, 96), "rows3": random(rng, 32, 640)}
    packs = {"lines": packing.pack_input_major, "rows3": packing.pack_rows3}
    new = {n: (flip(t, 0.01, rng), packs[n]) for n, t in trits.items()}
    old = {n: (t, packs[n]) for n, t in trits.items()}
    return (
        {"m.safetensors": shard(old, {}), "a.json": b"gone", "b.json": b"kept"},
        {"m.safetensors": shard(new, {}), "c.json": b"kept", "d.json": b"new", "e.json": b""},
    )


def vectors():
    rng = np.random.default_rng(SEED)
    old, new = flips(rng)
    yield "flips", old, new, False
    yield "blind", old, new, True
    yield "full", None, new, False
    yield "clusters", *clusters(rng), False
    yield "renamed", *renamed(rng), False


def main() -> None:
    out = []
    for name, old, new, blind in vectors():
        release = release_of(old).text.decode() if old else None
        entry = {
            "name": name,
            "base_release": release,
            "old": old and coded(old),
            "new": coded(new),
        }
        entry["delta"] = base64.b64encode(encode(old, new, reversible=blind)).decode()
        out.append(entry)
        print(name, len(entry["delta"]) * 3 // 4)
    (HERE / "delta.json").write_text(json.dumps(out, indent=1) + "\n")


def coded(model):
    return {name: base64.b64encode(data).decode() for name, data in model.items()}


if __name__ == "__main__":
    main()
