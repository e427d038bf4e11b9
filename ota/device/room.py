"""Which payload, and where its result goes: a slot, or over the active model.

A slot is the better place, because the model before stays whole beside it.  Where there is no room
for one, the slot of the model *before* the active one gives its place up for a delta that leads
back to it; only where that is not enough the active slot itself is written over.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ota.device.journal import Journal
from ota.device.store import Store
from ota.errors import NoPayload, PayloadError, StorageError, StorageFull, UpdateError
from ota.storage import RESERVE_BYTES, Storage
from ota.trust import MAX_PAYLOAD_BYTES, Offer, Payload, choose_payload

PATCH_SHARE = 20
"""Room for an update in place, in lengths of its delta: a flip is about a byte there, and 30 bytes
in the patch, which knows both ways."""


@dataclass(frozen=True, slots=True)
class Room:
    """The disk, and what may be given up on it."""

    storage: Storage
    store: Store
    directory: Path
    """Where the payload goes: the same file system as the slots."""
    watch: Callable[[], None]
    """Called as work goes on; may raise to stop."""

    def choose(
        self,
        offer: Offer,
        payloads: list[Payload],
        base_root: str,
        journal: Journal,
        last: UpdateError | None,
    ) -> tuple[Payload, bool]:
        """Return the payload, and whether there is no room for a slot beside the active one.

        Args:
            offer: the release
            payloads: what is not struck out
            base_root: the active model
            journal: what an earlier worker chose
            last: what struck out the payload before

        Raises:
            NoPayload: there is none for this device.
            StorageFull: none fits.
        """
        for payload in payloads:
            if payload.sha256 == journal.payload_sha256:
                return payload, journal.in_place  # room was found when it was begun
        journal.in_place = False
        try:
            return self._fitting(offer, payloads, base_root), False
        except StorageFull:
            delta = self._patching(payloads, base_root)
            if delta is None:
                raise
            journal.in_place = True
            return delta, True
        except NoPayload as err:
            if isinstance(last, PayloadError):
                raise NoPayload(f"{err} (refused: {last})") from last
            raise

    def _free_bytes(self) -> int:
        return self.storage.free_bytes(self.directory) - RESERVE_BYTES

    def _fitting(self, offer: Offer, payloads: list[Payload], base_root: str) -> Payload:
        """Return the smallest payload that fits as a slot, if need be in the previous one's."""
        try:
            return choose_payload(offer, payloads, base_root, self._limit())
        except StorageFull:
            with suppress(StorageError):
                if self.store.shrink_previous(watch=self.watch):
                    return choose_payload(offer, payloads, base_root, self._limit())
            raise

    def _limit(self) -> int:
        return min(self._free_bytes(), MAX_PAYLOAD_BYTES)

    def _patching(self, payloads: list[Payload], base_root: str) -> Payload | None:
        """Return the delta with which the active slot can be written over, if there is room."""
        deltas = [each for each in payloads if each.base == base_root]
        if self.store.state().active != base_root or not deltas:
            return None
        payload = min(deltas, key=lambda each: each.length)
        return payload if self._free_bytes() >= payload.length * PATCH_SHARE else None
