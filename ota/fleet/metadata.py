"""The signed files of a repository: read, written, and who signs which model.

``targets`` lists the releases of every model, or hands a model to a role of its own (TUF
delegations): role ``NAME`` may then sign ``models/NAME/...`` and nothing else, and ``targets`` is
needed only when keys change.  A role that was handed a model stays in the snapshot for ever, even
after it lost the model: a client refuses a snapshot that has forgotten a role.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from tuf.api._payload import (
    DelegatedRole,
    Delegations,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata

from ota.errors import ConfigError
from ota.fleet.keys import ROLES, load_keys
from ota.storage import Disk
from ota.trust import model_prefix

ROOT_LIFE = timedelta(days=1825)  # renewed by every rotation; five years is the life of a board
TARGETS_LIFE = timedelta(days=365)  # signed again with every release and delta
SNAPSHOT_LIFE = timedelta(days=90)
TIMESTAMP_LIFE = timedelta(days=30)  # how long a broker could hold a device back unnoticed
LIFE_DAYS = "life_days"
"""A field of ours in a delegated role: how long what it signs is valid."""

T = TypeVar("T", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, slots=True)
class MetadataFiles:
    """``metadata/`` of a repository and the keys that sign it."""

    directory: Path
    keys_dir: Path
    disk: Disk

    def load(self, role: str, kind: type[T], version: int | None = None) -> Metadata[T]:
        """Read a role's metadata; without ``version``, the newest.

        Raises:
            ConfigError: it is not there, or is something else.
        """
        metadata = self.read(role, version)
        if not isinstance(metadata.signed, kind):
            raise ConfigError(f"{self.directory}: expected {role} metadata as {role}.json")
        return metadata

    def read(self, role: str, version: int | None = None) -> Metadata[Any]:
        """Read the metadata of any role."""
        name = f"{role}.json"
        if role != "timestamp":
            name = f"{version or self.newest(role)}.{name}"
        try:
            return Metadata.from_file(str(self.directory / name))
        except (RepositoryError, OSError) as err:
            raise ConfigError(f"{self.directory / name}: {err}") from err

    def newest(self, role: str) -> int:
        """Return the highest version of a role here, published or not."""
        name = re.compile(rf"(\d+)\.{re.escape(role)}\.json")
        found = [name.fullmatch(path.name) for path in self.directory.iterdir()]
        versions = [int(match[1]) for match in found if match]
        if not versions:
            raise ConfigError(f"{self.directory}: expected {role} metadata, found none")
        return max(versions)

    def published(self) -> dict[str, int]:
        """Return the version of ``targets`` and of each delegated role that devices see."""
        snapshot = self.load("snapshot", Snapshot).signed
        return {name.removesuffix(".json"): file.version for name, file in snapshot.meta.items()}

    def next_version(self, role: str) -> int:
        """Return the version that ``publish`` will show; the same until it has."""
        return self.published().get(role, 0) + 1

    def write(
        self, role: str, metadata: Metadata[Any], version: int, entry: DelegatedRole | None = None
    ) -> None:
        """Sign and keep one version of a role.

        Args:
            role: whose keys sign
            metadata: its signatures, version and, for targets, expiry are set here
            version: of the file
            entry: what ``targets`` says about a delegated role, if that is not written yet

        Raises:
            ConfigError: too few of the role's keys are here.
        """
        entry = entry or self.delegated().get(role)
        if role == "targets":
            metadata.signed.expires = until(TARGETS_LIFE)
        elif entry is not None:
            metadata.signed.expires = until(life_of(entry))
        metadata.signed.version = version
        metadata.signatures.clear()
        signers = load_keys(self.keys_dir, role, is_delegated=entry is not None)
        if entry is not None:
            signers = [each for each in signers if each.public_key.keyid in entry.keyids]
            if len(signers) < entry.threshold:
                raise ConfigError(
                    f"{role}: expected {entry.threshold} of its {len(entry.keyids)} keys in "
                    f"{self.keys_dir}, got {len(signers)}; put them there for this one command"
                )
        for signer in signers:
            metadata.sign(signer, append=True)
        name = f"{role}.json" if role == "timestamp" else f"{version}.{role}.json"
        self.disk.replace(self.directory / name, metadata.to_bytes())

    def sign_snapshot(self, version: int, targets_version: int | None = None) -> int:
        """Publish the newest of everything; ``targets_version`` is given for the first one.

        Raises:
            ConfigError: the keys are not here, or what a model's role signed is not signed by it.
        """
        if targets_version is None:
            targets = self.load("targets", Targets).signed
            versions = self.published() | {"targets": targets.version}
            for role in self.delegated():
                versions[role] = self.verified(role, targets).signed.version
        else:
            versions = {"targets": targets_version}
        meta = {f"{role}.json": MetaFile(number) for role, number in versions.items()}
        snapshot = Snapshot(version=version, expires=until(SNAPSHOT_LIFE), meta=meta)
        self.write("snapshot", Metadata(snapshot), version)
        timestamp = Timestamp(
            version=version,
            expires=until(TIMESTAMP_LIFE),
            snapshot_meta=MetaFile(version),
            # Devices without a clock take it as a moment that has passed.
            unrecognized_fields={"issued": int(datetime.now(UTC).timestamp())},
        )
        self.write("timestamp", Metadata(timestamp), version)
        return version

    # Who signs what.

    def delegated(self, targets_version: int | None = None) -> dict[str, DelegatedRole]:
        """Return the roles that models were handed to; empty before there are targets."""
        try:
            targets = self.load("targets", Targets, targets_version).signed
        except ConfigError:
            return {}  # the repository is being made
        delegations = targets.delegations
        return {} if delegations is None else dict(delegations.roles or {})

    def owner(self, model: str) -> str:
        """Return the role that signs what is released of ``model``."""
        return model if model in self.delegated() else "targets"

    def everything(self, versions: dict[str, int] | None = None) -> Targets:
        """Return all targets, whoever signs them; the newest, or those of ``versions``."""
        numbers = versions or {}
        top = self.load("targets", Targets, numbers.get("targets")).signed
        merged = Targets(expires=top.expires)
        merged.targets.update(top.targets)
        for role in self.delegated(numbers.get("targets")):
            part = self.load(role, Targets, numbers.get(role)).signed
            merged.targets.update(within(part, role))
        return merged

    def verified(self, model: str, targets: Targets) -> Metadata[Targets]:
        """Return what a model's role signed last, if a threshold of its keys did.

        Raises:
            ConfigError: it is not there, or others signed it.
        """
        part = self.load(model, Targets)
        try:
            targets.verify_delegate(model, part.signed_bytes, part.signatures)
        except RepositoryError as err:
            raise ConfigError(
                f"{model}: {err}; what is in {self.directory} was not signed by its keys; "
                "`edgeota undelegate --drop` forgets it"
            ) from err
        return part

    def is_published(self) -> bool:
        """Say whether devices see the newest of everything."""
        seen = self.published()
        return all(self.newest(r) == seen.get(r) for r in ("targets", *self.delegated()))

    def all_roles(self) -> tuple[str, ...]:
        """Return the top-level roles, then the delegated ones."""
        return (*ROLES, *sorted(self.delegated()))


def within(targets: Targets, model: str) -> dict[str, Any]:
    """Return the targets of one model."""
    prefix = model_prefix(model)
    return {name: info for name, info in targets.targets.items() if name.startswith(prefix)}


def delegations_of(targets: Targets) -> Delegations:
    """Return the delegations of ``targets``, made if there are none."""
    if targets.delegations is None:
        targets.delegations = Delegations(keys={}, roles={})
    return targets.delegations


def life_of(entry: DelegatedRole) -> timedelta:
    """Return how long what a delegated role signs is valid."""
    days = entry.unrecognized_fields.get(LIFE_DAYS)
    return timedelta(days=days) if type(days) is int else TARGETS_LIFE


def until(life: timedelta) -> datetime:
    """Return the end of a life that begins now."""
    return datetime.now(UTC).replace(microsecond=0) + life
