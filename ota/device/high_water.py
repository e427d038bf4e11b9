"""What was seen and must never be undercut: a record beside TUF's files, appended to.

python-tuf protects against rollback by the files it keeps; lose ``timestamp.json`` and an old one
is believed again.  This record holds the highest version of each role, the newest time that is
known to have passed and the highest counter committed of each model.  Both would have to be lost
together.

One JSON object a line, each with a checksum; a torn or damaged line is skipped, and the lines
before it still hold.  When the keys of timestamp or snapshot are rotated, the versions that those
keys vouched for start over (TUF specification 5.3.11: the recovery from a fast-forward attack); the
root's version and the counters never do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ota.errors import StorageError, UntrustedMetadata
from ota.storage import Storage

MAX_LOG_BYTES = 1 << 16  # 300 lines; then it is replaced by its last state
CHECK_CHARS = 16  # 64 bits: this guards against torn writes, not against an attacker with our disk
MAX_VERSION = 1 << 53
MAX_TIME_S = 253402300799  # the end of the year 9999, and of datetime
OWN = "root"
"""The one role whose version nothing but its own keys vouches for."""
MAX_ROLES = 64
"""In the record, beyond which no delegated role is added: a device follows one model's."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The highest of everything."""

    versions: Mapping[str, int] = field(default_factory=dict)
    """Of the four roles and the models' own; a role that was never seen is absent."""
    online_keys: str = ""
    """Fingerprint of the keys of timestamp and snapshot that the versions were seen under."""
    time: datetime | None = None
    """A moment that has certainly passed."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """The highest counter committed, by model."""


class HighWater:
    """The record at ``path``."""

    def __init__(self, storage: Storage, path: Path) -> None:
        self._storage = storage
        self._path = path
        text = _read(path)
        self._size = len(text)
        self.mark = Mark()
        for line in text.splitlines():
            mark = _parse(line)
            if mark is not None:
                self.mark = _merged(self.mark, mark)

    def check(self, role: str, version: int, online_keys: str) -> None:
        """Refuse a version below the highest.

        Raises:
            UntrustedMetadata: ``role`` went back.
        """
        is_void = role != OWN and online_keys != self.mark.online_keys
        highest = 0 if is_void else self.mark.versions.get(role, 0)
        if version < highest:
            raise UntrustedMetadata(
                f"{role}: expected version {highest} or newer, as seen before, got {version}; "
                "the source replays old metadata"
            )

    def counter(self, name: str) -> int:
        """Return the highest counter committed of ``name``; -1 if there was none."""
        return self.mark.counters.get(name, -1)

    def raise_to(self, mark: Mark) -> None:
        """Append what is higher now, and sync; nothing is written if nothing is.

        Raises:
            StorageError: the disk refuses.
        """
        merged = _merged(self.mark, mark)
        if merged == self.mark:
            return
        line = _line(merged)
        if self._size + len(line) > MAX_LOG_BYTES:
            self._storage.replace(self._path, line)
            self._size = len(line)
        else:
            self._storage.make_directory(self._path.parent)
            with self._storage.open(self._path) as file:
                file.write_at(self._size, line)
                file.sync()
            self._size += len(line)
        self.mark = merged

    def raise_counter(self, name: str, counter: int) -> None:
        """Remember that ``counter`` of ``name`` was committed."""
        self.raise_to(replace(self.mark, counters={name: counter}))


def _merged(old: Mark, new: Mark) -> Mark:
    """Return the higher of both; under a new set of online keys its versions start over."""
    kept = dict(old.versions)
    moment = old.time
    if new.online_keys != old.online_keys:
        kept = {role: version for role, version in kept.items() if role == OWN}
        moment = None
    for role, version in new.versions.items():
        if role in kept or len(kept) < MAX_ROLES:
            kept[role] = max(version, kept.get(role, 0))
    times = [each for each in (moment, new.time) if each is not None]
    counters = dict(old.counters)
    for name, counter in new.counters.items():
        counters[name] = max(counter, counters.get(name, -1))
    return Mark(kept, new.online_keys, max(times, default=None), counters)


def _line(mark: Mark) -> bytes:
    """Return a line; it begins with a newline, so that a torn line before it stays alone."""
    fields = {
        "versions": dict(mark.versions),
        "online_keys": mark.online_keys,
        "time_s": None if mark.time is None else int(mark.time.timestamp()),
        "counters": dict(mark.counters),
    }
    body = json.dumps(fields, sort_keys=True).encode()
    return b"\n" + _check(body) + b" " + body + b"\n"


def _parse(line: bytes) -> Mark | None:
    check, _, body = line.partition(b" ")
    if check != _check(body):
        return None
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    match fields:
        case {
            "versions": dict(versions),
            "online_keys": str(keys),
            "time_s": int() | None as time_s,
            "counters": dict(counters),
        } if _are_counts(versions) and _are_counts(counters):
            if time_s is not None and not 0 <= time_s <= MAX_TIME_S:
                return None
            moment = None if time_s is None else datetime.fromtimestamp(time_s, UTC)
            return Mark(versions, keys, moment, counters)
    return None


def _are_counts(table: Mapping[Any, Any]) -> bool:
    return all(type(value) is int and 0 <= value <= MAX_VERSION for value in table.values())


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:CHECK_CHARS].encode()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(2 * MAX_LOG_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as err:
        raise StorageError(f"{path}: {err.strerror}; check the disk") from err
