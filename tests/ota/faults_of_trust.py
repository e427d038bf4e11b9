"""Metadata that is damaged, stale, mixed, endless or signed by the wrong keys; clocks that lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from tuf.api._payload import Root, Snapshot, Targets, Timestamp
from tuf.api.metadata import Metadata

import ota.device.tuf_client as tuf_client
from ota.clock import BUILD_TIME
from ota.device.dir_source import DirSource
from ota.fleet.keys import load_keys
from ota.fleet.repository import Repository
from tests.ota import faults
from tests.ota.faults import Faulty, in_metadata
from tests.ota.lab import COMMITTED, Lab

Make = Callable[[Lab, ExitStack], None]
UNTRUSTED = "untrusted_metadata"
DAMAGES = {
    "endless": faults.endless,
    "no JSON": faults.no_json,
    "cut off": faults.cut,
    "missing": faults.missing,
}
ROLES: dict[str, type] = {
    "root": Root,
    "timestamp": Timestamp,
    "snapshot": Snapshot,
    "targets": Targets,
}
CODES = {"endless": "transport_failed", "missing": "transport_failed"}
MODEL = "edge-test"
LONG_CHAIN = 300
"""Roots: more than a client follows in one refresh (256)."""


def damaged(role: str, how: str) -> Make:
    def make(lab: Lab, _stack: ExitStack) -> None:
        path = lab.fleet.repo.path

        def change(name: str, piece: Any, n: int) -> Any:
            assert n < 200, "asked more than 200 times for metadata: it loops"
            return in_metadata(role, DAMAGES[how])(name, piece, n)

        lab.source = lambda: Faulty(path, change)

    return make


def served(make: Callable[[Lab, Path], None]) -> Make:
    """Let an attacker serve a copy of the repository that ``make`` changes."""

    def apply(lab: Lab, _stack: ExitStack) -> None:
        copy = lab.path / "attacker"
        shutil.copytree(lab.fleet.repo.path, copy)
        make(lab, copy)
        lab.source = lambda: DirSource(copy)

    return apply


def _other_repository(lab: Lab, copy: Path) -> None:
    shutil.rmtree(copy)
    Repository.create(copy, "other", None)


def _mixed(_lab: Lab, copy: Path) -> None:
    shutil.copy(copy / "metadata/1.snapshot.json", copy / "metadata/2.snapshot.json")


def _mixed_targets(_lab: Lab, copy: Path) -> None:
    shutil.copy(copy / "metadata/1.targets.json", copy / "metadata/2.targets.json")


def stale(lab: Lab, _stack: ExitStack) -> None:
    """The device has seen newer metadata, and lost its files of it; the old one is replayed."""
    newer = lab.path / "newer"
    shutil.copytree(lab.fleet.repo.path, newer)
    Repository.open(newer).publish()
    lab.source = lambda: Faulty(newer, faults.payload_only(faults.vanished))
    assert lab.worker().code == "object_missing"
    shutil.rmtree(lab.state / "ota" / "tuf")
    lab.source = lambda: DirSource(lab.fleet.repo.path)

    def repaired() -> None:
        shutil.copytree(newer, lab.repo_path)  # the operator publishes again

    lab.undo.append(repaired)


def newest_file(repo: Repository, role: str) -> Path:
    number = "" if role == "timestamp" else f"{repo._files.newest(role)}."
    return repo._files.directory / f"{number}{role}.json"


def rotated(role: str, forge: Callable[[Path, Metadata[Any]], None]) -> Make:
    """Rotate ``role``; the attacker serves what its old key signs."""

    def make(lab: Lab, _stack: ExitStack) -> None:
        repo = lab.own_repository()
        stolen = load_keys(repo.keys_dir, role)
        repo.rotate(role)
        honest = lab.path / "honest"
        shutil.copytree(lab.repo_path, honest)
        path = newest_file(repo, role)
        metadata: Metadata[Any] = Metadata.from_file(str(path))
        forge(path, metadata)
        metadata.signatures.clear()
        for signer in stolen:
            metadata.sign(signer, append=True)
        path.write_bytes(metadata.to_bytes())

        def repaired() -> None:
            shutil.rmtree(lab.repo_path)
            shutil.copytree(honest, lab.repo_path)

        lab.undo.append(repaired)

    return make


def model_signed_by(other: str | None) -> Make:
    """The model has keys of its own; its role is signed by its old ones, or by another model's."""

    def make(lab: Lab, _stack: ExitStack) -> None:
        repo = lab.own_repository()
        repo.delegate(MODEL)
        if other is not None:
            repo.delegate(other)
        wrong = load_keys(repo.keys_dir, other or MODEL, is_delegated=True)
        repo.rotate(MODEL)
        path = newest_file(repo, MODEL)
        honest = path.read_bytes()
        metadata: Metadata[Any] = Metadata.from_bytes(honest)
        metadata.signatures.clear()
        metadata.sign(wrong[0])
        path.write_bytes(metadata.to_bytes())
        lab.undo.append(partial(path.write_bytes, honest))

    return make


def _as_it_is(_path: Path, _metadata: Metadata[Any]) -> None:
    pass


