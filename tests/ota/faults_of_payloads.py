"""Payloads that come to harm on their way, or that are not what the device needs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tuf.api._payload import TargetFile, Targets

from ota.device.source import Piece, Source
from ota.errors import Cancelled, TransportError
from ota.storage import read_release
from ota.trust import delta_target, full_target
from tests.ota import faults
from tests.ota.faults import Faulty, Shuffled, payload_only
from tests.ota.lab import COMMITTED, Lab

Make = Callable[[Lab, ExitStack], None]


def changed(change: Callable[[Piece, int], Piece], most_answers: int = 200) -> Make:
    """Change every piece of a payload; no worker asks more often than a bound."""

    def make(lab: Lab, _stack: ExitStack) -> None:
        path = lab.fleet.repo.path

        def source() -> Source:
            return Bounded(path, payload_only(change), most_answers)

        lab.source = source

    return make


class Bounded(Faulty):
    """Counts what one worker asks for, and fails above a bound."""

    def __init__(self, path: Any, change: Any, most: int) -> None:
        super().__init__(path, change)
        self._most = most

    def fetch(self, name: str, offset: int, length: int) -> Piece:
        assert self.n_answers < self._most, f"asked more than {self._most} times: it loops"
        return super().fetch(name, offset, length)


def first_is_wrong() -> Make:
    """The first answer of each offset is another one, in the whole life of the device."""
    seen: set[int] = set()

    def change(piece: Piece, n: int) -> Piece:
        if piece.offset in seen:
            return piece
        seen.add(piece.offset)
        return faults.flipped(piece, n)

    return lambda lab, stack: changed(change)(lab, stack)


def broken_every(every: int) -> Make:
    def make(lab: Lab, _stack: ExitStack) -> None:
        count = iter(range(10**6))

        def change(_name: str, piece: Piece, _n: int) -> Piece:
            if next(count) % every == every - 1:
                raise TransportError("the connection was reset")
            return piece

        lab.source = lambda: Faulty(lab.fleet.repo.path, change)

    return make


def shuffled(lab: Lab, _stack: ExitStack) -> None:
    lab.source = lambda: Shuffled(lab.fleet.repo.path)


def gone(lab: Lab, _stack: ExitStack) -> None:
    lab.source = lambda: Faulty(lab.fleet.repo.path, faults.gone)


def edited(edit: Callable[[Lab, Any, Targets], None]) -> Make:
    """Let the operator sign something that is wrong."""

    def make(lab: Lab, _stack: ExitStack) -> None:
        repo = lab.own_repository()
        files = repo._files
        honest, metadata = files.load("targets", Targets), files.load("targets", Targets)
        edit(lab, repo, metadata.signed)
        files.write("targets", metadata, files.next_version("targets"))
        repo.publish()

        def repaired() -> None:
            files.write("targets", honest, files.next_version("targets"))
            repo.publish()

        lab.undo.append(repaired)

    return make


def _roots(lab: Lab) -> tuple[str, str]:
    return read_release(lab.fleet.old).root, read_release(lab.fleet.new).root


def _no_full_image(_lab: Lab, _repo: Any, targets: Targets) -> None:
    del targets.targets[full_target("edge-test", "1.1.0")]


def _wrong_base(lab: Lab, repo: Any, targets: Targets) -> None:
    """The full image of the old model stands where the delta should be."""
    name = delta_target("edge-test", *_roots(lab))
    path = repo.path / "targets"
    custom = targets.targets[name].custom
    shutil.copy(path / full_target("edge-test", "1.0.0"), path / name)
    targets.targets[name] = _signed_anew(path / name, name, custom)


def _no_container(lab: Lab, repo: Any, targets: Targets) -> None:
    name = delta_target("edge-test", *_roots(lab))
    path = repo.path / "targets" / name
    path.write_bytes(b"no container" * 100)
    targets.targets[name] = _signed_anew(path, name, targets.targets[name].custom)


def _delta_for_others_only(lab: Lab, repo: Any, targets: Targets) -> None:
    """Its signed fields say that it starts from a model that nobody has here."""
    name = delta_target("edge-test", *_roots(lab))
    targets.targets[name].custom["base"] = "5" * 64
    _no_full_image(lab, repo, targets)


def _signed_anew(path: Any, name: str, custom: Any) -> TargetFile:
    info = TargetFile.from_file(name, str(path))
    chunks = bytes.fromhex(info.hashes["sha256"])
    info.unrecognized_fields["custom"] = custom | {
        "chunks_sha256": hashlib.sha256(chunks).hexdigest()
    }
    return info


def cancelled(lab: Lab, _stack: ExitStack) -> None:
    def change(_piece: Piece, _n: int) -> Piece:
        raise Cancelled("asked to stop while fetching; what came is kept")

    lab.source = lambda: Faulty(lab.fleet.repo.path, payload_only(change))


def rotten_on_the_disk(lab: Lab, _stack: ExitStack) -> None:
    """What was fetched before a power cut rots before the next worker reads it."""
    lab.source = lambda: Faulty(lab.fleet.repo.path, payload_only(faults.vanished))
    assert lab.worker().code == "object_missing"
    (lab.state / "ota" / "payload.part").write_bytes(b"\xee" * 100_000)
    lab.source = None


FAULTS: dict[str, tuple[Make, str]] = {
    "chunks lost for good": (changed(faults.vanished), "object_missing"),
    "chunks truncated": (changed(faults.truncated), "no_payload"),
    "chunks empty": (changed(faults.empty), "no_payload"),
    "chunks too long": (changed(faults.longer), "no_payload"),
    "chunks of other bytes": (changed(faults.flipped), "no_payload"),
    "chunks for another place": (changed(faults.elsewhere), "no_payload"),
    "first answer of each chunk wrong": (first_is_wrong(), COMMITTED),
    "chunks reordered and repeated": (shuffled, COMMITTED),
    "reset at every second answer": (broken_every(2), "transport_failed"),
    "reset at every seventh answer": (broken_every(7), COMMITTED),
    "nobody answers": (gone, "transport_failed"),
    "bytes on the disk rotten": (rotten_on_the_disk, COMMITTED),
    "signed delta without a full image, for this base": (edited(_no_full_image), COMMITTED),
    "signed delta that is the image of the base": (edited(_wrong_base), COMMITTED),
    "signed delta that is no container": (edited(_no_container), COMMITTED),
    "only a delta for another base": (edited(_delta_for_others_only), "no_payload"),
    "cancelled in every run": (cancelled, "cancelled"),
}
