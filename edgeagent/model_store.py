"""Which model runs: the store of updates, with the configured model beneath it."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from edgeagent.engines import WayBack
from ota.device.store import Store
from ota.errors import UpdateError

log = logging.getLogger(__name__)


class ModelStore:
    """`ota.device.store.Store`, as `edgeagent.engines` wants it."""

    def __init__(self, state_dir: Path, bundled_dir: Path, soak_s: float) -> None:
        self.store = Store(state_dir, bundled_dir)
        try:
            self.store.recover()  # an update in place that a power cut ended
        except UpdateError as err:
            log.error("store.not_recovered code=%s reason=%r", err.code, str(err))
        self._bundled_dir = bundled_dir
        self._file = Path(state_dir) / "models" / "store.json"
        self._soak_s = soak_s

    def active(self) -> Path:
        """Return the directory of the model to run; the configured one when the store fails."""
        try:
            return self.store.active()
        except UpdateError as err:
            log.error("store.unreadable reason=%r", str(err))
            return self._bundled_dir

    def is_fresh(self) -> bool:
        """Whether the active model was committed within the soak time, by the file's own clock."""
        try:
            age_s = time.time() - self._file.stat().st_mtime
        except OSError:
            return False  # nothing was ever committed
        return age_s < self._soak_s and self.is_installed()

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

    def revert(self, reason: str) -> None:
        """Give up the active model for the one before it."""
        try:
            self.store.revert(reason)
        except UpdateError as err:
            log.error("store.not_reverted reason=%r", str(err))
