"""From a payload and a base to a whole, verified slot."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from ota.container import Container
from ota.device.ahead import running_ahead
from ota.device.patch import make_patch, read_patch
from ota.device.store import Store
from ota.errors import PatchDamaged, PayloadError, PayloadMismatch
from ota.release import RELEASE_FILE, Release
from ota.storage import Directory, Storage, read_release, verify_directory
from ota.trust import Payload


def unpack(
    storage: Storage,
    path: Path,
    base_dir: Path,
    target: Path,
    *,
    accept: Callable[[Release], None] = lambda draft: None,
    approve: Callable[[Release], None] = lambda release: None,
    watch: Callable[[Iterable[bytes]], Iterable[bytes]] = iter,
) -> None:
    """Fill the empty directory ``target`` from the container at ``path`` and its base.

    Args:
        storage: the disk
        path: the container
        base_dir: the model directory that the container starts from
        target: where the result goes
        accept: sees what is known of the result before anything is written; may raise
        approve: sees the result's release before that is written, the last of all; may raise
        watch: wraps the pieces of every file as they are written

    Raises:
        PayloadError: the container is broken, or is for another base.
        StorageError: the result cannot be written.
    """
    with ExitStack() as stack:
        blob = stack.enter_context(storage.open(path))
        old = stack.enter_context(Directory(base_dir))
        container = Container(blob, read_release(base_dir))
        accept(container.draft)
        for name, old_name in container.kept.items():
            storage.link_or_copy(base_dir / old_name, target / name)
        for name, pieces in stack.enter_context(closing(container.make(old, running_ahead))):
            storage.write(target / name, watch(pieces))
        approve(container.release)
        storage.write(target / RELEASE_FILE, [container.release.text])


class Stager:
    """Makes slots in a store.

    Args:
        store: where the slot goes and the base is
        storage: the disk
        on_piece: called for every piece written; may raise to stop
    """

    def __init__(
        self, store: Store, storage: Storage, on_piece: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self._storage = storage
        self._on_piece = on_piece

    def stage(self, payload: Payload, path: Path, release_sha256: str) -> Path:
        """Make the slot of ``payload`` from the container at ``path``; leave a good one as it is.

        Args:
            payload: what is signed about the container
            path: the container
            release_sha256: the signed hash of the result's release.json

        Raises:
            PayloadError: the container, or what came of it, is not what is signed.
            StorageError: the slot cannot be written.
        """
        slot = self._store.slot(payload.root)
        if slot.is_dir():
            if self._is_good(slot, payload.root, release_sha256):
                # The worker that renamed it may have been killed before it synced the name.
                self._storage.sync_directory(slot.parent)
                return slot
            self._storage.remove(slot)
        unfinished = slot.with_name(f".{slot.name}.new")
        self._storage.remove(unfinished)
        self._storage.make_directory(unfinished)
        self._fill(unfinished, payload, path, release_sha256)
        verify_directory(unfinished)  # reads back what was written, and the linked files too
        self._storage.sync_tree(unfinished)
        self._storage.rename(unfinished, slot)
        return slot

    def stage_patch(self, payload: Payload, path: Path, release_sha256: str) -> Path:
        """Make the patch that turns the active slot into the result; a good one is left as it is.

        The old model is read and hashed first, and each result file as it is made, so the result is
        known to be right before anything is changed.

        Raises:
            PayloadError: the container, or what came of it, is not what is signed.
            StorageError: the patch cannot be written.
        """
        slot = self._store.active()
        old = verify_directory(slot)
        target = self._store.patch(old.root, payload.root)
        if target.is_dir():
            with suppress(PatchDamaged):
                read_patch(target)
                self._storage.sync_directory(target.parent)
                return target
            self._storage.remove(target)
        unfinished = target.with_name(f".{target.name}.new")
        self._storage.remove(unfinished)
        self._storage.make_directory(unfinished)
        with ExitStack() as stack:
            blob = stack.enter_context(self._storage.open(path))
            before = stack.enter_context(Directory(slot))
            container = Container(blob, old)
            _check_root(container.draft, payload)

            def result() -> Release:
                _check_release(container.release, payload, release_sha256)
                return container.release

            releases = old, container.draft
            made = stack.enter_context(closing(container.make(before, running_ahead)))
            make_patch(self._storage, unfinished, slot, releases, made, result, self._on_piece)
        self._storage.sync_tree(unfinished)
        self._storage.rename(unfinished, target)
        return target

    def _fill(self, target: Path, payload: Payload, path: Path, release_sha256: str) -> None:
        unpack(
            self._storage,
            path,
            self._store.active(),
            target,
            accept=lambda draft: _check_root(draft, payload),
            approve=lambda release: _check_release(release, payload, release_sha256),
            watch=self._watched,
        )

    def _watched(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._on_piece()
            yield piece

    def _is_good(self, slot: Path, root: str, release_sha256: str) -> bool:
        """Say whether the slot is whole, and of this release: the same bytes may have another."""
        try:
            release = verify_directory(slot)
        except PayloadError:
            return False
        return release.root == root and hashlib.sha256(release.text).hexdigest() == release_sha256


def _check_root(draft: Release, payload: Payload) -> None:
    """Compare what the container leads to with what is signed about it."""
    if draft.root != payload.root:
        raise PayloadMismatch(
            f"{payload.target}: expected a result {payload.root}, got {draft.root}"
        )


def _check_release(release: Release, payload: Payload, release_sha256: str) -> None:
    """Compare the container's ``release.json`` with the signed one, byte for byte."""
    _check_root(release, payload)
    digest = hashlib.sha256(release.text).hexdigest()
    if digest != release_sha256:
        raise PayloadMismatch(
            f"{payload.target}: expected a release.json with sha256 {release_sha256}, got {digest}"
        )
