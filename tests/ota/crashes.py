"""Whole updates, cut off at every call: ``python -m tests.ota.crashes --strategy slot``.

Records one update on ``crashfs``, makes every state that a power cut may leave, and restarts the
device on each: what it runs is the old model or the new one, whole, before anything is repaired by
the network, and the next update completes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ota.device.dir_source import DirSource
from ota.device.store import Store
from ota.device.updater import Board, Updater, Verdict
from ota.storage import RESERVE_BYTES, Calls, Disk, verify_directory
from tests import results
from tests.ota.crashfs import Recorder, states
from tests.ota.fakes import ScriptedAgent
from tests.ota.harness import Fleet, make_fleet
from tests.ota.models import Shape, flip, random_shards, write_model

BOARD = Board("test-board", "0.1.0")
SHAPE = Shape(layers=2, plane_bytes=32 * 16, vocab_bytes=2048)
N_STATES = 10_000
WIDE = Shape(layers=2, plane_bytes=32 * 32, vocab_bytes=2048)
SPARSE = 0.002
NO_ROOM = 18_000  # less than a slot of the scene's model, more than its patch


class Unsynced(Calls):
    """Calls without a sync: restarts on a memory disk need none."""

    def sync(self, fd: int) -> None:
        pass

    def sync_path(self, path: Path) -> None:
        pass


@dataclass(frozen=True)
class Scene:
    """A device, recorded during an update."""

    fleet: Fleet
    recorder: Recorder
    roots: frozenset[str]
    """The models that may run after a cut."""
    final: str
    """The model that runs in the end."""
    room: int | None = None
    """Free bytes above the reserve, if not what the disk says."""


class SmallDisk(Disk):
    """A disk with so much room, as far as the update asks."""

    def __init__(self, calls: Calls, room: int | None) -> None:
        super().__init__(calls)
        self._room = room

    def free_bytes(self, path: Path) -> int:
        return super().free_bytes(path) if self._room is None else RESERVE_BYTES + self._room


def update(
    path: Path,
    fleet: Fleet,
    calls: Calls,
    room: int | None = None,
    *,
    verdicts: Sequence[Verdict | Exception] = (Verdict(True),) * 3,
    is_good: bool = True,
) -> ScriptedAgent:
    """Run one worker, with an agent that finds every model good unless told otherwise."""
    disk = SmallDisk(calls, room)
    agent = ScriptedAgent(*verdicts)
    store = Store(path, fleet.old, disk)
    source = DirSource(fleet.repo.path)
    error = Updater(path, store, source, disk, fleet.root_file.read_bytes(), BOARD, agent).run()
    assert error is None or not is_good, f"the update did not complete: {error!r}"
    return agent


def slot_scene(path: Path) -> Scene:
    """A device with the bundled model takes a delta into a slot."""
    fleet = make_fleet(path / "fleet", shape=SHAPE)
    device = path / "device"
    device.mkdir()
    recorder = Recorder(device)
    update(device, fleet, recorder)
    new = verify_directory(fleet.new).root
    return Scene(fleet, recorder, frozenset({verify_directory(fleet.old).root, new}), new)


def in_place_fleet(path: Path) -> Fleet:
    """Make a fleet with 1.2.0, and ``path/device`` that runs 1.1.0 from a slot."""
    fleet = make_fleet(path / "fleet", rate=SPARSE, shape=WIDE)
    device = path / "device"
    device.mkdir()
    update(device, fleet, Calls())
    newest = write_model(
        path / "newest",
        flip(flip(random_shards(1, WIDE), SPARSE, 2), SPARSE, 3),
        version="1.2.0",
        counter=3,
    )
    fleet.repo.add_release(newest)
    fleet.repo.add_delta("1.1.0", "1.2.0")
    fleet.repo.publish()
    return fleet


def in_place_scene(path: Path) -> Scene:
    """A device with 1.1.0 in a slot, and no room for a second one, takes 1.2.0."""
    fleet, device = in_place_fleet(path), path / "device"
    recorder = Recorder(device)
    agent = update(device, fleet, recorder, NO_ROOM)
    assert agent.n_quiesced == 1, "the update was not in place"
    new = verify_directory(path / "newest").root
    roots = frozenset({verify_directory(fleet.new).root, new})
    return Scene(fleet, recorder, roots, new, NO_ROOM)


SCENES: dict[str, Callable[[Path], Scene]] = {"in_place": in_place_scene, "slot": slot_scene}


def check(scene: Scene, device: Path) -> None:
    """Restart on one state: whole at once, and complete after the next update."""
    store = Store(device, scene.fleet.old, Disk(Unsynced()))
    store.recover()
    before = store.active()
    assert verify_directory(before).root in scene.roots, f"{before} is neither old nor new"
    versions = _tuf_versions(device)
    update(device, scene.fleet, Unsynced(), scene.room)
    after = _tuf_versions(device)
    for role, version in versions.items():
        assert after.get(role, -1) >= version, f"{role} went back to {after.get(role)}"
    active = Store(device, scene.fleet.old).active()
    assert verify_directory(active).root == scene.final


def _tuf_versions(device: Path) -> dict[str, int]:
    """Return the version of each metadata file that can be read."""
    found = {}
    for path in sorted((device / "ota" / "tuf").glob("*.json")):
        try:
            found[path.name] = int(json.loads(path.read_bytes())["signed"]["version"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # torn: the client must heal it, which the update then shows
    return found


def run(
    scene: Scene, per_cut: int, limit: int, work: Path, *, seed: int = 1, stride: int = 1
) -> tuple[int, int]:
    """Check up to ``limit`` distinct states; returns how many, and the cuts they cover."""
    cuts: set[int] = set()
    n_done = 0
    for cut, image in states(scene.recorder, per_cut, seed, stride):
        with tempfile.TemporaryDirectory(dir=work) as directory:
            device = Path(directory) / "device"
            image.write_to(device, scene.recorder.directories, scene.recorder.links)
            try:
                check(scene, device)
            except Exception as err:
                op = scene.recorder.ops[cut - 1] if cut else "the start"
                raise AssertionError(f"state {n_done}, cut {cut} after {op!r}"[:300]) from err
        cuts.add(cut)
        n_done += 1
        if n_done >= limit:
            break
    return n_done, len(cuts)


def main() -> int:
    """Run the long enumeration and print one JSON line a strategy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", choices=sorted(SCENES), action="append")
    parser.add_argument("--states", type=int, default=N_STATES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None, help="a memory disk")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    args = parser.parse_args()
    rows = []
    for strategy in args.strategy or sorted(SCENES):
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory(dir=args.work) as directory:
            scene = SCENES[strategy](Path(directory))
            n_calls = len(scene.recorder.ops)
            per_cut = -(-6 * args.states // n_calls)  # early cuts have few states
            n_states, n_cuts = run(
                scene, per_cut, 10 * args.states, Path(directory), seed=args.seed
            )
        rows.append(
            {
                "strategy": strategy,
                "calls": n_calls,
                "cuts": n_cuts,
                "distinct_states": n_states,
                "seconds": round(time.monotonic() - started_s, 1),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    results.leave({"seed": args.seed, "strategies": rows}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
