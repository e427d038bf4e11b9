"""A repository: releases, deltas and the signed metadata about them, in one directory.

::

    REPO/
      repository.json            name of the repository
      keys/                      unless --keys said otherwise; never served
      metadata/                  1.root.json  N.targets.json  N.snapshot.json  timestamp.json
      targets/models/...         payloads; names are in ota.trust

``release`` and ``delta`` write the *next* ``targets.json``; nobody sees it until ``publish`` signs
a snapshot and a timestamp that name it.  Payload files are written once and never changed, so a
device in the middle of a download is not disturbed.  A full image is kept for every release, so an
old version can always be made again and nothing else has to be archived.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

from tuf.api._payload import Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.metadata import Metadata

from ota.container import Container
from ota.encoder import Encoder
from ota.errors import ConfigError
from ota.fleet.chains import find_chain, write_sum
from ota.fleet.contents import (
    Scratch,
    chunk_hashes,
    decode,
    delta_roots,
    deltas_of,
    model_names,
    releases_of,
    write_reversible,
)
from ota.fleet.delegation import delegate, rotate_delegated, undelegate
from ota.fleet.keys import ROLES, create_keys, create_role_keys, load_keys, retire_keys
from ota.fleet.metadata import ROOT_LIFE, TARGETS_LIFE, MetadataFiles, until
from ota.release import RELEASE_FILE, Release, is_version, parse_release
from ota.storage import Directory, Disk, OpenFile, typed_errors, verify_directory
from ota.trust import (
    channel_target,
    chunks_object,
    delta_target,
    full_target,
    parse_channel,
    release_target,
)
from ota.wire import CHUNK_BYTES, encode_notice, is_repo

MAX_ROOT_KEYS = 16  # people in a ceremony


@dataclass(frozen=True, slots=True)
class Added:
    """A payload that was added."""

    target: str
    n_bytes: int
    full_bytes: int
    from_version: str | None
    to_version: str
    root: str


class Repository:
    """The repository at ``path``; open it with ``create`` or ``open``."""

    def __init__(self, path: Path, name: str, keys_dir: Path) -> None:
        self.path = path
        self.name = name
        self.keys_dir = keys_dir
        self._metadata_dir = path / "metadata"
        self._targets_dir = path / "targets"
        self._disk = Disk()
        self._files = MetadataFiles(self._metadata_dir, keys_dir, self._disk)

    @classmethod
    def create(
        cls, path: Path, name: str, keys_dir: Path | None, n_root: int = 1, threshold: int = 1
    ) -> Repository:
        """Make an empty repository with new keys, and publish it.

        ``threshold`` of the ``n_root`` root keys must sign whatever changes the keys.

        Raises:
            ConfigError: there is one already, or the name is no topic level.
        """
        if not is_repo(name):
            raise ConfigError(f"repository name: expected letters, digits, - and _, got {name!r}")
        if (path / "repository.json").exists():
            raise ConfigError(f"{path}: there is a repository already; choose another directory")
        if not 1 <= threshold <= n_root <= MAX_ROOT_KEYS:
            raise ConfigError(
                f"expected 1 <= threshold <= root keys <= {MAX_ROOT_KEYS}, "
                f"got {threshold} of {n_root}"
            )
        repo = cls(path, name, keys_dir or path / "keys")
        repo._disk.make_directory(repo._metadata_dir)
        repo._disk.make_directory(repo._targets_dir)
        signers = create_keys(repo.keys_dir, n_root)
        root = Root(expires=until(ROOT_LIFE), consistent_snapshot=True)
        for role in ROLES:
            for signer in signers[role]:
                root.add_key(signer.public_key, role)
        root.roles["root"].threshold = threshold
        repo._files.write("root", Metadata(root), 1)
        repo._files.write("targets", Metadata(Targets(expires=until(TARGETS_LIFE))), 1)
        repo._files.sign_snapshot(version=1, targets_version=1)
        description = {"format": 1, "name": name}
        repo._disk.replace(path / "repository.json", json.dumps(description).encode())
        return repo

    @classmethod
    def open(cls, path: Path, keys_dir: Path | None = None) -> Repository:
        """Open an existing repository; keys are read when something is signed."""
        file = path / "repository.json"
        try:
            description = json.loads(file.read_bytes())
            return cls(path, str(description["name"]), keys_dir or path / "keys")
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{file}: no repository here; make one with `edgeota init`") from None

    def add_release(
        self, model_dir: Path, hardware: tuple[str, ...] = (), min_agent: str = "0"
    ) -> Added:
        """Add a model directory as the current release of its name.

        Raises:
            PayloadError: the directory is not what its ``release.json`` says.
            ConfigError: the version exists, or the counter does not grow.
        """
        release = verify_directory(model_dir)
        self._check_is_newer(self._files.everything(), release)
        role = self._files.owner(release.name)
        targets = self._files.load(role, Targets)
        target = full_target(release.name, release.version)
        with Directory(model_dir) as files:
            full_bytes = self._add_payload(targets.signed, target, None, (release, files))
        self._add_target(
            targets.signed,
            release_target(release.name, release.version),
            release.text,
            {
                "name": release.name,
                "version": release.version,
                "counter": release.counter,
                "root": release.root,
                "bytes": release.n_bytes,
                "full_bytes": full_bytes,
                "hardware": list(hardware),
                "min_agent": min_agent,
            },
        )
        channel = {"version": release.version}
        self._add_target(
            targets.signed, channel_target(release.name), json.dumps(channel).encode(), channel
        )
        self._files.write(role, targets, self._files.next_version(role))
        return Added(target, full_bytes, full_bytes, None, release.version, release.root)

    def add_delta(self, from_: str, to: str, name: str | None = None, way: str = "direct") -> Added:
        """Add the delta between two releases, each given as a model directory or a version.

        Args:
            from_: the release that devices have
            to: the release that they are to have
            name: which model, if several have that version
            way: ``direct``; ``reversible``, which adds up and turns round without a model;
                ``compose``, the sum of the reversible deltas that lead from one to the other

        Raises:
            ConfigError: there is no such release, both are the same model, or no deltas lead there.
            PayloadError: the deltas on the way are not reversible.
        """
        known = self._files.everything()
        with ExitStack() as stack:
            old_dir = stack.enter_context(self._model_dir(known, from_, name))
            new_dir = stack.enter_context(self._model_dir(known, to, name))
            old, new = verify_directory(old_dir), verify_directory(new_dir)
            if old.root == new.root or old.name != new.name:
                raise ConfigError(
                    f"delta: expected two models of one name, got {old.name} {old.version} and "
                    f"{new.name} {new.version}"
                )
            offer = self._custom(known, release_target(new.name, new.version))
            if offer.get("root") != new.root:
                raise ConfigError(f"{to}: not what was released as {new.version}; release it first")
            target = delta_target(new.name, old.root, new.root)
            old_files = stack.enter_context(Directory(old_dir))
            new_files = stack.enter_context(Directory(new_dir))
            encode: Callable[[IO[bytes], Scratch], None] | None = None
            if way == "compose":
                chain = find_chain(delta_roots(known, new.name), old.root, new.root)
                encode = partial(self._write_sum, known, new.name, chain)
            elif way == "reversible":
                encode = partial(write_reversible, (old, old_files), (new, new_files))
            role = self._files.owner(new.name)
            targets = self._files.load(role, Targets)
            n_bytes = self._add_payload(
                targets.signed, target, (old, old_files), (new, new_files), encode
            )
        self._files.write(role, targets, self._files.next_version(role))
        return Added(target, n_bytes, offer["full_bytes"], old.version, new.version, new.root)

    def publish(self) -> int:
        """Sign what was added since, and return the version of the timestamp.

        Metadata that did not change is signed again too, so a publish renews what expires soon.
        """
        snapshot = self._files.load("snapshot", Snapshot)
        return self._files.sign_snapshot(snapshot.signed.version + 1)

    def renew(self, role: str) -> int:
        """Sign ``targets`` or a model's role again, unchanged, for another life; then publish it.

        Raises:
            ConfigError: there is no such role, or too few of its keys are here.
        """
        if role != "targets" and role not in self._files.delegated():
            raise ConfigError(f"{role}: expected targets or a model with keys of its own")
        version = self._files.next_version(role)
        self._files.write(role, self._files.load(role, Targets), version)
        self.publish()
        return version

    def delegate(
        self, model: str, n_keys: int = 1, threshold: int = 1, life_days: int | None = None
    ) -> int:
        """Hand a model to new keys, and publish; returns the version of the timestamp.

        ``threshold`` of the ``n_keys`` keys must sign its releases from now on, and the targets key
        signs none of them any more.  Only the targets key can do this.

        Raises:
            ConfigError: the model has keys of its own, or the numbers make no sense.
        """
        delegate(self._files, model, n_keys, threshold, life_days)
        return self.publish()

    def undelegate(self, model: str, *, drop: bool = False) -> int:
        """Take a model back from its keys, and publish; returns how many targets were kept.

        ``drop`` forgets what those keys had signed; devices that follow the model then stay as they
        are (``release_refused``) until the model is released again.

        Raises:
            ConfigError: the model has no keys of its own, or what they signed is not whole.
        """
        n_kept = undelegate(self._files, model, drop=drop)
        self.publish()
        return n_kept

    def rotate(self, role: str) -> int:
        """Give ``role`` new keys; returns the version of the metadata that says so.

        That is the root, or for the role of a model ``targets``.

        A new root is signed by a threshold of the old root's keys and, for the root itself, of the
        new ones.  What the role signed before is signed again, so nothing is unverifiable.

        Raises:
            ConfigError: too few root keys are here, or there is no such role.
        """
        if role not in ROLES:
            version = rotate_delegated(self._files, role)
            self.publish()
            return version
        metadata = self._files.load("root", Root)
        root = metadata.signed
        signers = load_keys(self.keys_dir, "root")
        held = {signer.public_key.keyid for signer in signers}
        entry = root.roles["root"]
        if len(held & set(entry.keyids)) < entry.threshold:
            raise ConfigError(
                f"expected {entry.threshold} of the root's keys in {self.keys_dir}, "
                f"got {len(held & set(entry.keyids))}; put them there for this one command"
            )
        n_keys = len(root.roles[role].keyids)
        retire_keys(self.keys_dir, role)
        new = create_role_keys(self.keys_dir, role, n_keys)
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for signer in new:
            root.add_key(signer.public_key, role)
        root.version += 1
        root.expires = until(ROOT_LIFE)
        metadata.signatures.clear()
        for signer in signers + (new if role == "root" else []):
            metadata.sign(signer, append=True)
        name = f"{root.version}.root.json"
        self._disk.replace(self._metadata_dir / name, metadata.to_bytes())
        if role == "targets":
            targets = self._files.load("targets", Targets)
            self._files.write("targets", targets, self._files.next_version("targets"))
        self.publish()
        return root.version

    def keys(self) -> dict[str, dict[str, Any]]:
        """Describe the keys of each role: which sign, and how many must."""
        root = self._files.load("root", Root).signed
        entries = {role: root.roles[role] for role in ROLES} | self._files.delegated()
        return {
            role: {"threshold": entry.threshold, "keys": entry.keyids}
            for role, entry in entries.items()
        }

    def notice(self) -> bytes:
        """Return the notice to retain: what is published, not what was only added."""
        targets = self._files.everything(self._files.published())
        models = {
            name: parse_channel(targets.targets[channel_target(name)].custom, name)
            for name in model_names(targets)
        }
        return encode_notice(self._files.load("timestamp", Timestamp).signed.version, models)

    def status(self) -> dict[str, Any]:
        """Describe the repository: versions, expiry, releases, and what is not published yet."""
        roles = {}
        for role in self._files.all_roles():
            signed = self._files.read(role).signed
            left = signed.expires - datetime.now(UTC)
            roles[role] = {
                "version": signed.version,
                "expires": signed.expires.isoformat(),
                "days_left": left.days,
            }
        targets = self._files.everything()
        models = {
            name: {
                "signed_by": self._files.owner(name),
                "current": self._custom(targets, channel_target(name))["version"],
                "releases": releases_of(targets, name),
                "deltas": deltas_of(targets, name),
            }
            for name in model_names(targets)
        }
        return {
            "name": self.name,
            "roles": roles,
            "models": models,
            "is_published": self._files.is_published(),
        }

    # Payloads.

    def _add_payload(
        self,
        targets: Targets,
        target: str,
        base: tuple[Release, Directory] | None,
        result: tuple[Release, Directory],
        encode: Callable[[IO[bytes], Scratch], None] | None = None,
    ) -> int:
        """Encode, check by decoding, and list one payload; returns its length."""
        path = self._targets_dir / target
        self._disk.make_directory(path.parent)
        unfinished = path.with_name(f".{path.name}.new")
        with ExitStack() as stack, typed_errors(path):

            def scratch() -> Any:
                return stack.enter_context(tempfile.TemporaryFile(dir=path.parent))

            with unfinished.open("wb") as out:
                if encode is None:
                    Encoder(base, result, scratch).write(out)
                else:
                    encode(out, scratch)
        with self._disk.open(unfinished) as blob:
            written_bytes = decode(blob, base)
            blob.sync()
            info = TargetFile.from_file(target, str(unfinished))
            chunks = chunk_hashes(blob, info.length)
        if len(chunks) > hashlib.sha256().digest_size:  # else the list is the target's own hash
            self._disk.replace(self._targets_dir / chunks_object(target), chunks)
        self._disk.rename(unfinished, path)
        info.unrecognized_fields["custom"] = {
            "base": base[0].root if base else None,
            "root": result[0].root,
            "chunk_bytes": CHUNK_BYTES,
            "chunks_sha256": hashlib.sha256(chunks).hexdigest(),
            "written_bytes": written_bytes,
        }
        targets.targets[target] = info
        return info.length

    def _write_sum(
        self,
        targets: Targets,
        name: str,
        chain: list[tuple[str, str]],
        out: IO[bytes],
        scratch: Scratch,
    ) -> None:
        del scratch  # sums of deltas are small
        releases = {}
        for entry in releases_of(targets, name):
            text = (self._targets_dir / release_target(name, entry["version"])).read_bytes()
            releases[entry["root"]] = parse_release(text)
        with ExitStack() as stack:

            def open_delta(base: str, root: str) -> OpenFile:
                path = self._targets_dir / delta_target(name, base, root)
                return stack.enter_context(self._disk.open(path))

            write_sum(chain, open_delta, releases, out)

    def _add_target(
        self, targets: Targets, target: str, data: bytes, custom: dict[str, Any]
    ) -> None:
        path = self._targets_dir / target
        self._disk.make_directory(path.parent)
        self._disk.replace(path, data)
        info = TargetFile.from_data(target, data)
        info.unrecognized_fields["custom"] = custom
        targets.targets[target] = info

    def _check_is_newer(self, targets: Targets, release: Release) -> None:
        if release_target(release.name, release.version) in targets.targets:
            raise ConfigError(
                f"{release.name} {release.version}: released already; give it a new version"
            )
        newest = max((entry["counter"] for entry in releases_of(targets, release.name)), default=-1)
        if release.counter <= newest:
            raise ConfigError(
                f"{release.name} {release.version}: expected a counter above {newest}, "
                f"got {release.counter}; devices would refuse it"
            )

    @contextmanager
    def _model_dir(self, targets: Targets, model: str, name: str | None) -> Iterator[Path]:
        """Give a model directory: as it is, or made from the full image of a version."""
        if (Path(model) / RELEASE_FILE).is_file():
            yield Path(model)
            return
        names = [
            known
            for known in model_names(targets)
            if name in (None, known) and release_target(known, model) in targets.targets
        ]
        if not is_version(model) or len(names) != 1:
            raise ConfigError(
                f"{model}: expected a model directory or the version of one released model "
                f"(--name chooses one), got {names or 'none'}"
            )
        with tempfile.TemporaryDirectory() as scratch:
            self._unpack(full_target(names[0], model), Path(scratch))
            yield Path(scratch)

    def _unpack(self, target: str, directory: Path) -> None:
        with self._disk.open(self._targets_dir / target) as blob:
            container = Container(blob, None)
            for name, pieces in container.make(Directory(directory)):
                self._disk.write(directory / name, pieces)
            self._disk.write(directory / RELEASE_FILE, [container.release.text])

    # Metadata.

    def _custom(self, targets: Targets, target: str) -> dict[str, Any]:
        info = targets.targets.get(target)
        if info is None:
            raise ConfigError(f"{target}: not in this repository; release it first")
        return dict(info.custom or {})
