"""The devices whose reports are believed: ``REPO/devices.json``, and the judgement of a report."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from ota.errors import ConfigError
from ota.reports import NotAReport, Report, is_signed_by, parse_report, public_key
from ota.storage import Disk

FILE = "devices.json"
MAX_FILE_BYTES = 64 << 20  # a hundred thousand devices
REMEMBERED = 128
"""Reports of a device that are known again; twice the ring of a device."""

DIGEST_CHARS = 16


class Kind(Enum):
    """What a report is."""

    GOOD = "good"
    AGAIN = "again"  # sent a second time
    LATE = "late"  # older than what came before it, and new
    GAP = "gap"  # good, and reports between it and the one before it are missing
    REPEATED = "repeated"  # another report with a known number: a copied disk
    UNKNOWN = "unknown"  # no key is enrolled for this node
    FORGED = "forged"  # not signed by the key that is enrolled
    BROKEN = "broken"  # no report, or another node's

    @property
    def is_believed(self) -> bool:
        """Whether the enrolled device said it, and says it once."""
        return self in {Kind.GOOD, Kind.AGAIN, Kind.LATE, Kind.GAP}


@dataclass(frozen=True, slots=True)
class Judgement:
    """A report and what it is worth; ``why`` is a line where that needs one."""

    kind: Kind
    node: str
    report: Report | None = None
    why: str = ""


@dataclass(slots=True)
class Device:
    """One device: its key in hex, the highest number, and digests of what was seen."""

    public: str
    enrolled_s: int
    last_seq: int = 0
    seen: dict[int, str] = field(default_factory=dict)


class Devices:
    """The enrolled devices of a repository."""

    def __init__(self, repo: Path) -> None:
        """Read the list.

        Raises:
            ConfigError: the file is not what `save` writes.
        """
        self._path = repo / FILE
        self.known: dict[str, Device] = {}
        try:
            with self._path.open("rb") as file:
                fields = json.loads(file.read(MAX_FILE_BYTES))
            for node, entry in fields["devices"].items():
                seen = {int(seq): str(digest) for seq, digest in entry["seen"].items()}
                self.known[node] = Device(
                    str(entry["key"]), int(entry["enrolled_s"]), int(entry["last_seq"]), seen
                )
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise ConfigError(f"{self._path}: expected the list of devices ({err})") from err

    def save(self) -> None:
        """Write the list, whole or not at all."""
        devices = {
            node: {
                "key": device.public,
                "enrolled_s": device.enrolled_s,
                "last_seq": device.last_seq,
                "seen": {str(seq): digest for seq, digest in sorted(device.seen.items())},
            }
            for node, device in sorted(self.known.items())
        }
        Disk().replace(self._path, json.dumps({"devices": devices}, indent=1).encode() + b"\n")

    def enroll(self, node: str, public: str) -> Device:
        """Believe a device from now on.

        Raises:
            ConfigError: the key is none, or the node has another one already.
        """
        try:
            public_key(public)
        except ValueError as err:
            raise ConfigError(f"{node}: {err}; the device has it in ota/device.pub") from err
        known = self.known.get(node)
        if known is not None and known.public != public:
            raise ConfigError(
                f"{node}: has the key {known.public[:16]}... already; `edgeota device-forget` first"
            )
        return self.known.setdefault(node, Device(public, round(time.time())))

    def forget(self, node: str) -> None:
        """Believe a device no longer.

        Raises:
            ConfigError: it is not enrolled.
        """
        if self.known.pop(node, None) is None:
            raise ConfigError(f"{node}: expected an enrolled device")

    def judge(self, node: str, data: bytes, *, trust_new: bool = False) -> Judgement:
        """Judge the bytes that came on the topic of ``node``, and remember what was believed.

        Args:
            node: whose topic it was; a report of another node is not believed.
            data: the envelope.
            trust_new: enrol a node that has no key yet by the key in its report.
        """
        try:
            envelope, report = parse_report(data)
        except NotAReport as err:
            return Judgement(Kind.BROKEN, node, None, str(err))
        if report.node != node:
            return Judgement(Kind.BROKEN, node, None, f"it says that it is {report.node[:63]!r}")
        device = self.known.get(node)
        public = report.public if device is None else device.public
        if not is_signed_by(envelope, public):
            why = f"expected the key {public[:16]}..., it names {report.public[:16]}..."
            return Judgement(Kind.FORGED, node, report, why)
        if device is None:
            if not trust_new:
                why = f"`edgeota device-enroll REPO {node} {public}` if that is its key"
                return Judgement(Kind.UNKNOWN, node, report, why)
            device = self.enroll(node, public)
        return _in_order(node, device, report, hashlib.sha256(envelope.payload).hexdigest())


def _in_order(node: str, device: Device, report: Report, digest: str) -> Judgement:
    digest, last = digest[:DIGEST_CHARS], device.last_seq
    known = device.seen.get(report.seq)
    if known is not None:
        if known == digest:
            return Judgement(Kind.AGAIN, node, report)
        why = f"number {report.seq} was another report before"
        return Judgement(Kind.REPEATED, node, report, why)
    device.seen[report.seq] = digest
    for seq in sorted(device.seen)[:-REMEMBERED]:
        del device.seen[seq]
    if report.seq < last:
        return Judgement(Kind.LATE, node, report)
    device.last_seq = report.seq
    if report.previous > last:
        why = f"reports after {last} up to {report.previous} have not come"
        return Judgement(Kind.GAP, node, report, why)
    return Judgement(Kind.GOOD, node, report)


def as_json(judgement: Judgement) -> dict[str, Any]:
    """Return a judgement as what ``--json`` prints."""
    report = judgement.report
    return {
        "node": judgement.node,
        "kind": judgement.kind.value,
        "why": judgement.why,
        "report": None if report is None else report.body,
    }
