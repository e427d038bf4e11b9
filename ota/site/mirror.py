"""A copy of a repository for one site: fetched once, verified, and served there to every device.

The origin sends each payload once a site instead of once a device.  A mirror signs nothing and has
no keys; devices verify what it serves as they verify the origin's::

    MIRROR/
      repository.json  metadata/  targets/    as in a repository, so `edgeota serve` serves it
      mirror/                                 what is trusted so far, and a payload on its way

Order is safety: payloads, their chunk lists, roots, roles, snapshot, and the timestamp last.  Cut
off anywhere, what is served is the old state or the new one, whole, and the next run goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ota.device.download import HASH_BYTES, Download
from ota.device.source import Source
from ota.device.tuf_client import Target, TufClient
from ota.errors import ConfigError, PayloadMismatch, UntrustedMetadata
from ota.release import is_name
from ota.storage import Disk, Storage
from ota.trust import channel_target, chunks_object, parse_channel, parse_payload
from ota.wire import encode_notice, is_object, is_repo, ranges

MAX_SMALL_BYTES = 1 << 20
"""Of a target that is no payload: a channel, or a release.json."""
PAYLOAD_SUFFIX = ".etd"
TOP_LEVEL = frozenset({"root", "timestamp", "snapshot", "targets"})


@dataclass(slots=True)
class Mirrored:
    """What one run brought."""

    timestamp: int
    models: dict[str, str] = field(default_factory=dict)
    """The current version of each model."""
    n_fetched: int = 0
    fetched_bytes: int = 0
    """Of payloads and other targets."""

    @property
    def notice(self) -> bytes:
        """What to retain at the site's broker."""
        return encode_notice(self.timestamp, self.models)


class Mirror:
    """The mirror at ``path`` of the repository ``name``.

    Args:
        source: the origin
        path: where the copy is
        name: of the repository, as the origin's
        root: the origin's first root metadata, as devices have it
        storage: the disk

    Raises:
        ConfigError: there is a repository with keys at ``path``, or the name is no topic level.
    """

    def __init__(
        self, source: Source, path: Path, name: str, root: bytes, storage: Storage | None = None
    ) -> None:
        if not is_repo(name):
            raise ConfigError(f"repository name: expected letters, digits, - and _, got {name!r}")
        self._source = source
        self._path = path
        self._name = name
        self._storage = storage or Disk()
        self._own = path / "mirror"
        if (path / "repository.json").exists() and not self._own.is_dir():
            raise ConfigError(f"{path}: expected a mirror, got a repository; choose another place")
        self._client = TufClient(source, self._storage, self._own / "tuf", root)

    def sync(self) -> Mirrored:
        """Bring the copy up to date.

        Raises:
            UntrustedMetadata, PayloadMismatch: the origin sends what was not signed.
            TransportError: it cannot be reached.
            StorageError: the copy cannot be written.
        """
        self._storage.make_directory(self._own)
        description = json.dumps({"format": 1, "name": self._name}).encode()
        self._replace(self._path / "repository.json", description)
        self._client.refresh()
        done = Mirrored(self._version("timestamp"))
        roles = self._roles()
        for name in self._names(roles):
            target = self._client.target(name)
            if target is None:  # another role answers for the path, and has no such target
                continue
            if name.endswith(PAYLOAD_SUFFIX):
                self._fetch_payload(target, done)
            else:
                self._fetch_small(target, done)
        for model in sorted({name.split("/")[1] for name in self._names(roles)}):
            current = self._client.target(channel_target(model))
            if current is not None:
                done.models[model] = parse_channel(current.custom, model)
        self._show(roles)
        return done

    # -- what is signed -------------------------------------------------------------------------

    def _signed(self, role: str) -> dict[str, Any]:
        """Return what is trusted of a role; it was verified before it was kept."""
        signed = json.loads((self._own / "tuf" / f"{role}.json").read_bytes())["signed"]
        return dict(signed)

    def _version(self, role: str) -> int:
        return int(self._signed(role)["version"])

    def _roles(self) -> list[str]:
        """Return ``targets`` and the models' roles; each is fetched and verified."""
        delegations = self._signed("targets").get("delegations") or {}
        models = [str(role["name"]) for role in delegations.get("roles", []) if role]
        found = ["targets"]
        for model in models:
            if not is_name(model) or model in TOP_LEVEL:
                raise UntrustedMetadata(f"targets: expected roles of models, got {model!r}")
            self._client.target(channel_target(model))
            if (self._own / "tuf" / f"{model}.json").exists():
                found.append(model)
        return found

    def _names(self, roles: list[str]) -> Iterator[str]:
        """Yield the targets of our kind that ``roles`` list; others are nobody's business here."""
        for role in roles:
            for name in sorted(self._signed(role).get("targets", {})):
                if name.startswith("models/") and is_object(f"targets/{name}"):
                    yield name

    # -- what is fetched ------------------------------------------------------------------------

    def _fetch_payload(self, target: Target, done: Mirrored) -> None:
        """Fetch a payload that is not there whole; a run that was cut off goes on."""
        payload = parse_payload(target.custom, target.name, target.length, target.sha256)
        path = self._path / "targets" / target.name
        if not _has_length(path, target.length):
            part = self._own / "payload.part"
            download = Download(self._source, self._storage, payload, part)
            download.run()
            self._storage.make_directory(path.parent)
            self._storage.rename(part, path)
            done.n_fetched += 1
            done.fetched_bytes += download.fetched_bytes
        n_hashes = len(ranges(payload.length, payload.chunk_bytes))
        if n_hashes > 1:
            name = chunks_object(target.name)
            self._fetch_whole(name, n_hashes * HASH_BYTES, payload.chunks_sha256, done)

    def _fetch_small(self, target: Target, done: Mirrored) -> None:
        if target.length > MAX_SMALL_BYTES:
            raise UntrustedMetadata(
                f"{target.name}: expected at most {MAX_SMALL_BYTES} bytes, got {target.length}"
            )
        self._fetch_whole(target.name, target.length, target.sha256, done)

    def _fetch_whole(self, name: str, length: int, sha256: str, done: Mirrored) -> None:
        path = self._path / "targets" / name
        if _has_length(path, length) and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return
        data = b""
        for block in self._source.stream(f"targets/{name}"):
            data += block
            if len(data) > length:
                break
        if hashlib.sha256(data).hexdigest() != sha256:
            raise PayloadMismatch(f"{name}: expected sha256 {sha256}; the origin sends other bytes")
        self._replace(path, data)
        done.n_fetched += 1
        done.fetched_bytes += len(data)

    # -- what is served -------------------------------------------------------------------------

    def _show(self, roles: list[str]) -> None:
        """Put the metadata where it is served, the timestamp last."""
        served, trusted = self._path / "metadata", self._own / "tuf"
        for root in sorted((trusted / "root_history").glob("*.root.json")):
            self._replace(served / root.name, root.read_bytes())
        for role in (*reversed(roles), "snapshot"):
            name = f"{self._version(role)}.{role}.json"
            self._replace(served / name, (trusted / f"{role}.json").read_bytes())
        self._replace(served / "timestamp.json", (trusted / "timestamp.json").read_bytes())

    def _replace(self, path: Path, data: bytes) -> None:
        if path.exists() and path.read_bytes() == data:
            return
        self._storage.make_directory(path.parent)
        self._storage.replace(path, data)


def _has_length(path: Path, length: int) -> bool:
    return path.is_file() and path.stat().st_size == length
