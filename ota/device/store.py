"""Which model counts on this device.

::

    <state_dir>/models/
      slots/<first 16 hex digits of the root>/   a whole model directory, never changed
      patches/<old>-<new>/                       what an update in place changes, both ways
      ways/<active>-<previous>.way               the model before, as a delta from the active one
      store.json                                 active, previous, quarantine, highest counter,
                                                 and the patch that is under way

``store.json`` is replaced as a whole, so a commit and a revert are one rename each.  The agent
reads it at start; while a worker runs, both may write, one after the other under a lock.
Importing this module loads neither tuf nor zstandard nor paho.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ota.device.patch import apply_patch, patch_name, remove_stale
from ota.device.way_back import check_way, follow_way, make_way, open_way, way_name
from ota.errors import NothingToForgive, PatchDamaged, StorageError, UpdateError
from ota.quarantine import (
    MAX_REASON_CHARS,
    GivenUp,
    Quarantine,
    listed,
    nothing_selected,
    selected,
    to_fields,
    with_entry,
)
from ota.quarantine import parse as parse_quarantine
from ota.release import (
    RELEASE_FILE,
    Release,
    is_sha256,
    short_root,
)
from ota.storage import Disk, Storage, read_release, typed_errors, verify_directory

MAX_STORE_BYTES = 1 << 20
MAX_TIME_S = 1 << 40  # beyond any clock; what is more is damage


@dataclass(frozen=True, slots=True)
class StoreState:
    """The content of ``store.json``; roots are None where the bundled model is meant."""

    active: str | None = None
    previous: str | None = None
    counter: int = -1
    """The highest counter ever committed; -1: none."""
    quarantine: Quarantine = field(default_factory=dict)
    patching: str | None = None
    """The root that the active slot is being turned into, or back from."""
    newest: str | None = None
    """The root of the release that ``counter`` was committed for."""
    since_s: float | None = None
    """When the active model became so, by this device's clock."""


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
        self.patches_dir = self._directory / "patches"
        self.ways_dir = self._directory / "ways"

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
        """Say whether the model was tried here and given up."""
        return root in self.state().quarantine

    def slot(self, root: str) -> Path:
        """Return where the model with this root lives, or would live."""
        return self.slots_dir / short_root(root)

    def patch(self, old: str, new: str) -> Path:
        """Return where the patch between two roots lives, or would live."""
        return self.patches_dir / patch_name(old, new)

    def way(self, state: StoreState) -> Path | None:
        """Return where the delta from the active model to the one before lives, or would live."""
        if state.active is None or state.previous is None:
            return None
        return self.ways_dir / way_name(state.active, state.previous)

    def patch_in_place(self, new: str) -> Path:
        """Turn the active slot into ``new`` by its patch; `commit` or `recover` must follow.

        The engine must not have the model mapped.  Returns the slot.
        """
        with self._changing() as state:
            if state.active is None:
                raise StorageError("the model of the package cannot be changed in place")
            self._save(replace(state, patching=new))
            if self.slot(state.active).is_dir():
                self._storage.rename(self.slot(state.active), self.slot(new))
            apply_patch(self._storage, self.patch(state.active, new), self.slot(new), forward=True)
        return self.slot(new)

    def recover(self) -> None:
        """Take back an update in place that was never committed; call it before `active`.

        Raises:
            PatchDamaged, StorageError: the disk failed; the active slot cannot be trusted.
        """
        if self.state().patching is None:
            return
        with self._changing() as state:
            if state.patching is None or state.active is None:
                return
            here, slot = self.slot(state.patching), self.slot(state.active)
            if here.is_dir():
                path = self.patch(state.active, state.patching)
                apply_patch(self._storage, path, here, forward=False)
                self._storage.rename(here, slot)
            self._save(replace(state, patching=None))

    def commit(self, release: Release) -> None:
        """Make a verified slot the active model; the one before it can be reverted to."""
        with self._changing() as state:
            if state.active != release.root:
                state = replace(state, active=release.root, previous=state.active)
            if release.counter >= state.counter:
                state = replace(state, counter=release.counter, newest=release.root)
            quarantine = {k: v for k, v in state.quarantine.items() if k != release.root}
            self._save(replace(state, quarantine=quarantine, patching=None, since_s=_now_s()))

    def can_return(self) -> bool:
        """Say whether the model before the active one is still on this disk."""
        state = self.state()
        return state.active is not None and (
            state.previous is None
            or (self.slot(state.previous) / RELEASE_FILE).is_file()
            or self.patch(state.previous, state.active).is_dir()
            or self.returns_by_delta()
        )

    def returns_by_delta(self) -> bool:
        """Say whether the model before must be made from the active one first."""
        state = self.state()
        way = self.way(state)
        return (
            way is not None
            and state.previous is not None
            and not self.slot(state.previous).is_dir()
            and way.is_file()
        )

    def shrink_previous(
        self, after_s: float = 0.0, watch: Callable[[], None] = lambda: None
    ) -> bool:
        """Replace the slot of the model before by a delta; says whether that made room.

        Args:
            after_s: leave a slot whose successor was committed less than so long ago
            watch: called as it goes; may raise to stop

        Raises:
            StorageError: there is no room for the delta, or it is not worth it; the slot stays.
        """
        state = self.state()
        way = self.way(state)
        if way is None or state.previous is None or state.active is None:
            return False
        slot, active = self.slot(state.previous), self.slot(state.active)
        age_s = self.age_s()
        if not (slot.is_dir() and active.is_dir()) or age_s is None or age_s < after_s:
            return False
        if not _is_whole(way, active, watch):
            make_way(self._storage, way, active, slot, watch)
        gone = slot.with_name(f".{slot.name}.gone")
        self._storage.rename(slot, gone)  # half a slot must not be taken for a model
        self._storage.remove(gone)
        return True

    def rebuild_previous(self, watch: Callable[[], None] = lambda: None) -> None:
        """Make the model before from the active one, as a slot; nothing happens if it is there.

        Raises:
            PatchDamaged, PayloadError: the delta, or what came of it, is not that model.
            StorageError: it cannot be written.
        """
        state = self.state()
        way = self.way(state)
        if way is None or state.previous is None or not self.returns_by_delta():
            return
        slot = self.slot(state.previous)
        unfinished = slot.with_name(f".{slot.name}.new")
        self._storage.remove(unfinished)
        self._storage.make_directory(unfinished)
        follow_way(self._storage, way, self.active(), unfinished, watch)
        verify_directory(unfinished)
        self._storage.sync_tree(unfinished)
        self._storage.rename(unfinished, slot)

    def returns_in_place(self) -> bool:
        """Say whether going back changes the files of the active model: its engine must stop."""
        state = self.state()
        return (
            state.active is not None
            and state.previous is not None
            and not self.slot(state.previous).is_dir()
            and self.patch(state.previous, state.active).is_dir()
        )

    def age_s(self) -> float | None:
        """Return how long ago the active model became so, by the wall clock; None: never."""
        since_s = self.state().since_s
        if since_s is None:
            try:
                since_s = (self._directory / "store.json").stat().st_mtime
            except OSError:
                return None
        return time.time() - since_s

    def revert(self, reason: str, code: str = "") -> Path:
        """Give up the active model, quarantine it, and return the one to run instead.

        ``code`` is why, of ``ota.reasons``; ``reason`` says it to people.
        Nothing happens when the bundled model is active already.  Where the one before is a delta
        it is made first; if that cannot be, because the active one is damaged, the bundled model
        runs.
        """
        with suppress(UpdateError):
            self.rebuild_previous()
        is_in_place = self.returns_in_place()
        with self._changing() as state:
            if state.active is not None:
                self._save(
                    replace(
                        state,
                        active=state.previous,
                        previous=None,
                        quarantine=self._with_active(state, state.active, reason, code),
                        patching=state.active if is_in_place else None,
                        since_s=_now_s(),
                    )
                )
        self.recover()
        return self.active()

    def forget_previous(self) -> None:
        """Give up the way back, for room."""
        if self.state().previous is not None:
            with self._changing() as state:
                self._save(replace(state, previous=None))
            self.collect()

    def quarantine(self, root: str, entry: GivenUp) -> None:
        """Refuse a model that was never committed from now on."""
        with self._changing() as state:
            self._save(replace(state, quarantine=with_entry(state.quarantine, root, entry)))

    def forgive(self, what: str) -> list[dict[str, Any]]:
        """Let models be tried again; return what was known of them.

        A worker may hold the store for as long as an update in place takes: ask while none runs.

        Args:
            what: ``all``, a version, a root or how one begins

        Raises:
            NothingToForgive: nothing in quarantine is called that; nothing has changed.
            StorageError: the store cannot be written; nothing has changed.
        """
        with self._changing() as state:
            lifted = {root: state.quarantine[root] for root in selected(state.quarantine, what)}
            if not lifted:
                raise NothingToForgive(nothing_selected(state.quarantine, what))
            left = {k: v for k, v in state.quarantine.items() if k not in lifted}
            self._save(replace(state, quarantine=left))
        return listed(lifted)

    def _with_active(
        self, state: StoreState, root: str, reason: str, code: str
    ) -> dict[str, GivenUp]:
        """Return the quarantine with the active model, and the model that it replaced."""
        version, counter, base = "", None, state.previous
        with suppress(UpdateError):  # it may be damaged: that may be why it is given up
            release = read_release(self.slot(root))
            version, counter = release.version, release.counter
        with suppress(UpdateError):
            base = base or read_release(self._bundled_dir).root
        entry = GivenUp(base, version, counter, code, reason[:MAX_REASON_CHARS], round(time.time()))
        return with_entry(state.quarantine, root, entry)

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
            "quarantine": to_fields(state.quarantine),
            "patching": state.patching,
            "newest": state.newest,
            "since_s": state.since_s,
        }
        self._storage.replace(self._directory / "store.json", json.dumps(fields, indent=1).encode())

    def collect(self) -> None:
        """Remove slots that nothing points to."""
        state = self.state()
        roots = [state.active, state.previous, state.patching]
        keep = {short_root(root) for root in roots if root is not None}
        if self.slots_dir.is_dir():
            for path in sorted(self.slots_dir.iterdir()):
                if path.name not in keep:
                    self._storage.remove(path)
        patches = set()
        if state.active is not None:
            for old, new in ((state.previous, state.active), (state.active, state.patching)):
                if old is not None and new is not None:
                    patches.add(patch_name(old, new))
        remove_stale(self._storage, self.patches_dir, patches)
        way = self.way(state)
        remove_stale(self._storage, self.ways_dir, set() if way is None else {way.name})

    @contextmanager
    def _changing(self) -> Iterator[StoreState]:
        self._storage.make_directory(self.slots_dir)
        lock = self._directory / "lock"
        with typed_errors(lock), lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield self.state()


def _is_whole(way: Path, active: Path, watch: Callable[[], None]) -> bool:
    """Say whether a way that is there leads where it says."""
    if not way.is_file():
        return False
    try:
        check_way(way, active, watch)
    except PatchDamaged:
        return False
    return open_way(way).start == read_release(active).root


def _now_s() -> float:
    return round(time.time(), 3)


def _parse_state(fields: Any) -> StoreState:
    if not isinstance(fields, dict):
        return StoreState()
    quarantine, counter = parse_quarantine(fields.get("quarantine")), fields.get("counter")
    if quarantine is None or type(counter) is not int:
        return StoreState()
    return StoreState(
        _root_or_none(fields.get("active")),
        _root_or_none(fields.get("previous")),
        counter,
        quarantine,
        _root_or_none(fields.get("patching")),
        _root_or_none(fields.get("newest")),
        _seconds_or_none(fields.get("since_s")),
    )


def _seconds_or_none(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < MAX_TIME_S else None


def _root_or_none(value: Any) -> str | None:
    return value if is_sha256(value) else None
