"""How many bytes a delta costs, against the Shannon bound and against general tools.

    python bench/delta.py sizes [--trits 20000000]      flip rates 1e-5 to 0.2, all peers;
        [--whole]                                       peers that are quick, on all planes
    python bench/delta.py pairs [--embedding DIR]       real fine-tunes, bench/pairs/
    python bench/delta.py full                          whole models against GGUF's ternary types
    python bench/delta.py plot                          docs/img/delta-size.svg

Synthetic planes are as ``convert`` lays them out (lines of 256 outputs), 42 % zeros as in BitNet
b1.58 2B4T; flips are independent, zeros to a random sign and signs to zero.  The bound is n H(p)
for the places, with p the share that really flipped, and one bit for each zero that got a sign; of
the real pairs, the sum over planes.  ``coded`` is our stream; ``container`` has the header with
both roots and the plan besides, and so all that is needed to prove the result.  Speed and memory
are measured by ``bench/delta_speed.py``.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zstandard

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from ota.container import Container  # noqa: E402
from ota.delta import Column  # noqa: E402
from ota.encoder import Encoder  # noqa: E402
from ota.release import FileEntry, Health, make_release  # noqa: E402

RESULTS = ROOT / "bench" / "results"
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 2e-1)
P_ZERO = 0.42
PLANE = (1280, 2560)  # (outputs, inputs) of a synthetic plane: 3.3 million trits
PEER_PLANES = 6  # peers are shown so many planes; their cost is proportional
DENSE, DENSE_PEER_PLANES = 2e-3, 2  # and fewer where there are flips enough
SEED = 20


class Memory:
    """A model in memory."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        return self.files[name][offset : offset + length]


class Blob:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def pack_lines(codes: np.ndarray) -> np.ndarray:
    """Pack (outputs, inputs) codes as lines: `[panels, inputs, 64]`."""
    panels = codes.reshape(-1, 256, codes.shape[1]).transpose(0, 2, 1)
    quarters = panels.reshape(*panels.shape[:2], 2, 4, 32)
    packed = np.zeros((*panels.shape[:2], 2, 32), np.uint8)
    for k in range(4):
        packed |= quarters[:, :, :, k] << np.uint8(2 * k)
    return packed.reshape(*panels.shape[:2], 64)


def shard(plane: np.ndarray) -> bytes:
    length = plane.size
    entry = {"dtype": "U8", "shape": list(plane.shape), "data_offsets": [0, length]}
    header = json.dumps({"w": entry}).encode()
    header += b" " * (-(len(header) + 8) % 64)
    return len(header).to_bytes(8, "little") + header + plane.tobytes()


