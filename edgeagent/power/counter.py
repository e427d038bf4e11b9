"""Energy counters that wrap: from a register that goes round to joules that only grow.

A RAPL register counts microjoules up to ``max_energy_range_uj`` and starts again at zero.  One wrap
between two readings is seen as a smaller value.  Two wraps cannot be told from one, so a reading
that comes so late that two were possible is refused: it returns ``None`` and the counting starts
again from there.  Totals begin at the register's own value, so that a new counter on the same
register goes on where the old one stopped, as long as the register has not wrapped.
"""

from __future__ import annotations

# No single package of a machine that runs this agent draws more; it bounds how long a counter may
# go unread.  The usual range of 262 kJ then lasts 524 s, far above any sampling period of ours.
MAX_POWER_W = 500.0

MICROJOULES = 1e-6


class EnergyCounter:
    """One wrapping register; feed it every reading."""

    __slots__ = ("_last_s", "_last_uj", "_range_uj", "_wrapped_uj")

    def __init__(self, range_uj: int | None) -> None:
        """Count a register that wraps after ``range_uj``; ``None`` is one that never wraps."""
        if range_uj is not None and range_uj <= 0:
            raise ValueError(f"range_uj: expected a positive number, got {range_uj}")
        self._range_uj = range_uj
        self._last_s = 0.0
        self._last_uj: int | None = None
        self._wrapped_uj = 0

    def add(self, time_s: float, register_uj: int) -> float | None:
        """Take a reading and return joules, from an origin that means nothing.

        Returns:
            ``None`` when more than one wrap may have happened since the last reading, or when a
            counter that never wraps fell: the energy in between is not known.

        Raises:
            ValueError: the register is negative, which no counter is.
        """
        if register_uj < 0:
            raise ValueError(f"register_uj: expected a count of microjoules, got {register_uj}")
        last_uj, last_s = self._last_uj, self._last_s
        self._last_uj, self._last_s = register_uj, time_s
        if last_uj is not None and self._is_lost(last_uj, register_uj, time_s - last_s):
            self._wrapped_uj = 0
            return None
        if last_uj is not None and register_uj < last_uj and self._range_uj is not None:
            self._wrapped_uj += self._range_uj
        return (self._wrapped_uj + register_uj) * MICROJOULES

    def _is_lost(self, last_uj: int, register_uj: int, elapsed_s: float) -> bool:
        """Return whether the energy between two readings is ambiguous."""
        if self._range_uj is None:
            return register_uj < last_uj
        return elapsed_s * MAX_POWER_W >= self._range_uj * MICROJOULES
