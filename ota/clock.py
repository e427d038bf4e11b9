"""Which time metadata is judged by, on a board whose clock may be anything.  Pure.

A board without a battery starts in 1970, a wrong server or a flat cell gives 2099, and a correction
jumps backwards.  TUF needs a time only to judge expiry; versions, thresholds and signatures hold
without one.  So the time is never below a *floor* (the newest moment that is known to have passed),
and never believed when it is absurdly far above it.

    reference = now     if floor <= now <= floor + MAX_AHEAD
              = floor   otherwise, and the clock is reported as untrusted
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

BUILD_TIME = datetime(2026, 11, 25, tzinfo=UTC)
"""When this code was written: no honest clock is before it.  Raised with each release."""
MAX_AHEAD = timedelta(days=5 * 365)  # the life of a root: nothing signed can be judged beyond it


@dataclass(frozen=True, slots=True)
class Reference:
    """The time to judge expiry by, and whether it is the clock's."""

    time: datetime
    is_trusted: bool


def reference_time(now: datetime, *known: datetime | None) -> Reference:
    """Return the time to judge expiry by.

    Args:
        now: what the clock says, in UTC
        known: moments that have certainly passed (persisted, or signed); None where there is none
    """
    floor = max([BUILD_TIME, *(moment for moment in known if moment is not None)])
    if floor <= now <= floor + MAX_AHEAD:
        return Reference(now, True)
    return Reference(floor, False)
