"""How long to rest so that the cores are busy for a given share of the time.  Pure."""

from __future__ import annotations

#: Slower than this nobody waits for: a board that hot answers `busy` instead.
MIN_DUTY = 0.05
#: A rest is cut into pieces, so that one long prefill block does not silence the engine.
MAX_REST_S = 2.0


def check_duty(duty: float) -> float:
    """Return `duty`, the share of the time that may be spent computing.

    Raises:
        ValueError: outside [MIN_DUTY, 1].
    """
    if not MIN_DUTY <= duty <= 1.0:
        raise ValueError(f"duty: expected {MIN_DUTY:g} to 1, got {duty:g}")
    return duty


def rest_s(busy_s: float, duty: float) -> float:
    """Return seconds of rest after `busy_s` of work: busy / (busy + rest) is `duty`."""
    return min(busy_s * (1.0 / duty - 1.0), MAX_REST_S)
