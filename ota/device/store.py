"""Which model counts on this device.

::

    <state_dir>/models/
      slots/<first 16 hex digits of the root>/   a whole model directory, never changed
      store.json                                 active, previous, quarantine, highest counter

``store.json`` is replaced as a whole, so a commit and a revert are one rename each.  The agent
reads it at start; while a worker runs, both may write, one after the other under a lock.
Importing this module loads neither tuf nor zstandard nor paho.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ota.errors import StorageError
from ota.release import (
    RELEASE_FILE,
    Release,
    is_sha256,
    short_root,
)
from ota.storage import Disk, Storage, read_release, typed_errors

MAX_QUARANTINE = 64  # oldest dropped first; the counter still refuses what was once committed
MAX_STORE_BYTES = 1 << 20
MAX_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class StoreState:
    """The content of ``store.json``; roots are None where the bundled model is meant."""

    active: str | None = None
    previous: str | None = None
    counter: int = -1
    """The highest counter ever committed; -1: none."""
    quarantine: dict[str, str] = field(default_factory=dict)


class Store:
    """The models of one device.

    Args:
        state_dir: where the agent may write
        bundled_dir: the model that came with the package; always there
        storage: the disk
    """

    def __init__(self, state_dir: Path, bundled_dir: Path, storage: Storage | None = None) -> None:
        self._directory = Path(state_dir) / "models"
        self._bundled_dir = Path(bundled_dir)
        self._storage = storage or Disk()
        self.slots_dir = self._directory / "slots"

    def active(self) -> Path:
        """Return the directory of the model to run.

        The committed one; if it is gone from the disk the previous one; else the bundled one.
        """
        state = self.state()
        for root in (state.active, state.previous):
            if root is not None and (self.slot(root) / RELEASE_FILE).is_file():
                return self.slot(root)
        return self._bundled_dir

    def active_release(self) -> Release:
        """Return the release of the model to run."""
        return read_release(self.active())

    def installed_version(self) -> str:
        """Return the version of the model to run."""
        return self.active_release().version

    def is_quarantined(self, root: str) -> bool:
        """Say whether the model was tried here and rolled back."""
        return root in self.state().quarantine

    def slot(self, root: str) -> Path:
        """Return where the model with this root lives, or would live."""
        return self.slots_dir / short_root(root)

    def commit(self, release: Release) -> None:
        """Make a verified slot the active model; the one before it can be reverted to."""
        with self._changing() as state:
            if state.active != release.root:
                state = replace(state, active=release.root, previous=state.active)
            self._save(replace(state, counter=max(state.counter, release.counter)))

    def revert(self, reason: str) -> Path:
        """Give up the active model, quarantine it, and return the one to run instead.

        Nothing happens when the bundled model is active already.
        """
        with self._changing() as state:
            if state.active is not None:
                quarantine = _with_reason(state.quarantine, state.active, reason)
                self._save(
                    replace(state, active=state.previous, previous=None, quarantine=quarantine)
                )
        return self.active()

    def quarantine(self, root: str, reason: str) -> None:
        """Refuse a model that was never committed from now on."""
        with self._changing() as state:
            self._save(replace(state, quarantine=_with_reason(state.quarantine, root, reason)))

    def state(self) -> StoreState:
        """Return what is committed; a damaged or missing file means: nothing ever was."""
        path = self._directory / "store.json"
        try:
            with path.open("rb") as file:
                fields = json.loads(file.read(MAX_STORE_BYTES))
        except FileNotFoundError:
            return StoreState()
        except OSError as err:
            raise StorageError(f"{path}: {err.strerror}; check the disk") from err
        except ValueError:
            return StoreState()
        return _parse_state(fields)

    def _save(self, state: StoreState) -> None:
        fields = {
            "format": 1,
            "active": state.active,
            "previous": state.previous,
            "counter": state.counter,
            "quarantine": state.quarantine,
        }
        self._storage.replace(self._directory / "store.json", json.dumps(fields, indent=1).encode())

    def collect(self) -> None:
        """Remove slots that nothing points to."""
        state = self.state()
        keep = {short_root(root) for root in (state.active, state.previous) if root is not None}
        if self.slots_dir.is_dir():
            for path in sorted(self.slots_dir.iterdir()):
                if path.name not in keep:
                    self._storage.remove(path)

    @contextmanager
    def _changing(self) -> Iterator[StoreState]:
        self._storage.make_directory(self.slots_dir)
        lock = self._directory / "lock"
        with typed_errors(lock), lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield self.state()


def _with_reason(quarantine: dict[str, str], root: str, reason: str) -> dict[str, str]:
    newest = {**quarantine, root: reason[:MAX_REASON_CHARS]}
    return dict(list(newest.items())[-MAX_QUARANTINE:])


def _parse_state(fields: Any) -> StoreState:
    if not isinstance(fields, dict):
        return StoreState()
    quarantine, counter = fields.get("quarantine"), fields.get("counter")
    if not isinstance(quarantine, dict) or type(counter) is not int:
        return StoreState()
    return StoreState(
        _root_or_none(fields.get("active")),
        _root_or_none(fields.get("previous")),
        counter,
        {str(root): str(reason) for root, reason in quarantine.items()},
    )


def _root_or_none(value: Any) -> str | None:
    return value if is_sha256(value) else None
