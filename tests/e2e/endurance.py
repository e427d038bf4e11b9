"""Long runs of updates with real processes: ``python -m tests.e2e.endurance swap | kills``.

``swap``: queries without a pause during 20 updates; none is lost, and every answer is, byte for
byte, what the model that it names gives.
``kills``: SIGKILL of the daemon (and with it of its engine and updater), or of the updater alone,
at random moments of updates; what is on the disk after each is one of the two models, whole.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeagent.errors import EdgeAgentError
from ota.device.store import Store
from ota.storage import verify_directory
from tests import results
from tests.brokers import Mosquitto
from tests.e2e.house import NODE, House, children, edgeota
from tests.tiny import make_model

QUERY = {"prompt": "hello", "max_tokens": 8, "temperature": 1.0, "seed": 7}
BIG = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "head_dim": 64}
ASKERS = 4
START_TIMEOUT_S = 60
UPDATE_TIMEOUT_S = 300  # of one update on a machine that does other things too


class Operator:
    """A repository whose releases are made one after the other."""

    def __init__(self, path: Path, port: int, **model: int) -> None:
        self.path, self.model = path, model
        self.repo, self.mqtt = path / "repo", ["--mqtt", f"127.0.0.1:{port}"]
        made = edgeota("init", self.repo, "--name", "house")["root_file"]
        self.root_file = shutil.copy(made, path / "root.json")
        self.n = 0
        self.release()

    def release(self) -> str:
        """Publish the next version, with a delta; returns its number."""
        self.n += 1
        version = f"{self.n}.0.0"
        model = make_model(
            self.path / f"v{self.n}", seed=self.n, version=version, counter=self.n, **self.model
        )
        edgeota("release", self.repo, model)
        if self.n > 1:
            edgeota("delta", self.repo, self.path / f"v{self.n - 1}", model)
        edgeota("publish", self.repo, *self.mqtt)
        return version


@contextmanager
def home(**model: int) -> Iterator[tuple[House, Operator]]:
    """A broker, a repository with its server, and a device."""
    with tempfile.TemporaryDirectory() as directory, Mosquitto() as broker:
        path = Path(directory)
        operator = Operator(path, broker.port, **model)
        with House(path, broker, path / "v1", root_file=operator.root_file) as house:
            house.serve(operator.repo)
            yield house, operator


def swap(n_updates: int, n_queries: int) -> dict[str, Any]:
    """Ask during updates; returns what came."""
    answers: list[dict[str, Any]] = []
    lost: list[str] = []
    stop = threading.Event()

    with home() as (house, operator):
        house.start_daemon()

        def ask() -> None:
            with house.client() as client:
                while not stop.is_set():
                    try:
                        answers.append(client.ask(NODE, QUERY))
                    except (EdgeAgentError, OSError) as err:
                        lost.append(repr(err))

        askers = [threading.Thread(target=ask) for _ in range(ASKERS)]
        for asker in askers:
            asker.start()
        try:
            for _ in range(n_updates):
                house.wait_for(
                    house.topics.model_state,
                    UPDATE_TIMEOUT_S,
                    installed_version=operator.release(),
                    in_progress=False,
                )
            while len(answers) < n_queries and not lost:
                time.sleep(0.1)
        finally:
            stop.set()
            for asker in askers:
                asker.join()
    texts: dict[str, set[str]] = {}
    for answer in answers:
        if answer["status"] == "ok":
            text = json.dumps(answer.get("text"))
            texts.setdefault(answer["model"]["version"], set()).add(text)
    return {
        "updates": n_updates,
        "queries": len(answers),
        "lost": len(lost) + sum(answer["status"] != "ok" for answer in answers),
        "why": lost[:3] + [json.dumps(a)[:200] for a in answers if a["status"] != "ok"][:3],
        "versions_that_answered": len(texts),
        "different_texts": len({text for each in texts.values() for text in each}),
        "half_switched": sum(len(each) - 1 for each in texts.values()),
    }


def kills(n_kills: int, seed: int) -> dict[str, Any]:
    """Kill at random moments of updates; returns what was found."""
    rng = random.Random(seed)
    hit: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    with home(**BIG) as (house, operator):
        daemon = house.start_daemon()
        roots = {verify_directory(operator.path / "v1").root: "1.0.0"}
        store = Store(house.state_dir, operator.path / "v1")
        before = "1.0.0"
        for _ in range(n_kills):
            if _is_decided(store, operator):
                before = store.installed_version()
                version = operator.release()
                roots[verify_directory(operator.path / f"v{operator.n}").root] = version
            end_s = (
                time.monotonic() + START_TIMEOUT_S
            )  # a kill before it looks for updates hits none
            while _updater(daemon.pid) is None and time.monotonic() < end_s:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 2.5))
            worker = _updater(daemon.pid)
            if worker is not None and rng.random() < 0.3:
                os.kill(worker, signal.SIGKILL)
                hit["updater alone"] += 1
            else:
                phase = json.loads(_text(house.state_dir / "ota" / "update.json") or "{}")
                hit[f"daemon, {phase.get('state')}, updater {worker is not None}"] += 1
                house.kill_daemon(daemon)
                daemon = house.start("edgeagent.cli", "run", "--config", house.config)
            version = roots[verify_directory(store.active()).root]
            assert version in {f"{operator.n}.0.0", before}, version
            seen["new" if version == f"{operator.n}.0.0" else "old"] += 1
        given_up = len(store.state().quarantine)
        house.kill_daemon(daemon)
        house.start_daemon()
        if _is_decided(store, operator):
            operator.release()
        last = f"{operator.n}.0.0"
        house.wait_for(house.topics.model_state, UPDATE_TIMEOUT_S, installed_version=last)
        with house.client() as client:
            assert client.ask(NODE, QUERY)["model"]["version"] == last
    return {
        "kills": n_kills,
        "releases": operator.n - 1,
        "given_up_after_three_killed_trials": given_up,
        "whole_after_each": dict(seen),
        "where": dict(sorted(hit.items())),
    }


def _is_decided(store: Store, operator: Operator) -> bool:
    """Say whether the newest release is installed, or was given up: three killed trials are so."""
    newest = verify_directory(operator.path / f"v{operator.n}").root
    return newest in {store.state().active, verify_directory(store.active()).root} or (
        store.is_quarantined(newest)
    )


def _updater(daemon: int) -> int | None:
    for pid in children(daemon):
        if b"ota.device.worker" in (_text(Path(f"/proc/{pid}/cmdline")) or "").encode():
            return pid
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def main() -> int:
    """Run one of them and print one JSON line; the exit code says whether it is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["swap", "kills"])
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    args = parser.parse_args()
    started_s = time.monotonic()
    if args.what == "swap":
        found = swap(args.updates, args.queries)
        is_good = found["lost"] == found["half_switched"] == 0
    else:
        found, is_good = kills(args.kills, args.seed), True
    found |= {"seconds": round(time.monotonic() - started_s, 1)}
    print(json.dumps(found), flush=True)
    results.leave({"what": args.what, **found}, args.out)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
