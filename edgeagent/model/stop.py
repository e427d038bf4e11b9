"""Stop strings in a stream of text pieces.  Pure."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Releases text only when it can no longer become part of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add `text`; return what may be shown, and whether a stop string was met.

        The stop string itself and everything after it is never shown.
        """
        held = self._held + text
        found = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self._held = ""
            return held[: min(found)], True
        keep = self._possible_start(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """Return what was held back; the stream is over."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stops):
                return n
        return 0
