"""One device in a laboratory of faults: runs workers until they end for good, and counts them.

A worker that ends with ``retry_after_s`` is followed by another, as the agent would do, without the
wait.  So a fault that lasts shows whether the update gives up, and after how many workers.  Links
may be away for days, so failures of the network are retried for ever by design, an hour apart:
there the count stops at ``NETWORK_WORKERS`` and the final state is ``waits``.  The same where the
disk does not even keep a count of failures: each wait is then the longest of its class.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ota.conditions import Samples
from ota.device.dir_source import DirSource
from ota.device.source import Source
from ota.device.store import Store
from ota.device.updater import Board, Updater, Verdict
from ota.device.worker import _after_s
from ota.errors import UpdateError
from ota.fleet.repository import Repository
from ota.retry import RULES, RetryClass, class_of
from ota.storage import Calls, Disk, verify_directory
from tests.ota.fakes import ScriptedAgent
from tests.ota.harness import Fleet

COMMITTED = "committed"
WAITS = "waits"
GAVE_UP = "gave up"
MAX_WORKERS = 40
"""More than any budget of ``ota.retry``: a fault that needs more loops."""
NETWORK_WORKERS = 3


@dataclass(frozen=True)
class End:
    """How one worker ended."""

    code: str
    """Of the failure; for a good end its event."""
    retry_after_s: float | None = None

    @property
    def is_good(self) -> bool:
        return self.code in (COMMITTED, "up_to_date", "rolled_back")


@dataclass
class Row:
    """What a fault led to."""

    first: str
    final: str
    workers: int
    healed: str = ""
    healed_workers: int = 0


@dataclass
class Lab:
    """A device with the fleet's old model, its own copy of the repository, and what is broken."""

    path: Path
    fleet: Fleet
    source: Callable[[], Source] | None = None
    calls: Callable[[], Calls] = Calls
    disk: Callable[[Calls], Disk] = Disk
    samples: Samples = field(default_factory=Samples)
    final: str = "1.1.0"
    """The version that the update leads to."""
    undo: list[Callable[[], Any]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.path / "device"

    @property
    def repo_path(self) -> Path:
        return self.path / "repo"

    def own_repository(self) -> Repository:
        """Return a copy of the repository, which may be changed; the device uses it from now on."""
        if not self.repo_path.exists():
            shutil.copytree(self.fleet.repo.path, self.repo_path)
        self.source = self._default
        return Repository.open(self.repo_path)

    def _default(self) -> Source:
        return DirSource(self.repo_path if self.repo_path.exists() else self.fleet.repo.path)

    def worker(self) -> End:
        """Run one worker; whatever it does, the model that runs is whole."""
        agent = ScriptedAgent(*[Verdict(True)] * 3)
        agent.now = self.samples
        try:
            disk = self.disk(self.calls())
            with (self.source or self._default)() as source:
                Updater(
                    self.state,
                    Store(self.state, self.fleet.old, disk),
                    source,
                    disk,
                    self.fleet.root_file.read_bytes(),
                    Board("test-board", "0.1.0"),
                    agent,
                ).run()
        except UpdateError as err:  # at its very start: the worker reports it
            end = End(err.code, _after_s(err))
        else:
            said = agent.said[-1]
            end = End(said.get("code", said["event"]), said.get("retry_after_s"))
        Store(self.state, self.fleet.old).recover()
        self.running()
        return end

    def running(self) -> str:
        """Return the version that runs; it is whole."""
        return verify_directory(Store(self.state, self.fleet.old).active()).version

    def until_final(self) -> tuple[list[End], str]:
        """Run workers until one ends well or says that it will not come back."""
        ends: list[End] = []
        while len(ends) < MAX_WORKERS:
            ends.append(self.worker())
            if ends[-1].is_good:
                assert self.running() == self.final, f"it ended well on {self.running()}"
                return ends, COMMITTED
            if ends[-1].retry_after_s is None:
                return ends, GAVE_UP
            if len(ends) >= NETWORK_WORKERS and (
                _is_patient(ends[-1]) or all(map(_is_uncounted, ends))
            ):
                return ends, WAITS
        raise AssertionError(f"it loops: {[end.code for end in ends]}")

    def heal(self) -> None:
        """Take the fault away; the repository is what it was, or was repaired by its operator."""
        self.source, self.calls, self.samples = None, Calls, Samples()
        for each in reversed(self.undo):
            each()
        self.undo.clear()

    def play(self, *, is_healed: bool = True) -> Row:
        """Run with the fault until it ends for good, then without it."""
        ends, final = self.until_final()
        row = Row(ends[0].code, final, len(ends))
        self.heal()
        if is_healed:
            ends, row.healed = self.until_final()
            row.healed_workers = len(ends)
        return row


def _is_patient(end: End) -> bool:
    return RULES[class_of(end.code)].budget is None


def _is_uncounted(end: End) -> bool:
    """Whether the disk could not even keep a count: then each wait is the longest."""
    longest_s = RULES[class_of(end.code)].longest_s
    return end.retry_after_s is not None and end.retry_after_s >= longest_s / 2


def budget_of(code: str) -> int:
    """Return after how many workers a lasting failure gives up."""
    rule = RULES[class_of(code)]
    if rule.budget is None:
        return NETWORK_WORKERS
    return 1 if class_of(code) is RetryClass.NEVER else rule.budget + 1