def expired(role: str) -> Make:
    """The role's own key signed it, long ago."""

    def make(lab: Lab, _stack: ExitStack) -> None:
        repo = lab.own_repository()
        files = repo._files
        metadata = files.load(role, ROLES[role])
        path = newest_file(repo, role)
        honest = path.read_bytes()
        metadata.signed.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
        if role == "root":  # the device has the first one; a newer one has expired
            metadata.signed.version += 1
            path = files.directory / "2.root.json"
        metadata.signatures.clear()
        for signer in load_keys(repo.keys_dir, role):
            metadata.sign(signer, append=True)
        path.write_bytes(metadata.to_bytes())

        def repaired() -> None:
            if role == "root":
                repo.rotate("root")  # a third one, which lives
            else:
                path.write_bytes(honest)

        lab.undo.append(repaired)

    return make


def model_expired(lab: Lab, _stack: ExitStack) -> None:
    """What the model's own keys signed is too old; ``edgeota renew`` of the model repairs it."""
    repo = lab.own_repository()
    repo.delegate(MODEL)
    path = newest_file(repo, MODEL)
    metadata: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
    metadata.signed.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    metadata.sign(load_keys(repo.keys_dir, MODEL, is_delegated=True)[0])
    path.write_bytes(metadata.to_bytes())
    lab.undo.append(partial(repo.renew, MODEL))


def chain(n_roots: int, *, is_signed: bool) -> Make:
    """Another root behind each root: genuine rotations, or rubbish without an end."""

    def make(lab: Lab, _stack: ExitStack) -> None:
        repo = lab.own_repository()
        metadata = repo._files.load("root", Root)
        signers = load_keys(repo.keys_dir, "root") if is_signed else []
        for version in range(2, n_roots + 1):
            metadata.signed.version = version
            metadata.signatures.clear()
            for signer in signers:
                metadata.sign(signer, append=True)
            (repo._files.directory / f"{version}.root.json").write_bytes(metadata.to_bytes())

        def repaired() -> None:
            if not is_signed:
                shutil.rmtree(lab.repo_path)

        lab.undo.append(repaired)

    return make


def too_few_sign_the_root(lab: Lab, _stack: ExitStack) -> None:
    """A new root with another threshold, signed by nobody but its own new key."""
    repo = lab.own_repository()
    mallory = Repository.create(lab.path / "mallory", "tests", None)
    metadata = mallory._files.load("root", Root)
    metadata.signed.version = 2
    metadata.signatures.clear()
    metadata.sign(load_keys(mallory.keys_dir, "root")[0])
    forged = repo._files.directory / "2.root.json"
    forged.write_bytes(metadata.to_bytes())
    lab.undo.append(forged.unlink)


def clock(moment: datetime) -> Make:
    def make(lab: Lab, _stack: ExitStack) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return moment.astimezone(tz)

        patch = mock.patch.object(tuf_client, "datetime", Clock)
        patch.start()
        lab.undo.append(patch.stop)

    return make


def backwards(lab: Lab, stack: ExitStack) -> None:
    """A worker has seen today; the next one is told that it is 1999."""
    lab.source = lambda: Faulty(lab.fleet.repo.path, faults.payload_only(faults.vanished))
    assert lab.worker().code == "object_missing"
    lab.source = None
    clock(datetime(1999, 1, 1, tzinfo=UTC))(lab, stack)


METADATA: dict[str, tuple[Make, str]] = {
    f"{role} {how}": (damaged(role, how), CODES.get(how, UNTRUSTED))
    for role in ("timestamp", "snapshot", "targets")
    for how in DAMAGES
}
TRUST: dict[str, tuple[Make, str]] = {
    "metadata of another repository": (served(_other_repository), UNTRUSTED),
    "old snapshot under a new name": (served(_mixed), UNTRUSTED),
    "old targets under a new name": (served(_mixed_targets), UNTRUSTED),
    "stale metadata after the device lost its own": (stale, UNTRUSTED),
    "timestamp signed by a revoked key": (rotated("timestamp", _as_it_is), UNTRUSTED),
    "snapshot signed by a revoked key": (rotated("snapshot", _as_it_is), UNTRUSTED),
    "targets signed by a revoked key": (rotated("targets", _as_it_is), UNTRUSTED),
    "model's role signed by its revoked key": (model_signed_by(None), UNTRUSTED),
    "model's role signed by another model's key": (model_signed_by("other"), UNTRUSTED),
    "root signed by too few": (too_few_sign_the_root, UNTRUSTED),
    "timestamp expired": (expired("timestamp"), "timestamp_expired"),
    "snapshot expired": (expired("snapshot"), "snapshot_expired"),
    "targets expired": (expired("targets"), "targets_expired"),
    "root expired": (expired("root"), "root_expired"),
    "model's role expired": (model_expired, "role_expired"),
    "300 genuine roots": (chain(LONG_CHAIN, is_signed=True), COMMITTED),
    "300 roots that nobody signed": (chain(LONG_CHAIN, is_signed=False), UNTRUSTED),
}
CLOCKS: dict[str, tuple[Make, str]] = {
    "1970": (clock(datetime(1970, 1, 1, tzinfo=UTC)), COMMITTED),
    "2099": (clock(datetime(2099, 1, 1, tzinfo=UTC)), COMMITTED),
    "a day before the build": (clock(BUILD_TIME - timedelta(days=1)), COMMITTED),
    "backwards between two runs": (backwards, COMMITTED),
    "400 days ahead": (clock(datetime.now(UTC) + timedelta(days=400)), "timestamp_expired"),
}
