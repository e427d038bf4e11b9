"""Connections cut at random in the middle of pulls: ``python -m tests.ota.cuts --cuts 120``.

The real worker pulls a full image over a real Mosquitto, through a proxy (``bench/slow_link.py``)
that resets, closes, half-opens or black-holes the connection after a random number of bytes, some
of them several times in a row.  Each update ends committed, and what came over the wire beyond the
payload is at most 1 MiB a cut.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.slow_link import Cut, SlowLink
from bench.slow_link import Link as LinkShape
from ota.fleet.responder import Responder
from ota.mqtt import Broker
from tests.brokers import Mosquitto
from tests.ota import harness
from tests.ota.harness import Device, Fleet, make_fleet
from tests.ota.models import Shape

LINK = LinkShape(100e6, 0.02, 0.0)
SHAPE = Shape(6, 32 * 4000)
"""A full image of 4.4 MB: a second of this link."""
AGAIN_BYTES = 1 << 20
"""What a cut may cost."""
MAX_WORKERS = 3
"""How many workers an update may need: two that gave up on a link, and one that ends it."""
MOST_CUTS = 10
"""In one update."""
HOWS = tuple(Cut)
WEIGHTS = (5, 3, 1, 1)  # silent cuts cost their patience each


@dataclass(frozen=True)
class Planned:
    """One cut: after so many bytes towards the device, in this way; the link stays down a while."""

    after_bytes: int
    how: Cut
    down_s: float = 0.0


@dataclass
class Outcome:
    """How an update through cuts went."""

    ends: list[str] = field(default_factory=list)
    """Code or event of each worker."""
    n_cuts: int = 0
    down_bytes: int = 0
    payload_bytes: int = 0
    seconds: float = 0.0
    longest_silence_s: float = 0.0
    """The longest time without a byte towards the device."""

    @property
    def again_bytes(self) -> int:
        """What came more than once, with the headers and metadata of everything."""
        return self.down_bytes - self.payload_bytes


def make_big_fleet(path: Path, shape: Shape = SHAPE) -> Fleet:
    """Two models with so many flips that the delta is a large payload too."""
    return make_fleet(path, 0.5, shape)


def plan_cuts(rng: random.Random, n_bytes: int, n_cuts: int) -> list[Planned]:
    """Draw cuts at random places; every third one is followed by others at once."""
    plans: list[Planned] = []
    at = sorted(rng.randrange(2000, n_bytes) for _ in range(n_cuts))
    for place in at:
        how = rng.choices(HOWS, WEIGHTS)[0]
        plans.append(Planned(place, how, rng.choice((0.0, 0.0, 0.5, 2.0))))
    if rng.random() < 1 / 3 and plans:
        plans[1:] = [Planned(plans[0].after_bytes + 1000 * k, Cut.RESET) for k in range(1, n_cuts)]
    return plans


class Cutter:
    """Watches a link and carries out the plan."""

    def __init__(self, link: SlowLink, plan: Sequence[Planned], outcome: Outcome) -> None:
        self._link, self._plan, self._outcome = link, list(plan), outcome
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        seen, since_s = self._link.n_down, time.monotonic()
        while not self._stop.wait(0.002):
            now_s = time.monotonic()
            if self._link.n_down != seen:
                seen, since_s = self._link.n_down, now_s
            self._outcome.longest_silence_s = max(self._outcome.longest_silence_s, now_s - since_s)
            if self._plan and seen >= self._plan[0].after_bytes:
                planned = self._plan.pop(0)
                self._link.cut(planned.how, planned.down_s)
                self._outcome.n_cuts += 1


def update_through_cuts(
    path: Path, fleet: Fleet, broker: Mosquitto, plan: Sequence[Planned], protocol: str = "auto"
) -> Outcome:
    """Run workers until one commits, at most ``MAX_WORKERS``."""
    outcome = Outcome()
    started_s = time.monotonic()
    with SlowLink((broker.host, broker.port), LINK) as link:
        mqtt = {"host": "127.0.0.1", "port": link.port, "protocol": protocol}
        device = Device(path, fleet, mqtt=mqtt)
        cutter = Cutter(link, plan, outcome)
        try:
            while outcome.ends[-1:] != ["committed"] and len(outcome.ends) < MAX_WORKERS:
                said = device.update()
                end = said[-1]
                outcome.ends.append(end.get("code", end["event"]))
                staged = [each for each in said if each["event"] == "staged"]
                outcome.payload_bytes = staged[0]["delta_bytes"] if staged else 0
        finally:
            cutter.close()
        outcome.down_bytes = link.n_down
    outcome.seconds = time.monotonic() - started_s
    return outcome


def check(outcome: Outcome) -> None:
    """Fail unless the update ended well and cheaply."""
    assert outcome.ends[-1] == "committed", outcome
    assert 0 < outcome.again_bytes <= AGAIN_BYTES * max(1, outcome.n_cuts), outcome


def run(n_cuts: int, seed: int, work: Path) -> list[dict[str, Any]]:
    """Make updates until so many cuts were made; returns a row for each."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    fleet = make_big_fleet(work / "fleet")
    size = next((fleet.repo.path / "targets/models/edge-test/deltas").glob("*.etd")).stat().st_size
    with Mosquitto() as broker:
        responder = Responder(Broker(broker.host, broker.port), "tests", fleet.repo.path)
        responder.open()
        done = 0
        while done < n_cuts:
            protocol = ("5", "3.1.1")[len(rows) % 2]
            plan = plan_cuts(rng, size, rng.randint(1, MOST_CUTS))
            path = work / f"device-{len(rows)}"
            outcome = update_through_cuts(path, fleet, broker, plan, protocol)
            shutil.rmtree(path)
            done += outcome.n_cuts
            rows.append(
                {
                    "protocol": protocol,
                    "cuts": [
                        {"after": each.after_bytes, "how": each.how.value, "down_s": each.down_s}
                        for each in plan[: outcome.n_cuts]
                    ],
                    "ends": outcome.ends,
                    "again_bytes": outcome.again_bytes,
                    "seconds": round(outcome.seconds, 1),
                    "longest_silence_s": round(outcome.longest_silence_s, 1),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
        responder.close()
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    args = parser.parse_args(argv)
    harness.LINE_TIMEOUT_S = 300.0  # several silent cuts in a row: a worker then has no news
    with tempfile.TemporaryDirectory() as work:
        rows = run(args.cuts, args.seed, Path(work))
    n_cuts = sum(len(row["cuts"]) for row in rows)
    result = {
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "seed": args.seed,
        "updates": len(rows),
        "cuts": n_cuts,
        "committed": sum(row["ends"][-1] == "committed" for row in rows),
        "workers": sum(len(row["ends"]) for row in rows),
        "most_again_bytes_a_cut": max(
            row["again_bytes"] // max(1, len(row["cuts"])) for row in rows
        ),
        "rows": rows,
    }
    text = json.dumps(result, indent=1) + "\n"
    if args.out:
        args.out.write_text(text)
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}))
    is_cheap = 0 < result["most_again_bytes_a_cut"] <= AGAIN_BYTES
    return 0 if result["committed"] == len(rows) and is_cheap else 1


if __name__ == "__main__":
    sys.exit(main())
