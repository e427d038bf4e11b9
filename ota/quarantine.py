"""Models that were given up on a device: what is remembered of each, and what that forbids.  Pure.

What failed here was a pair, the model that ran and the one that came; both are kept, with when and
why.  What is refused is the result, whatever it would start from: its bytes are the same.  It is
refused up to the counter that it had: the same bytes released again with a higher one are a new,
signed decision of who publishes (the health suite of a release may be corrected without its model),
and get one more trial.  Somebody at the device, or the fleet's operator, may lift it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ota.release import is_sha256, short_root

MAX_ENTRIES = 64  # oldest dropped first; the counter still refuses what was once committed
MAX_REASON_CHARS = 200
MIN_PREFIX_CHARS = 8  # of a root that somebody types
EVERYTHING = "all"


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Why a model is not tried here again."""

    base: str | None = None
    """The root of the model that it came to replace."""
    version: str = ""
    counter: int | None = None
    """Of its release; None: not known, and so every counter is refused."""
    code: str = ""
    """Of ``ota.reasons``."""
    reason: str = ""
    time_s: int | None = None
    """When, by this device's clock: Unix time."""

    def refuses(self, counter: int) -> bool:
        """Say whether a release of the same bytes with this counter is refused."""
        return self.counter is None or counter <= self.counter


Quarantine = Mapping[str, GivenUp]
"""By the root of the result, the oldest first."""


def with_entry(quarantine: Quarantine, root: str, entry: GivenUp) -> dict[str, GivenUp]:
    """Return the quarantine with one more, as the newest."""
    kept = {other: each for other, each in quarantine.items() if other != root}
    return dict(list({**kept, root: entry}.items())[-MAX_ENTRIES:])


def selected(quarantine: Quarantine, what: str) -> list[str]:
    """Return the roots that ``what`` names: ``all``, a version, a root or how one begins."""
    is_prefix = len(what) >= MIN_PREFIX_CHARS
    return [
        root
        for root, entry in quarantine.items()
        if what == EVERYTHING
        or (what and what == entry.version)
        or (is_prefix and root.startswith(what))
    ]


def nothing_selected(quarantine: Quarantine, what: str) -> str:
    """Return the line for somebody whose ``what`` names nothing."""
    if not quarantine:
        return f"{what}: nothing is in quarantine here"
    known = ", ".join(
        f"{entry.version or 'unknown'} ({short_root(root)})" for root, entry in quarantine.items()
    )
    return f"{what}: expected all, or a version or root in quarantine, which are: {known}"


def listed(quarantine: Quarantine, limit: int = MAX_ENTRIES) -> list[dict[str, Any]]:
    """Return the newest entries, JSON-ready, the oldest of them first."""
    return [{"root": root, **asdict(entry)} for root, entry in list(quarantine.items())[-limit:]]


def to_fields(quarantine: Quarantine) -> dict[str, Any]:
    """Return what `parse` reads."""
    return {root: asdict(entry) for root, entry in quarantine.items()}


def parse(fields: Any) -> dict[str, GivenUp] | None:
    """Read a quarantine; None where it is none.

    An entry may be a reason alone; then nothing else is known of it.
    """
    if not isinstance(fields, dict):
        return None
    return {str(root): _entry(value) for root, value in list(fields.items())[-MAX_ENTRIES:]}


def _entry(value: Any) -> GivenUp:
    if not isinstance(value, dict):
        return GivenUp(reason=str(value)[:MAX_REASON_CHARS])
    base = value.get("base")
    return GivenUp(
        base if is_sha256(base) else None,
        _text(value.get("version")),
        _number(value.get("counter")),
        _text(value.get("code")),
        _text(value.get("reason")),
        _number(value.get("time_s")),
    )


def _text(value: Any) -> str:
    return value[:MAX_REASON_CHARS] if isinstance(value, str) else ""


def _number(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
