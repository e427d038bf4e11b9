"""Speed and memory of the delta codec on a model of 2 G trits: python bench/delta_speed.py RATE...

For each flip rate: two models of 113 planes of 2560 x 6912 (lines of 256 outputs, 42 % zeros, two
bits a trit, 500 MB), independent flips.  Every step runs in a process of its own; only ``apply``
and zstd's command line use a second core:

    encode             ota.encoder.Encoder, both models on the disk, into a file
    decode_only        ota.container, every byte made, and dropped
    zstd_decode        what `zstd -19 --patch-from` made of the planes, decoded in memory
    decode             like decode_only, and hashed
    apply              ota.device.staging.unpack: decoded, hashed, written, synced
    zstd_write         zstd's patches, decoded and written
    zstd_apply         the same, synced
    zstd_cli           ``zstd -d --patch-from`` as a command, for each file; not synced
    zstd_apply_hashed  the same, hashed as well: what a delta promises

zstd's patches are of the first ``ZSTD_PLANES`` planes, one each, and are used again and again until
as many planes are made; old planes and patches are read from the disk's cache on both sides.
MB/s are of the model (packed bytes); ``cpu_mb_s`` is by the processor time of the process, with
what the kernel did for it.  ``peak_bytes`` is the highest anonymous memory (RssAnon: what
is not a mapped file), above what the process had once its modules were imported.  Before each step
as much as a model is written and removed: a virtual machine waits for its host where it touches
memory that has been free for long.  ``--at DIR`` keeps what is prepared, and takes what is there.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from ota.container import Container, _OldFile  # noqa: E402
from ota.device.staging import unpack  # noqa: E402
from ota.encoder import Encoder  # noqa: E402
from ota.storage import Directory, Disk, read_release  # noqa: E402

SHAPE = (2560, 6912)
N_PLANES = 113
N_DISTINCT = 6
ZSTD_PLANES = 6
REPEATS = 3  # of all but encoding, in turn; the median counts
P_ZERO = 0.42


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


class Peak(threading.Thread):
    """Watches the memory of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.peak = anonymous_bytes()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.002):
            self.peak = max(self.peak, anonymous_bytes())


def prepare(directory: Path, rate: float) -> None:
    """Write both models."""
    from delta import pack_lines, shard

    rng = np.random.default_rng(int(1 / rate))
    shares = [(1 - P_ZERO) / 2, P_ZERO, (1 - P_ZERO) / 2]
    distinct = [
        rng.choice(np.array([0, 1, 2], np.uint8), SHAPE, p=shares) for _ in range(N_DISTINCT)
    ]
    for name in ("old", "new"):
        (directory / name).mkdir()
    for k in range(N_PLANES):
        codes = np.roll(distinct[k % N_DISTINCT], 7 * k, axis=1)
        file = f"model-{k + 1:05d}-of-{N_PLANES:05d}.safetensors"
        (directory / "old" / file).write_bytes(shard(pack_lines(codes)))
        flat = codes.reshape(-1).copy()
        at = np.unique(rng.integers(0, flat.size, rng.poisson(rate * flat.size)))
        flat[at] = np.where(flat[at] == 1, rng.choice(np.array([0, 2], np.uint8), at.size), 1)
        (directory / "new" / file).write_bytes(shard(pack_lines(flat.reshape(SHAPE))))
    for counter, name in enumerate(("old", "new")):
        seal(directory / name, counter)


def seal(model: Path, counter: int) -> None:
    from edgeagent.convert.seal import hash_files
    from ota.release import Health, make_release

    release = make_release("bench", f"1.{counter}.0", counter, hash_files(model), Health())
    (model / "release.json").write_bytes(release.text)


def encode(directory: Path) -> int:
    old, new = directory / "old", directory / "new"
    with Directory(old) as a, Directory(new) as b, (directory / "delta.etd").open("w+b") as out:
        scratch = lambda: tempfile.TemporaryFile(dir=directory)  # noqa: E731, SIM115
        Encoder((read_release(old), a), (read_release(new), b), scratch).write(out)
    return sum(p.stat().st_size for p in new.glob("*.safetensors"))


def decode(directory: Path) -> int:
    old, n_bytes = directory / "old", 0
    with Directory(old) as files, Disk().open(directory / "delta.etd") as blob:
        for _, pieces in Container(blob, read_release(old)).make(files):
            n_bytes += sum(map(len, pieces))
    return n_bytes


def decode_only(directory: Path) -> int:
    old = directory / "old"
    with Directory(old) as files, Disk().open(directory / "delta.etd") as blob:
        container = Container(blob, read_release(old))
        n_bytes = sum(e.n_bytes for n, e in container.draft.files.items() if n in container.regions)
        with container._maker() as maker:
            for name, regions in container.regions.items():
                for piece in maker.file(regions, _OldFile(files, name)):
                    n_bytes -= len(piece)
        assert n_bytes == 0
        return container.written_bytes


def apply(directory: Path) -> int:
    target = directory / "slot"
    target.mkdir()
    unpack(Disk(), directory / "delta.etd", directory / "old", target)
    Disk().sync_tree(target)
    return sum(p.stat().st_size for p in target.glob("*.safetensors"))


