"""May a stage of an update begin now?  Pure: samples in, a decision and a time to ask again out.

The agent knows battery, heat, network, load and the local time; the operator sets limits; an absent
sample never holds an update back (a board without a battery has none).  Each stage is stopped by
what it costs: fetching by the network, staging by heat, energy and load, a trial by all but the
network.  Going back is never held back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ota.errors import ConfigError

DAY_MIN = 24 * 60
_RECHARGE_S = 1800.0
_COOL_S = 120.0
_IDLE_S = 60.0
_NETWORK_S = 900.0

RESUME_COOLER_C = 3.0
RESUME_CHARGE = 0.03
"""How far beyond its limit a value must be before a stage that was held back is tried again: a
board at the limit would else start and stop an updater with every sample."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What the device is like now; None: not known, or it has none."""

    battery: float | None = None
    """Charge, 0 to 1; None on mains, too."""
    is_charging: bool | None = None
    temperature_c: float | None = None
    is_metered: bool | None = None
    is_busy: bool | None = None
    """Somebody waits for an answer of the model."""
    minute: int | None = None
    """Minutes of the local day, 0 to 1439; None when the clock is not trusted."""
    is_throttled: bool | None = None
    """The board runs slower than it could, for heat or for want of power."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator of the device wants; the defaults hold nothing back but a flat battery."""

    min_battery: float = 0.3
    """Below it nothing begins, unless it charges."""
    max_temperature_c: float = 80.0
    may_use_metered: bool = True
    may_use_busy: bool = True
    window_from: int = 0
    """First minute of the local day at which an update may begin."""
    window_to: int = DAY_MIN
    """The minute at which it may no more; smaller than the first: over midnight."""
    may_use_throttled: bool = True


@dataclass(frozen=True, slots=True)
class Hold:
    """Why not now, and when to ask again."""

    reason: str
    """``battery``, ``temperature``, ``throttled``, ``metered``, ``busy`` or ``window``."""
    detail: str
    retry_after_s: float


FETCH, STAGE, TRIAL = "fetch", "stage", "trial"
CHECKS: dict[str, tuple[str, ...]] = {
    FETCH: ("window", "battery", "metered", "temperature"),
    STAGE: ("window", "battery", "temperature", "throttled", "busy"),
    TRIAL: ("battery", "temperature", "throttled", "busy"),
}
"""What is asked before each stage.  A trial is short, and nobody wants to wait a day for it."""


def decide(stage: str, samples: Samples, limits: Limits) -> Hold | None:
    """Return why ``stage`` may not begin now, or None if it may."""
    for name in CHECKS[stage]:
        hold = _DECISIONS[name](samples, limits)
        if hold is not None:
            return hold
    return None


def may_resume(stage: str, samples: Samples, limits: Limits) -> bool:
    """Say whether a stage that was held back is worth another try: clear of its limits.

    A stage of another version is always worth it: its updater decides again.
    """
    if stage not in CHECKS:
        return True
    strict = replace(
        limits,
        min_battery=min(1.0, limits.min_battery + RESUME_CHARGE),
        max_temperature_c=limits.max_temperature_c - RESUME_COOLER_C,
    )
    return decide(stage, samples, strict) is None


def _battery(samples: Samples, limits: Limits) -> Hold | None:
    if samples.battery is None or samples.is_charging or samples.battery >= limits.min_battery:
        return None
    detail = f"expected {limits.min_battery:.0%} charge, got {samples.battery:.0%}"
    return Hold("battery", detail, _RECHARGE_S)


def _temperature(samples: Samples, limits: Limits) -> Hold | None:
    if samples.temperature_c is None or samples.temperature_c <= limits.max_temperature_c:
        return None
    detail = f"expected up to {limits.max_temperature_c:g} C, got {samples.temperature_c:g}"
    return Hold("temperature", detail, _COOL_S)


def _throttled(samples: Samples, limits: Limits) -> Hold | None:
    if limits.may_use_throttled or not samples.is_throttled:
        return None
    return Hold("throttled", "expected a board at full speed", _COOL_S)


def _metered(samples: Samples, limits: Limits) -> Hold | None:
    if limits.may_use_metered or not samples.is_metered:
        return None
    return Hold("metered", "expected a link that is not metered", _NETWORK_S)


def _busy(samples: Samples, limits: Limits) -> Hold | None:
    if limits.may_use_busy or not samples.is_busy:
        return None
    return Hold("busy", "expected an idle model", _IDLE_S)


def _window(samples: Samples, limits: Limits) -> Hold | None:
    start, end = limits.window_from, limits.window_to
    if samples.minute is None:
        return None
    open_min = (end - start - 1) % DAY_MIN + 1  # from 1 to a whole day
    if (samples.minute - start) % DAY_MIN < open_min:
        return None
    wait_min = (start - samples.minute) % DAY_MIN
    detail = f"expected {start // 60:02}:{start % 60:02} to {end // 60:02}:{end % 60:02}"
    return Hold("window", detail, 60.0 * wait_min)


_DECISIONS = {
    "battery": _battery,
    "temperature": _temperature,
    "throttled": _throttled,
    "metered": _metered,
    "busy": _busy,
    "window": _window,
}


def parse_samples(table: Any) -> Samples:
    """Read the samples of a message; unknown fields are ignored, wrong ones are not known."""
    known = table if isinstance(table, Mapping) else {}
    return Samples(
        _number(known.get("battery"), 0, 1),
        _flag(known.get("is_charging")),
        _number(known.get("temperature_c"), -100, 300),
        _flag(known.get("is_metered")),
        _flag(known.get("is_busy")),
        _minute(known.get("minute")),
        _flag(known.get("is_throttled")),
    )


def parse_limits(table: Any) -> Limits:
    """Read the limits of a configuration.

    Raises:
        ConfigError: a field is unknown or out of bounds.
    """
    if table is None:
        return Limits()
    names = {field.name for field in fields(Limits)}
    if not isinstance(table, Mapping) or not set(table) <= names:
        raise ConfigError(f"limits: expected only {sorted(names)}, got {table!r}")
    if not _are_valid({**asdict(Limits()), **table}):
        raise ConfigError(f"limits: expected a charge of 0 to 1, degrees, minutes, got {table!r}")
    return Limits(**table)


def _are_valid(table: Mapping[str, Any]) -> bool:
    known = (
        _number(table["min_battery"], 0, 1),
        _number(table["max_temperature_c"], -100, 300),
        _flag(table["may_use_metered"]),
        _flag(table["may_use_busy"]),
        _flag(table["may_use_throttled"]),
        _minute(table["window_from"]),
        DAY_MIN if table["window_to"] == DAY_MIN else _minute(table["window_to"]),
    )
    return None not in known


def _number(value: Any, low: float, high: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if low <= value <= high else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _minute(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < DAY_MIN else None
