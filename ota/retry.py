"""Which failures are worth another try, when, and how often.  Pure.

Every code of ``ota.errors`` that names a moment to come back belongs to one class; a class has a
first wait, a longest wait and a budget.  Waits double and are jittered, so that a fleet that failed
together does not come back together.  After the budget the answer is None: only something new (a
notice, an operator, a restart of the agent) starts it again.  Cancelling always wins, and a newer
release starts with a fresh budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from ota.reasons import REASONS, RetryClass


@dataclass(frozen=True, slots=True)
class Rule:
    """Waits of a class."""

    first_s: float
    longest_s: float
    budget: int | None
    """How many tries in a row; None: as long as it takes, at the longest wait."""


RULES: dict[RetryClass, Rule] = {
    RetryClass.NETWORK: Rule(30.0, 3600.0, None),  # an uplink may be away for days
    RetryClass.MISSING: Rule(60.0, 6 * 3600.0, 12),  # about two days of looking
    RetryClass.SPACE: Rule(3600.0, 24 * 3600.0, 14),  # two weeks
    RetryClass.DISK: Rule(60.0, 6 * 3600.0, 8),
    RetryClass.TRUST: Rule(600.0, 24 * 3600.0, 14),
    RetryClass.CONDITION: Rule(300.0, 3600.0, None),
    RetryClass.LOCAL: Rule(10.0, 60.0, 30),
    RetryClass.NEVER: Rule(0.0, 0.0, 0),
}

CLASSES: dict[str, RetryClass] = {code: reason.retry for code, reason in REASONS.items()}
"""By code; one that is not there is ``NEVER``."""


def class_of(code: str) -> RetryClass:
    """Return the class of a code of ``ota.errors``."""
    return CLASSES.get(code, RetryClass.NEVER)


def retry_after_s(code: str, attempt: int, draw: float) -> float | None:
    """Return how long to wait before the next try, or None: not again by itself.

    Args:
        code: of the failure
        attempt: how often in a row it has failed so, from 1
        draw: in [0, 1), the jitter; the wait is between half and the whole of its step
    """
    rule = RULES[class_of(code)]
    if rule.budget is not None and attempt > rule.budget:
        return None
    step = min(rule.longest_s, rule.first_s * 2.0 ** min(attempt - 1, 32))
    return step * (0.5 + 0.5 * draw)


def uncounted_after_s(code: str, draw: float) -> float | None:
    """Return how long to wait when tries cannot be counted: the disk does not even take that.

    Then no budget ends it, so it is the longest wait from the first time on.
    """
    rule = RULES[class_of(code)]
    return None if rule.budget == 0 else rule.longest_s * (0.5 + 0.5 * draw)
