"""Where the updater fetches from: the configured place, or a medium that somebody named once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeagent.config import BROKER, Update
from edgeagent.errors import ConfigError

MARK = Path("metadata") / "timestamp.json"
"""What every published repository has."""


class UpdateSource:
    """The choice; what is believed does not depend on it.

    A medium holds for the run that it was named for, and goes on holding while that run waits for a
    condition: by the next look of our own accord the stick may be gone.
    """

    def __init__(self, update: Update) -> None:
        self._update = update
        self._asked: Path | None = None
        self._held: Path | None = None

    def use(self, path: Path) -> None:
        """Take the next run's bytes from ``path``."""
        self._asked = path

    def fields(self, action: str, phase: str) -> dict[str, Any]:
        """Return what the updater is told besides the broker.

        Args:
            action: of the run
            phase: how the one before it ended
        """
        is_going_on = action == "poll" and phase == "gated"
        self._held = self._asked or (self._held if is_going_on else None)
        self._asked = None
        if self._held is not None:
            return {"directory": str(self._held)}
        source, ca_file = self._update.source, self._update.source_ca_file
        if source == BROKER:
            return {}
        if source.startswith("/"):
            return {"directory": source}
        tls = None if ca_file is None else {"ca_file": str(ca_file)}
        return {"http": {"url": source, "tls": tls}}


def medium(value: object) -> Path:
    """Return the repository that somebody at this machine names.

    Raises:
        ConfigError: there is none, or this user does not see it.
    """
    path = Path(value) if isinstance(value, str) else Path()
    if not path.is_absolute():
        raise ConfigError(f"expected the full path of a repository, got {value!r}")
    try:
        is_there = (path / MARK).is_file()
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}; the agent's user must read it") from err
    if not is_there:
        raise ConfigError(
            f"{path}: expected a published repository, found no {MARK}; is the medium mounted, and "
            "not below /home, which the service does not see?"
        )
    return path