def patched(directory: Path) -> Iterator[bytes]:
    """Make as many planes as the model has, by zstd."""
    import zstandard

    patches = sorted(directory.glob("*.zst"))
    for k in range(N_PLANES):
        patch = patches[k % len(patches)]
        old = (directory / "old" / patch.stem).read_bytes()
        content = zstandard.ZstdCompressionDict(old, zstandard.DICT_TYPE_RAWCONTENT)
        unpacker = zstandard.ZstdDecompressor(dict_data=content, max_window_size=1 << 27)
        yield unpacker.decompress(patch.read_bytes())


def zstd_decode(directory: Path) -> int:
    return sum(map(len, patched(directory)))


def zstd_write(directory: Path, hashed: bool = False) -> int:
    target, n_bytes = directory / "zstd.out", 0
    target.mkdir()
    for k, plane in enumerate(patched(directory)):
        if hashed:
            hashlib.sha256(plane).hexdigest()
        (target / str(k)).write_bytes(plane)
        n_bytes += len(plane)
    return n_bytes


def zstd_cli(directory: Path) -> int:
    target = directory / "zstd.out"
    target.mkdir()
    patches = sorted(directory.glob("*.zst"))
    for k in range(N_PLANES):
        patch = patches[k % len(patches)]
        old = directory / "old" / patch.stem
        command = ["zstd", "-d", "-q", "--long=27", f"--patch-from={old}", str(patch)]
        subprocess.run([*command, "-o", str(target / str(k))], check=True)
    return sum(p.stat().st_size for p in target.iterdir())


def zstd_apply(directory: Path, hashed: bool = False) -> int:
    n_bytes = zstd_write(directory, hashed)
    Disk().sync_tree(directory / "zstd.out")
    return n_bytes


def zstd_apply_hashed(directory: Path) -> int:
    return zstd_apply(directory, hashed=True)


STEPS = {
    f.__name__: f
    for f in (
        *(encode, decode_only, zstd_decode, decode, apply),
        *(zstd_write, zstd_apply, zstd_apply_hashed, zstd_cli),
    )
}


def warm(directory: Path) -> None:
    """Write and remove as much as a model."""
    path = directory / "warm"
    with path.open("wb") as file:
        for _ in range(300):
            file.write(bytes(2 << 20))
    path.unlink()


def step(name: str, directory: Path) -> None:
    """Run one step and print what it took."""
    if name.startswith("zstd"):
        import zstandard  # noqa: F401 - so that it is not counted
    warm(directory)
    watch = Peak()
    os.sync()
    watch.start()
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    n_bytes = STEPS[name](directory)
    seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    watch.over.set()
    result = {"mb_s": n_bytes / 1e6 / seconds, "cpu_mb_s": n_bytes / 1e6 / cpu_s}
    result["peak_bytes"] = watch.peak - watch.start_bytes
    print(json.dumps({**result, "seconds": seconds}))


def patches(directory: Path) -> int:
    """Write what ``zstd -19 --patch-from`` makes of the first planes; return their bytes."""
    total = 0
    for new in sorted((directory / "new").glob("*.safetensors"))[:ZSTD_PLANES]:
        patch = directory / f"{new.name}.zst"
        old = directory / "old" / new.name
        command = ["zstd", "-19", "-q", "-f", f"--patch-from={old}", str(new)]
        subprocess.run([*command, "-o", str(patch)], check=True, stderr=subprocess.DEVNULL)
        total += patch.stat().st_size
    return total


def once(command: list[str], directory: Path) -> dict[str, float]:
    """Run one step in a process of its own, and remove the model that it made."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    for made in ("slot", "zstd.out"):
        shutil.rmtree(directory / made, ignore_errors=True)
    os.sync()
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def seconds_of(run: dict[str, float]) -> float:
    return run["seconds"]


def measure(rate: float, quiet: list[str], at: Path | None) -> dict[str, object]:
    with nullcontext(at / str(rate)) if at else tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "new").exists():
            prepare(directory, rate)
        patch_bytes = patches(directory)
        result: dict[str, object] = {
            "rate": rate,
            "patch_from_bytes": patch_bytes * N_PLANES // ZSTD_PLANES,
        }
        runs: dict[str, list[dict[str, float]]] = {each: [] for each in STEPS}
        for k in range(REPEATS):
            for each in STEPS:
                if each != "encode" or k == 0:
                    command = [*quiet, sys.executable, __file__, "step", each, str(name)]
                    runs[each].append(once(command, directory))
        for each, some in runs.items():
            result[each] = sorted(some, key=seconds_of)[len(some) // 2]
            print(rate, each, result[each], flush=True)
        result["delta_bytes"] = (directory / "delta.etd").stat().st_size
        return result


def main() -> None:
    if sys.argv[1] == "step":
        step(sys.argv[2], Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--with", dest="quiet", default="", help="command in front of each step")
    parser.add_argument("--at", type=Path, help="directory that is kept")
    parser.add_argument("rates", nargs="+", type=float)
    args = parser.parse_args()
    from delta import write

    cpu = next(t for t in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in t)
    rows = [measure(rate, args.quiet.split(), args.at) for rate in args.rates]
    fields = {"n_trits": N_PLANES * SHAPE[0] * SHAPE[1], "cpu": cpu.split(": ")[1], "rates": rows}
    write("delta-speed", {**fields, "python": platform.python_version()})
    print(datetime.datetime.now(datetime.UTC))


if __name__ == "__main__":
    main()
