"""Time of an update and of the way back from it, with the broker stopped: python bench/rollback.py.

    prepare --model bundled|large --work DIR     three releases, their deltas, a repository
    run --strategy slot|in_place --work DIR      one device; prints one JSON line
    collect FILE...                              medians of such lines

``bundled`` is the model of the package and two fine-tunes (``bench/pairs``); ``large`` are 113
planes of 2560 x 6912, 2 bits a trit, 500 MB, with independent flips of 1 in 1000.

The device runs the second release and takes the third over MQTT (Mosquitto on this machine) by the
worker process that the agent starts; the verdict of the trial is given at once, and loading an
engine is in none of the times.  Then the broker is stopped, and the device goes back:

    slot       the model before lies beside the active one: one rename
    delta      its slot has become a delta: the worker makes it again, verifies all of it, rename
    in_place   the active slot was written over: the patch is applied backwards

Everything is on the disk that DIR is on, with its syncs; files just written are in the page cache.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from ota.device.room import PATCH_SHARE  # noqa: E402
from ota.device.staging import unpack  # noqa: E402
from ota.device.store import Store  # noqa: E402
from ota.fleet.repository import Repository  # noqa: E402
from ota.fleet.responder import Responder  # noqa: E402
from ota.mqtt import Broker  # noqa: E402
from ota.storage import Disk, read_release, verify_directory  # noqa: E402
from ota.trust import delta_target  # noqa: E402
from tests.brokers import Mosquitto  # noqa: E402
from tests.ota.harness import Worker  # noqa: E402

VERSIONS = ("first", "second", "third")
SHAPE, N_PLANES, P_ZERO, RATE = (2560, 6912), 113, 0.42, 1e-3
NO_ROOM = """
import sys
from ota.device.worker import main
from ota.storage import RESERVE_BYTES, Disk
Disk.free_bytes = lambda self, path: RESERVE_BYTES + {room}
sys.exit(main())
"""


def prepare(args: argparse.Namespace) -> None:
    """Write ``first``, ``second``, ``third`` and ``repo`` below the work directory."""
    args.work.mkdir(parents=True, exist_ok=True)
    (bundled if args.model == "bundled" else large)(args.work)
    repo = Repository.create(args.work / "repo", "bench", None)
    for name in VERSIONS:
        repo.add_release(args.work / name)
    versions = [read_release(args.work / name).version for name in VERSIONS]
    for old, new in itertools.pairwise(versions):
        repo.add_delta(old, new)
    repo.publish()
    (args.work / "model").write_text(args.model)


def bundled(work: Path) -> None:
    from edgeagent.paths import bundled_model

    shutil.copytree(bundled_model(), work / "first")
    for before, name, delta in (("first", "second", "base"), ("second", "third", "intent")):
        (work / name).mkdir()
        unpack(Disk(), ROOT / "bench" / "pairs" / f"{delta}.etd", work / before, work / name)


def large(work: Path) -> None:
    import numpy as np
    from delta import pack_lines, shard
    from delta_speed import seal

    rng = np.random.default_rng(3)
    shares = [(1 - P_ZERO) / 2, P_ZERO, (1 - P_ZERO) / 2]
    start = rng.choice(np.array([0, 1, 2], np.uint8), SHAPE, p=shares)
    for name in VERSIONS:
        (work / name).mkdir()
    for k in range(N_PLANES):
        codes = np.roll(start, 7 * k, axis=1)
        file = f"model-{k + 1:05d}-of-{N_PLANES:05d}.safetensors"
        for name in VERSIONS:
            (work / name / file).write_bytes(shard(pack_lines(codes)))
            flat = codes.reshape(-1)
            at = np.unique(rng.integers(0, flat.size, rng.poisson(RATE * flat.size)))
            flat[at] = np.where(flat[at] == 1, rng.choice(np.array([0, 2], np.uint8), at.size), 1)
    for counter, name in enumerate(VERSIONS):
        seal(work / name, counter)


class Device:
    """A device that has run ``second`` for a while."""

    def __init__(self, work: Path, port: int) -> None:
        self.work, self.state_dir = work, work / "device"
        shutil.rmtree(self.state_dir, ignore_errors=True)
        self.start = {
            "op": "start",
            "state_dir": str(self.state_dir),
            "bundled_dir": str(work / "first"),
            "repo": "bench",
            "node": "bench",
            "root_file": str(work / "repo" / "metadata" / "1.root.json"),
            "hardware": "bench",
            "agent_version": "0.1.0",
            "mqtt": {"host": "127.0.0.1", "port": port},
        }
        store = self.store
        second = read_release(work / "second")
        shutil.copytree(work / "second", store.slot(second.root))
        store.commit(second)

    @property
    def store(self) -> Store:
        return Store(self.state_dir, self.work / "first")

    def worker(self, room: int | None = None, **fields: Any) -> tuple[float, dict[str, Any]]:
        """Run one worker; return its seconds, from the start of the process, and its last word."""
        began_s = time.monotonic()
        with Worker() if room is None else Cramped(room) as worker:
            worker.send(self.start | fields)
            last: dict[str, Any] = {}
            while (said := worker.read()) is not None:
                last = said
                if said["event"] == "quiesce":
                    worker.send({"op": "quiet"})
                elif said["event"] == "staged":
                    worker.send({"op": "trial", "ok": True})
                elif said["event"] in {"committed", "rebuilt", "up_to_date", "failed"}:
                    return time.monotonic() - began_s, last
        raise SystemExit(f"the worker ended with {last}")


class Cramped(Worker):
    """The worker, on a disk that has so much room above the reserve."""

    def __init__(self, room: int) -> None:
        import socket

        self.link, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", NO_ROOM.format(room=room), "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
            )
        self._input = self.link.makefile("rb")


def run(args: argparse.Namespace) -> None:
    work = args.work
    broker = Mosquitto()
    broker.start()
    responder = Responder(Broker("127.0.0.1", broker.port), "bench", work / "repo")
    responder.open()
    device = Device(work, broker.port)
    own = sum(path.stat().st_size for path in (work / "third").iterdir())
    room = None if args.strategy == "slot" else room_for_a_patch(work)
    seconds, said = device.worker(room)
    expect(said, "committed")
    responder.close()
    broker.stop()
    found = {
        "model": (work / "model").read_text(),
        "strategy": args.strategy,
        "model_bytes": own,
        "update_s": seconds,
        "update_written_bytes": said["written_bytes"],
    }
    print(json.dumps(found | STRATEGIES[args.strategy](device)))


def room_for_a_patch(work: Path) -> int:
    """Return room for the patch of an update in place, and not for a slot."""
    roots = [read_release(work / name).root for name in VERSIONS[1:]]
    delta = work / "repo" / "targets" / delta_target(read_release(work / "third").name, *roots)
    return (PATCH_SHARE + 1) * delta.stat().st_size


def back_from_slot(device: Device) -> dict[str, Any]:
    """Go back by the slot; then undo that, turn the slot into a delta, and go back by that."""
    file = device.state_dir / "models" / "store.json"
    committed = file.read_bytes()
    found = {"slot_s": revert(device)}
    file.write_bytes(committed)
    began_s = time.monotonic()
    if not device.store.shrink_previous():
        raise SystemExit("there was no slot to give up")
    found["make_delta_s"] = time.monotonic() - began_s
    (way,) = device.store.ways_dir.iterdir()
    found["delta_bytes"] = way.stat().st_size
    rebuilt_s, said = device.worker(action="rebuild")
    expect(said, "rebuilt")
    found["rebuild_s"] = rebuilt_s
    found["rebuild_written_bytes"] = said["written_bytes"]
    found["delta_s"] = rebuilt_s + revert(device)
    return found


def back_in_place(device: Device) -> dict[str, Any]:
    (patch,) = device.store.patches_dir.iterdir()
    size = sum(path.stat().st_size for path in patch.rglob("*") if path.is_file())
    return {"patch_bytes": size, "in_place_s": revert(device)}


STRATEGIES = {"slot": back_from_slot, "in_place": back_in_place}


def revert(device: Device) -> float:
    """Return the seconds of the way back, and check where it led."""
    store = device.store
    began_s = time.monotonic()
    store.revert("on request")
    seconds = time.monotonic() - began_s
    release = verify_directory(store.active())
    if release.root != read_release(device.work / "second").root:
        raise SystemExit(f"expected the second release, got {release.version}")
    return seconds


def expect(said: dict[str, Any], event: str) -> None:
    if said["event"] != event:
        raise SystemExit(f"expected {event}, got {said}")


def collect(args: argparse.Namespace) -> None:
    """Print the medians of the lines of all files."""
    lines = [json.loads(line) for file in args.files for line in file.read_text().splitlines()]
    rows = []
    for key in sorted({(line["model"], line["strategy"]) for line in lines}):
        same = [line for line in lines if (line["model"], line["strategy"]) == key]
        row: dict[str, Any] = {"runs": len(same)}
        for name, value in same[0].items():
            values = [line[name] for line in same]
            is_text = isinstance(value, str)
            row[name] = value if is_text else round(statistics.median(values), 4)
            if name.endswith("_s"):
                row[f"{name}_all"] = [round(each, 4) for each in values]
        rows.append(row)
    machine = {"machine": platform.machine(), "python": platform.python_version()}
    document = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **machine,
        "rows": rows,
    }
    print(json.dumps(document, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    preparing = steps.add_parser("prepare")
    preparing.add_argument("--model", choices=("bundled", "large"), required=True)
    running = steps.add_parser("run")
    running.add_argument("--strategy", choices=sorted(STRATEGIES), required=True)
    for step in (preparing, running):
        step.add_argument("--work", type=Path, required=True)
    collecting = steps.add_parser("collect")
    collecting.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    {"prepare": prepare, "run": run, "collect": collect}[args.step](args)


if __name__ == "__main__":
    main()
