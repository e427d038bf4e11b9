"""A slot that becomes a delta and comes back, cut off at every call: ``python -m`` this module.

Records on ``crashfs`` how the slot of the model before gives its place up and is made again, makes
every state that a power cut may leave, and checks each: the active model is whole, the way back is
there, and following it gives the model before, whole.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ota.device.store import Store
from ota.storage import Disk, read_release, verify_directory
from tests import results
from tests.ota.crashes import Unsynced
from tests.ota.crashfs import Recorder, states
from tests.ota.models import Shape, flip, random_shards, write_model

SHAPE = Shape(layers=1, plane_bytes=32 * 24, vocab_bytes=1024)
N_STATES = 20_000


@dataclass(frozen=True)
class Scene:
    """A device on 1.2.0, recorded while 1.1.0 becomes a delta and a slot again."""

    bundled: Path
    recorder: Recorder


def scene(path: Path) -> Scene:
    """Make the device, record it, and leave it reverted to 1.1.0."""
    shards = random_shards(1, SHAPE)
    bundled = write_model(path / "bundled", shards, version="1.0.0", counter=1)
    device = path / "device"
    store = Store(device, bundled)
    for counter in (2, 3):
        shards = flip(shards, 0.01, counter)
        slot = store.slots_dir / f"v{counter}"
        write_model(slot, shards, version=f"1.{counter - 1}.0", counter=counter)
        release = read_release(slot)
        slot.rename(store.slot(release.root))
        store.commit(release)
    recorder = Recorder(device)
    store = Store(device, bundled, Disk(recorder))
    assert store.shrink_previous()
    store.rebuild_previous()
    assert store.shrink_previous()
    store.revert("on request")
    store.collect()
    return Scene(bundled, recorder)


def check(bundled: Path, device: Path) -> None:
    """Restart on one state."""
    store = Store(device, bundled, Disk(Unsynced()))
    store.recover()
    version = verify_directory(store.active()).version
    if version == "1.1.0":  # the revert is done
        return
    assert version == "1.2.0", version
    store.collect()
    assert store.can_return(), "the way back is gone"
    store.rebuild_previous()
    assert verify_directory(store.revert("on request")).version == "1.1.0"


def run(recorded: Scene, per_cut: int, limit: int, work: Path, *, seed: int = 1) -> tuple[int, int]:
    """Check up to ``limit`` distinct states; returns how many, and the cuts they cover."""
    cuts: set[int] = set()
    n_done = 0
    recorder = recorded.recorder
    for cut, image in states(recorder, per_cut, seed, 1):
        with tempfile.TemporaryDirectory(dir=work) as directory:
            device = Path(directory) / "device"
            image.write_to(device, recorder.directories, recorder.links)
            try:
                check(recorded.bundled, device)
            except Exception as err:
                op = recorder.ops[cut - 1] if cut else "the start"
                raise AssertionError(f"state {n_done}, cut {cut} after {op!r}"[:300]) from err
        cuts.add(cut)
        n_done += 1
        if n_done >= limit:
            break
    return n_done, len(cuts)


def main() -> int:
    """Run the long enumeration and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=N_STATES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None, help="a memory disk")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    args = parser.parse_args()
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(dir=args.work) as directory:
        recorded = scene(Path(directory))
        n_calls = len(recorded.recorder.ops)
        per_cut = -(-6 * args.states // n_calls)
        n_states, n_cuts = run(recorded, per_cut, 10 * args.states, Path(directory), seed=args.seed)
    seconds = round(time.monotonic() - started_s, 1)
    row = {
        "strategy": "way_back",
        "calls": n_calls,
        "cuts": n_cuts,
        "distinct_states": n_states,
        "seconds": seconds,
    }
    print(json.dumps(row))
    results.leave({"seed": args.seed, **row}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
