"""The table of faults: ``python -m tests.ota.fault_table --out FILE`` (``make faults``).

Each fault breaks one thing on a real device of the laboratory (``lab``), and says how the first
worker ends and what is final.  The suite runs those that need no broker, and samples of the others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.ota import faults_of_disks, faults_of_links, faults_of_payloads, faults_of_trust
from tests.ota.harness import Fleet, make_fleet
from tests.ota.lab import COMMITTED, GAVE_UP, WAITS, Lab, Row, budget_of
from tests.ota.models import Shape

GROUPS = {
    "payload": faults_of_payloads.FAULTS,
    "metadata": faults_of_trust.METADATA,
    "trust": faults_of_trust.TRUST,
    "clock": faults_of_trust.CLOCKS,
    "link": faults_of_links.FAULTS,
}
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


@dataclass(frozen=True)
class Fault:
    """One row: its name, how it is made, and what it must lead to."""

    group: str
    name: str
    make: Callable[[Lab, ExitStack], None]
    code: str
    """How the first worker ends."""

    @property
    def final(self) -> str:
        if self.code == COMMITTED:
            return COMMITTED
        return WAITS if self.code == "transport_failed" else GAVE_UP

    @property
    def workers(self) -> int:
        return 1 if self.code == COMMITTED else budget_of(self.code)


def faults() -> Iterator[Fault]:
    """Yield the rows, disks left out: those are one for each call."""
    for group, table in GROUPS.items():
        for name, (make, code) in table.items():
            yield Fault(group, name, make, code)


def run_fault(fault: Fault, path: Path, fleet: Fleet) -> Row:
    """Play one fault and fail unless it ends as the table says."""
    lab = Lab(path, fleet)
    with ExitStack() as stack:
        fault.make(lab, stack)
        row = lab.play()
    got = (row.first, row.final, row.workers)
    assert got == (fault.code, fault.final, fault.workers), f"{fault.name}: {row}"
    assert row.healed == COMMITTED and row.healed_workers == 1, f"{fault.name}: {row}"
    return row


def markdown() -> str:
    """Return the table of ``docs/updates.md``: a line for all faults of a group that end alike."""
    lines = [
        "| faults | the first worker ends | if it lasts | workers |",
        "|---|---|---|---|",
    ]
    alike: dict[tuple[str, str, str, int], list[str]] = {}
    for fault in faults():
        key = (fault.group, fault.code, fault.final, fault.workers)
        alike.setdefault(key, []).append(fault.name)
    for (group, code, final, workers), names in alike.items():
        end = code if code == COMMITTED else f"`{code}`"
        lines.append(f"| {group}: {'; '.join(names)} | {end} | {final} | {workers} |")
    for name, (_, code) in faults_of_disks.ERRORS.items():
        final, workers = faults_of_disks.lasting_end(code)
        where = f"{name} at any one call of an update, or from there on"
        lines.append(f"| disk: {where} | `{code}` | {final} | {workers} |")
    return "\n".join(lines)


def run_disks(path: Path, stride: int = 1) -> list[dict]:
    """Refuse each call of an update in each way; returns a row for each way."""
    rows = []
    for strategy, make in faults_of_disks.STRATEGIES.items():
        fleet = make(path / strategy / "fleet")
        for name in faults_of_disks.ERRORS:
            for stays in (True, False):
                rows.append(
                    faults_of_disks.sweep(path, fleet, strategy, name, stays=stays, stride=stride)
                )
                print(rows[-1], flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run every fault, print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stride", type=int, default=1, help="of the calls of the disk")
    parser.add_argument("--markdown", action="store_true", help="print the table and stop")
    args = parser.parse_args(argv)
    if args.markdown:
        print(markdown())
        return 0
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        fleet = make_fleet(work / "fleet")
        big = make_fleet(work / "big", 0.5, Shape(4, 32 * 2000))
        for number, fault in enumerate(faults()):
            started_s = time.monotonic()
            used = big if fault.group == "link" else fleet
            row = asdict(run_fault(fault, work / f"f{number}", used))
            row["seconds"] = round(time.monotonic() - started_s, 2)
            rows[f"{fault.group}: {fault.name}"] = row
            print(fault.group, fault.name, row, flush=True)
        disks = run_disks(work, args.stride)
    result = {
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "named": len(rows),
        "faults": rows,
        "disk_calls": sum(row["calls"] for row in disks),
        "disks": disks,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("named", "disk_calls")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
