"""Medians, spreads and the roofline: figures out of repeated measurements.  Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class Series:
    """Repeated measurements of figures, by name; every one is reported as a median and a spread."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, **figures: float | None) -> None:
        """Add one measurement of each figure; None is not one."""
        for name, value in figures.items():
            if value is not None:
                self._values.setdefault(name, []).append(value)

    def values(self, name: str) -> Sequence[float]:
        """Return all measurements of one figure, in order."""
        return self._values.get(name, [])

    def median(self, name: str) -> float | None:
        """Return the median of a figure, or None when it was never measured."""
        values = self.values(name)
        return statistics.median(values) if values else None

    def summary(self, digits: int = 3) -> dict[str, dict[str, Any]]:
        """Return median, smallest, largest and number of every figure."""
        return {name: spread(values, digits) for name, values in self._values.items()}


def spread(values: Iterable[float], digits: int = 3) -> dict[str, Any]:
    """Return median, smallest, largest and number of `values`."""
    held = list(values)
    return {
        "median": round(statistics.median(held), digits),
        "min": round(min(held), digits),
        "max": round(max(held), digits),
        "repetitions": len(held),
    }


def fraction(layers: Sequence[dict[str, int]], part: str, whole: str) -> float:
    """Return the sum of counter `part` over the sum of counter `whole`, over all layers."""
    total = sum(layer[whole] for layer in layers)
    return sum(layer[part] for layer in layers) / total if total else 0.0


def ternary_bytes(layers: Sequence[dict[str, int]], tokens: int) -> float:
    """Return the bytes of packed weights that were read a token."""
    read = sum(layer["weight_bytes"] - layer["weight_bytes_skipped"] for layer in layers)
    return read / tokens


def roofline(bytes_per_token: float, bandwidth_gb_s: float) -> float:
    """Return the tokens a second that this memory allows at this many bytes each."""
    return bandwidth_gb_s * 1e9 / bytes_per_token


def share_of(value: float | None, whole: float | None) -> float | None:
    """Return value / whole, or None when either is not known."""
    return None if value is None or not whole else value / whole


#: Bytes of an input of a head row: float16, five bits and a scale for 32, two bits; and the five
#: float32 numbers of a row (docs/formats.md, section 3a).
FULL_BYTES, SCAN_BYTES, REFINE_BYTES, ROW_BYTES = 2.0, 5 / 8 + 1 / 32, 0.25, 20


def head_bytes(vocab: int, hidden: int, counters: Mapping[str, int]) -> float:
    """Return the bytes of the LM head that were read, from a session's head counters."""
    full = (counters["full_scans"] * vocab + counters["rows_rescored"]) * FULL_BYTES * hidden
    scanned = counters["rows_scanned"] * (SCAN_BYTES * hidden + ROW_BYTES)
    return full + scanned + counters["rows_refined"] * REFINE_BYTES * hidden