def release(files: dict[str, bytes], version: str, counter: int):
    table = {n: FileEntry(len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()}
    return make_release("bench", version, counter, table, Health())


def entropy_bits(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p) if 0 < p < 1 else 0.0


def encode(old: dict[str, bytes] | None, new: dict[str, bytes]) -> tuple[bytes, int]:
    """Return a container, checked by decoding it, and the length of its coded column."""
    out = io.BytesIO()
    base = None if old is None else (release(old, "1.0.0", 1), Memory(old))
    Encoder(base, (release(new, "1.1.0", 2), Memory(new))).write(out)
    container = Container(Blob(out.getvalue()), base[0] if base else None)
    for name, pieces in container.make(Memory(old or {})):
        assert b"".join(pieces) == new[name]
    return out.getvalue(), container.sizes[Column.CODED]


def synthetic(rate: float, n_planes: int, seed: int) -> tuple[list, list, int, int]:
    """Return old and new packed planes, how many trits flipped, and how many of them were 0."""
    rng = np.random.default_rng(seed)
    shares = [(1 - P_ZERO) / 2, P_ZERO, (1 - P_ZERO) / 2]
    old, new, n_flips, n_signs = [], [], 0, 0
    for _ in range(n_planes):
        codes = rng.choice(np.array([0, 1, 2], np.uint8), PLANE, p=shares)
        hit = rng.random(PLANE, dtype=np.float32) < rate
        signs = rng.choice(np.array([0, 2], np.uint8), PLANE)
        changed = np.where(hit, np.where(codes == 1, signs, 1), codes).astype(np.uint8)
        old.append(pack_lines(codes))
        new.append(pack_lines(changed))
        n_flips += int(hit.sum())
        n_signs += int((hit & (codes == 1)).sum())
    return old, new, n_flips, n_signs


def measure(
    rate: float, n_planes: int, alone: bool = False, whole: bool = False
) -> dict[str, object]:
    """Measure one rate; peers are shown a part of the planes, or quick ones, ``whole``, all."""
    from delta_peers import PEERS, QUICK

    old, new, n_flips, n_signs = synthetic(rate, n_planes, SEED)
    n_trits = n_planes * PLANE[0] * PLANE[1]
    bound = (n_trits * entropy_bits(n_flips / n_trits) + n_signs) / 8
    files = [
        {f"s{k:03d}.safetensors": shard(p) for k, p in enumerate(planes)} for planes in (old, new)
    ]
    data, coded = encode(*files)
    some = n_planes if whole else DENSE_PEER_PLANES if rate > DENSE else PEER_PLANES
    some = min(n_planes, some)
    shown = [b"".join(p.tobytes() for p in planes[:some]) for planes in (old, new)]
    diffs = {} if alone else {n: PEERS[n] for n in QUICK} if whole else PEERS
    peers = {name: len(diff(*shown)) * n_planes / some for name, diff in diffs.items()}
    return {
        "rate": rate,
        "n_flips": n_flips,
        "peers_shown_trits": some * PLANE[0] * PLANE[1],
        "bound_bytes": bound,
        "coded_bytes": coded,
        "container_bytes": len(data),
        "over_bound": {
            "coded": coded / bound,
            "container": len(data) / bound,
            **{name: n_bytes / bound for name, n_bytes in peers.items()},
        },
    }


def sizes(args: argparse.Namespace) -> None:
    n_planes = max(1, round(args.trits / (PLANE[0] * PLANE[1])))
    rows = []
    for rate in RATES:
        start_s = time.monotonic()
        rows.append(measure(rate, n_planes, args.alone, args.whole))
        ratios = {k: round(v, 4) for k, v in rows[-1]["over_bound"].items()}
        print(rate, f"{time.monotonic() - start_s:.0f} s", ratios, flush=True)
    n_trits = n_planes * PLANE[0] * PLANE[1]
    write(f"delta-sizes-{round(n_trits / 1e7)}0M", {"n_trits": n_trits, "rates": rows})


def load(model: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in model.iterdir() if p.name != "release.json"}


def only_planes(old: dict[str, bytes], new: dict[str, bytes]) -> dict[str, bytes]:
    """Return ``new``'s planes in ``old``'s files: floats, texts and headers as they were."""
    mixed = dict(old)
    for name, data in new.items():
        if name.endswith(".safetensors"):
            length = int.from_bytes(data[:8], "little")
            out = bytearray(old[name])
            for key, entry in json.loads(data[8 : 8 + length]).items():
                if key != "__metadata__" and entry["dtype"] == "U8":
                    start, end = (8 + length + offset for offset in entry["data_offsets"])
                    out[start:end] = data[start:end]
            mixed[name] = bytes(out)
    return mixed


def pair(old_dir: Path, new_dir: Path) -> dict[str, object]:
    """Everything about one real pair."""
    import flip_stats
    from delta_peers import PEERS

    stats = flip_stats.statistics(old_dir, new_dir)
    old, new = load(old_dir), load(new_dir)
    trits = only_planes(old, new)
    shards = sorted(name for name in new if old.get(name) != trits[name])
    peers = {name: sum(len(diff(old[s], trits[s])) for s in shards) for name, diff in PEERS.items()}
    changed = sorted(name for name in new if old.get(name) != new[name])
    everything = {
        name: sum(len(diff(old[s], new[s])) for s in changed)
        for name, diff in PEERS.items()
        if name != "index + value + zstd" and name != "gaps + value + zstd"
    }
    _, coded = encode(old, trits)
    data, all_coded = encode(old, new)
    bound = stats["bound_bytes"]
    return {
        **stats,
        "trits_only_over_bound": {
            "coded": coded / bound,
            **{name: n_bytes / bound for name, n_bytes in peers.items()},
        },
        "everything_bytes": {"container": len(data), "coded": all_coded, **everything},
    }


def pairs(args: argparse.Namespace) -> None:
    from edgeagent.demo import rebuild_previous
    from edgeagent.paths import bundled_model
    from ota.device.staging import unpack
    from ota.storage import Disk

    rows = {}
    with tempfile.TemporaryDirectory() as scratch:

        def made(name: str, base: Path) -> Path:
            target = Path(scratch) / name
            target.mkdir()
            unpack(Disk(), ROOT / "bench" / "pairs" / f"{name}.etd", base, target)
            return target

        base = made("base", bundled_model())
        rows["release 1.0 to 1.1"] = pair(rebuild_previous(Path(scratch)), bundled_model())
        for name in ("intent", "vocabulary", "correction"):
            rows[name] = pair(base, made(name, base))
        if args.embedding:
            rows["embedding"] = pair(base, args.embedding)
    for name, row in rows.items():
        ratios = {k: round(v, 4) for k, v in row["trits_only_over_bound"].items()}
        print(name, f"{row['rate']:.5f}", ratios, row["everything_bytes"], flush=True)
    write("delta-pairs", {"pairs": rows})


def full(args: argparse.Namespace) -> None:
    """Whole planes: the bundled model's and synthetic ones."""
    import flip_stats
    import gguf
    from delta_peers import _pack

    from edgeagent.convert.pack import pack_input_major
    from edgeagent.paths import bundled_model

    del args
    rng = np.random.default_rng(SEED)
    shares = [(1 - P_ZERO) / 2, P_ZERO, (1 - P_ZERO) / 2]
    synthetic = [rng.choice([-1, 0, 1], PLANE, p=shares).astype(np.int8) for _ in range(6)]
    models = {
        "edge-tiny": list(flip_stats.planes_of(bundled_model()).values()),
        "synthetic, 42 % zeros": synthetic,
    }
    rows = {}
    for model, planes in models.items():
        counts = np.bincount(np.concatenate([p.reshape(-1) for p in planes]) + 1)
        shares_of = counts / counts.sum()
        packed = [pack_input_major(p) for p in planes]
        files = {f"{k}.safetensors": shard(p) for k, p in enumerate(packed)}
        row = {"entropy": float(-(shares_of * np.log2(shares_of)).sum() * counts.sum() / 8)}
        row["ours"] = encode(None, files)[1]
        row["2 bit"] = sum(p.size // 4 for p in planes)
        row["2 bit, zstd -19"] = len(_pack(b"".join(p.tobytes() for p in packed)))
        for kind in (gguf.GGMLQuantizationType.TQ1_0, gguf.GGMLQuantizationType.TQ2_0):
            data = b"".join(gguf.quantize(p.astype(np.float32), kind).tobytes() for p in planes)
            row[kind.name] = len(data)
            row[f"{kind.name}, zstd -19"] = len(_pack(data))
        rows[model] = row
        print(model, int(counts.sum()), row)
    write("delta-full", {"models": rows})


def write(name: str, fields: dict[str, object]) -> None:
    now = datetime.datetime.now(datetime.UTC)
    commit = subprocess.check_output(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], text=True
    ).strip()
    result = {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit,
        "machine": platform.machine(),
        "zstandard": zstandard.__version__,
        **fields,
    }
    path = RESULTS / f"{name}-{now:%Y%m%d}.json"
    path.write_text(json.dumps(rounded(result), indent=1) + "\n")
    print(path)


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def plot(args: argparse.Namespace) -> None:
    """Draw bytes over bound by flip rate, and the real pairs as points."""
    import matplotlib.pyplot as plt
    from plots import IMAGES, STYLE

    del args
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    newest = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("delta-sizes-20M-*.json"))][-1]
    rows = newest["rates"]
    names = [n for n in rows[0]["over_bound"] if n not in ("container", "full model, zstd -19")]
    for name in names:
        ours = name == "coded"
        label = "edgeagent" if ours else name
        values = [row["over_bound"][name] for row in rows]
        axes.plot([row["rate"] for row in rows], values, label=label, lw=2.4 if ours else 1.2)
    found = json.loads(sorted(RESULTS.glob("delta-pairs-*.json"))[-1].read_text())["pairs"]
    for name, row in found.items():
        axes.plot(row["rate"], row["trits_only_over_bound"]["coded"], "o", color="C0", ms=4)
        if name != "embedding":  # its trits are those of "vocabulary", nearly
            axes.annotate(name, (row["rate"], 0.97), rotation=90, fontsize=6, ha="center", va="top")
    axes.axhline(1, color="black", lw=0.6, ls=":")
    axes.set(xscale="log", xlabel="share of trits that flip", ylabel="bytes / Shannon bound")
    axes.set_ylim(0.7, 3)
    axes.legend(frameon=False, fontsize=7, ncols=2)
    axes.set_title("Size of a delta; points: real fine-tunes, trits only")
    figure.savefig(IMAGES / "delta-size.svg", metadata={"Date": None}, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for function in (sizes, pairs, full, plot):
        sub = commands.add_parser(function.__name__)
        sub.set_defaults(run=function)
        if function is sizes:
            sub.add_argument("--alone", action="store_true", help="no peers")
            sub.add_argument("--trits", type=int, default=20_000_000)
            sub.add_argument("--whole", action="store_true")
        if function is pairs:
            sub.add_argument("--embedding", type=Path)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
