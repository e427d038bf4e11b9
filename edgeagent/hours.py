"""A stretch of the day, as people write it."""

from __future__ import annotations

import re

from edgeagent.errors import ConfigError

DAY_MIN = 24 * 60
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def parse_window(text: str) -> tuple[int, int]:
    """Return the first minute of ``"22:00-05:30"`` and the one after its last.

    An empty text is the whole day.  A window may go over midnight.

    Raises:
        ConfigError: it is neither, or empty.
    """
    if not text:
        return 0, DAY_MIN
    match = _WINDOW.fullmatch(text)
    if match is None or match.group(1, 2) == match.group(3, 4):
        raise ConfigError(f"expected two times of day as 22:00-05:30, got {text!r}")
    hours = [int(part) for part in match.groups()]
    return 60 * hours[0] + hours[1], 60 * hours[2] + hours[3]
