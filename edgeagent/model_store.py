"""Which model runs: the store of updates, with the configured model beneath it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from edgeagent.engines import WayBack
from ota.device.store import Store
from ota.errors import UpdateError
from ota.quarantine import listed

log = logging.getLogger(__name__)

LISTED = 20
"""Entries of the quarantine in one answer: some kilobytes."""


class ModelStore:
    """`ota.device.store.Store`, as `edgeagent.engines` wants it."""

    def __init__(self, state_dir: Path, bundled_dir: Path, soak_s: float) -> None:
        self.store = Store(state_dir, bundled_dir)
        try:
            self.store.recover()  # an update in place that a power cut ended
        except UpdateError as err:
            log.error("store.not_recovered code=%s reason=%r", err.code, str(err))
        self._bundled_dir = bundled_dir
        self._soak_s = soak_s

    def active(self) -> Path:
        """Return the directory of the model to run; the configured one when the store fails."""
        try:
            return self.store.active()
        except UpdateError as err:
            log.error("store.unreadable reason=%r", str(err))
            return self._bundled_dir

    def is_fresh(self) -> bool:
        """Whether the active model became so within the soak time, by the wall clock."""
        try:
            age_s = self.store.age_s()
        except UpdateError as err:
            log.error("store.unreadable reason=%r", str(err))
            return False
        return age_s is not None and age_s < self._soak_s and self.is_installed()

    def is_installed(self) -> bool:
        """Whether the active model came by an update."""
        return self.active() != self._bundled_dir

    def way_back(self) -> WayBack:
        """Say how the model before the active one can be had again."""
        try:
            if not self.store.can_return():
                return WayBack.NONE
            if self.store.returns_by_delta():
                return WayBack.DELTA
            return WayBack.IN_PLACE if self.store.returns_in_place() else WayBack.SLOT
        except UpdateError as err:
            log.error("store.unreadable reason=%r", str(err))
            return WayBack.NONE

    def revert(self, reason: str, code: str) -> None:
        """Give up the active model for the one before it."""
        try:
            self.store.revert(reason, code)
        except UpdateError as err:
            log.error("store.not_reverted reason=%r", str(err))

    def quarantine(self) -> list[dict[str, Any]]:
        """Return what was given up here, the newest last."""
        try:
            return listed(self.store.state().quarantine, LISTED)
        except UpdateError as err:
            log.error("store.unreadable reason=%r", str(err))
            return []

    def forgive(self, what: str) -> list[dict[str, Any]]:
        """Let models be tried again; return what was known of them.

        Raises:
            UpdateError: There is none, or the store cannot be written; nothing has changed.
        """
        return self.store.forgive(what)
