"""What is signed today: python-tuf's client over our sources.

The bootstrap root comes with the device and is given to every ``Updater``, so a damaged cache heals
and a replaced one is not believed.  ``download_target`` of python-tuf is never used: it is not
resumable and not synced (``ota.device.download`` is).

What is added to python-tuf, all of it in ``_Updater``: a file is synced before it takes another's
place; the link ``root.json`` is replaced, not removed and made again; a version is compared with
the high-water record before it is written; and expiry is judged by ``ota.clock``, not by the bare
clock.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api._payload import Root, TargetFile, Targets
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from ota.clock import Reference, reference_time
from ota.device.high_water import HighWater, Mark
from ota.device.source import Source
from ota.errors import (
    ExpiredMetadata,
    ObjectMissing,
    RoleExpired,
    RootExpired,
    SnapshotExpired,
    TargetsExpired,
    TimestampExpired,
    TransportError,
    UntrustedMetadata,
    UpdateError,
)
from ota.reasons import advice_on
from ota.release import is_name
from ota.storage import Storage, typed_errors

NOT_FOUND = 404
ISSUED = "issued"
"""A field of ours in ``timestamp``: when it was signed, seconds since 1970."""
_TOP_LEVEL = ("root", "timestamp", "snapshot", "targets")
_EXPIRED = re.compile(r"(?:Final (root)\.json|(timestamp|snapshot)\.json|New (.+)) is expired")
"""How python-tuf says whose metadata it is."""
_EXPIRED_KINDS = {
    "root": RootExpired,
    "timestamp": TimestampExpired,
    "snapshot": SnapshotExpired,
    "targets": TargetsExpired,
}


@dataclass(frozen=True, slots=True)
class Target:
    """A signed target: what its bytes must be, and what is said about them."""

    name: str
    length: int
    sha256: str
    custom: Any


class TufClient:
    """Refreshes the metadata below ``directory`` and answers what is signed.

    The high-water record is ``<directory>.highwater``: beside the metadata, so that whatever
    empties the directory leaves it.

    Args:
        source: where metadata comes from
        storage: the disk
        directory: the metadata's
        bootstrap_root: the root metadata that came with the device
        now: the clock
        judge: turns the clock and what is known to have passed into the time of a refresh
    """

    def __init__(
        self,
        source: Source,
        storage: Storage,
        directory: Path,
        bootstrap_root: bytes,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        judge: Callable[[datetime, datetime | None], Reference] = reference_time,
    ) -> None:
        self._source = source
        self._storage = storage
        self._directory = directory
        self._bootstrap_root = bootstrap_root
        self._now = now
        self._judge = judge
        self._updater: _Updater | None = None
        self.high_water = HighWater(storage, directory.with_name(f"{directory.name}.highwater"))
        self.is_clock_trusted = True
        """Whether the last refresh could judge expiry by the clock."""

    def refresh(self) -> None:
        """Bring the metadata up to date.

        Raises:
            UntrustedMetadata, ExpiredMetadata: what the source has must not be believed.
            TransportError: the source cannot be reached.
            StorageError: the metadata cannot be kept.
        """
        self._updater = None
        self._storage.make_directory(self._directory)
        reference = self._judge(self._now(), self.high_water.mark.time)
        self.is_clock_trusted = reference.is_trusted
        with _ours(self._directory):
            updater = _Updater(
                self._storage,
                self._directory,
                _Fetcher(self._source),
                self._bootstrap_root,
                self.high_water,
                reference,
            )
            updater.refresh()
            mark = updater.checked_mark()
        self.high_water.raise_to(mark)
        self._updater = updater

    @property
    def n_targets(self) -> int:
        """A number that grows whenever somebody signs targets anew."""
        versions = self.high_water.mark.versions
        return sum(n for role, n in versions.items() if role not in {"timestamp", "snapshot"})

    def target(self, name: str) -> Target | None:
        """Return the signed target ``name``, or None if there is none."""
        info = self.target_file(name)
        if info is None:
            return None
        sha256 = info.hashes.get("sha256")
        if sha256 is None:
            raise UntrustedMetadata(f"{name}: expected a sha256 hash, got {sorted(info.hashes)}")
        return Target(name, info.length, sha256, info.custom)

    def object_name(self, info: TargetFile) -> str:
        """Return where a repository with consistent snapshots keeps ``info``: beside its hash.

        Our own repositories name their payloads once and for all and need no such prefix; others
        do (TUF specification 5.7.3).
        """
        if self._updater is None or not self._updater.is_consistent:
            return f"targets/{info.path}"
        directory, slash, base = info.path.rpartition("/")
        return f"targets/{directory}{slash}{next(iter(info.hashes.values()))}.{base}"

    def target_file(self, name: str) -> TargetFile | None:
        """Return what python-tuf knows of target ``name``, or None if there is none."""
        if self._updater is None:
            raise RuntimeError("target() before refresh()")
        with _ours(self._directory):
            info = self._updater.get_targetinfo(name)
        seen = self._updater.delegated_versions
        self.high_water.raise_to(replace(self.high_water.mark, versions=seen))
        return info


class _Updater(Updater):
    """python-tuf's client with our disk, our record and our time.

    It overrides how python-tuf writes and nothing about how it verifies; the methods are private to
    it, hence the upper bound of its version in ``pyproject.toml``, and ``docs/adr/0020``.
    """

    def __init__(
        self,
        storage: Storage,
        directory: Path,
        fetcher: FetcherInterface,
        bootstrap: bytes,
        high_water: HighWater,
        reference: Reference,
    ) -> None:
        self._storage = storage
        self._path = directory
        self._high_water = high_water
        self._reference = reference
        self.delegated_versions: dict[str, int] = {}
        """Of the models' roles that were looked into."""
        super().__init__(str(directory), "metadata/", fetcher=fetcher, bootstrap=bootstrap)
        self._trusted_set.reference_time = reference.time

    @property
    def is_consistent(self) -> bool:
        """Whether the repository has consistent snapshots."""
        return bool(self._trusted_set.root.consistent_snapshot)

    def checked_mark(self) -> Mark:
        """Return what is trusted after a refresh, once more compared with the record.

        A cached file of the same version is believed without being written again, so the comparison
        before a write does not cover it.

        Raises:
            UntrustedMetadata: a version went back.
        """
        keys = self._online_keys()
        versions = {role: self._trusted_set[role].version for role in _TOP_LEVEL}
        for role, version in versions.items():
            self._high_water.check(role, version, keys)
        passed = [moment for moment in (self._issued(), self._passed()) if moment is not None]
        return Mark(versions, keys, max(passed, default=None), self._high_water.mark.counters)

    def _issued(self) -> datetime | None:
        """Return when the timestamp was signed; an online key may lie, but not beyond the root."""
        seconds = self._trusted_set.timestamp.unrecognized_fields.get(ISSUED)
        limit = min(self._trusted_set.root.expires, self._trusted_set.timestamp.expires)
        if type(seconds) is not int or not 0 <= seconds <= limit.timestamp():
            return None
        return datetime.fromtimestamp(seconds, UTC)

    def _passed(self) -> datetime | None:
        """Return the clock's time, if it is one; to the minute, so that a check writes little."""
        if not self._reference.is_trusted:
            return None
        return self._reference.time.replace(second=0, microsecond=0)

    def _online_keys(self) -> str:
        """Return what tells the online keys from others; a signed key id may be any JSON value."""
        root: Root = self._trusted_set.root
        text = "|".join(
            f"{root.roles[role].threshold}:{','.join(sorted(map(str, root.roles[role].keyids)))}"
            for role in ("timestamp", "snapshot")
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        """Load a role's targets; a cached file of a model's role is compared like a new one.

        Others than models have no role of ours: their names may be anything, and are not recorded.
        """
        targets = super()._load_targets(role, parent_role)
        if role not in _TOP_LEVEL and is_name(role):
            self._high_water.check(role, targets.version, self._online_keys())
            self.delegated_versions[role] = targets.version
        return targets

    def _persist_metadata(self, rolename: str, data: bytes) -> None:
        version = self._trusted_set[rolename].version
        self._high_water.check(rolename, version, self._online_keys())
        super()._persist_metadata(rolename, data)

    def _persist_root(self, version: int, data: bytes) -> None:
        self._storage.make_directory(self._path / "root_history")
        self._persist_file(str(self._path / "root_history" / f"{version}.root.json"), data)

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        with suppress(OSError):
            if path.read_bytes() == data:
                return  # flash wears; the bootstrap root is offered at every refresh
        self._storage.replace(path, data)

    def _update_root_symlink(self) -> None:
        version = self._trusted_set.root.version
        current = f"root_history/{version}.root.json"
        link = self._path / "root.json"
        with suppress(OSError):
            if link.readlink() == Path(current):
                return
        beside = self._path / ".root.json.new"
        self._storage.remove(beside)
        beside.symlink_to(current)
        self._storage.rename(beside, link)


class _Fetcher(FetcherInterface):
    """Feeds python-tuf from a source; "there is no newer root" must be an HTTP 404 to it."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield from self._source.stream(url)
        except ObjectMissing as err:
            raise DownloadHTTPError(str(err), NOT_FOUND) from err
        except UpdateError as err:
            raise DownloadError(str(err)) from err


@contextmanager
def _ours(directory: Path) -> Iterator[None]:
    """Turn what python-tuf raises into errors of ours.

    It verifies signatures over any JSON and does not look at every type, so metadata that is signed
    and makes no sense (a role whose name is a number) may trip it anywhere.
    """
    try:
        with typed_errors(directory):
            yield
    except (DownloadError, RepositoryError) as err:
        raise _translated(err) from err
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as err:
        said = f"{type(err).__name__}: {err}"
        raise UntrustedMetadata(f"metadata: expected TUF's types, got {said}") from err
    except RecursionError as err:
        raise UntrustedMetadata("metadata: nested too deeply") from err


def _translated(err: Exception) -> UpdateError:
    """Return the error of ours that says what ``err`` means here."""
    cause = err.__cause__
    if isinstance(cause, UpdateError) and not isinstance(cause, ObjectMissing):
        return cause
    if isinstance(err, ExpiredMetadataError):
        return _expired(str(err))
    if isinstance(err, RepositoryError):
        return UntrustedMetadata(f"metadata: {err}; the installed model stays")
    return TransportError(f"metadata: {err}")


def _expired(said: str) -> ExpiredMetadata:
    """Return the error of the role that python-tuf names: who renews which is another question."""
    match = _EXPIRED.fullmatch(said)
    role = "" if match is None else next(group for group in match.groups() if group)
    kind = _EXPIRED_KINDS.get(role, RoleExpired) if role else ExpiredMetadata
    what = role or "metadata"
    return kind(f"{what}: {said} by this device's time; {advice_on(kind.code)}")
