"""Joules between two moments, from the samples taken meanwhile.

Two tracks are kept side by side, and never mixed in one answer, because they may not measure the
same thing:

    counter   the difference of a monotone energy counter: exact at its readings
    power     trapezoids under the sampled power; a gap longer than ``max_gap_s`` is not bridged

The counter is preferred.  A track is a list of points ``(time, joules so far, segment)``; where the
energy between two points is not known, the segment number grows, and no answer spans two segments.
An interval's ends are interpolated.  An end outside the samples is beyond the counter; the power
track holds its nearest power for at most ``max_hold_s`` and says for how long (``held_s``).  For an
exact answer about a short query, take one sample at each of its ends.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

from edgeagent.power.samples import Sample

# At one sample a second this is 17 minutes: more than the longest default query deadline (120 s),
# in about 200 KiB.
MAX_SAMPLES = 1024

# Three times the usual pace of an idle agent (telemetry.interval_s); what happened meanwhile in a
# longer gap is not known.
MAX_GAP_S = 30.0

# One missed sample or two; a board does not draw the same power for longer.
MAX_HOLD_S = 2.0

JOULES_PER_WH = 3600.0


@dataclass(frozen=True, slots=True)
class Energy:
    """The energy of an interval, or why it is not known."""

    joules: float | None
    source: str | None = None
    reason: str | None = None  # one line; present exactly when ``joules`` is None
    held_s: float = 0.0  # the part of the interval that no sample covers

    def per_token(self, tokens: int) -> float | None:
        """Return joules a token, or ``None`` when there is no energy or no token."""
        if self.joules is None or tokens <= 0:
            return None
        return self.joules / tokens


@dataclass(frozen=True, slots=True)
class Total:
    """Everything a meter has seen since it was made."""

    joules: float
    known_s: float  # the time in which these joules were measured
    source: str | None

    @property
    def watt_hours(self) -> float:
        """The same energy in the unit of electricity bills."""
        return self.joules / JOULES_PER_WH


@dataclass(frozen=True, slots=True)
class _Point:
    """A moment on a track."""

    time_s: float
    value: float  # what the sensor said: counter joules, or watts
    joules: float  # since the track began, gaps left out
    segment: int
    source: str | None


class _Track:
    """Energy as a function of time, from one kind of source."""

    def __init__(self, name: str, max_samples: int) -> None:
        self.name = name
        self.points: deque[_Point] = deque(maxlen=max_samples)
        self.absent = f"no {name} sample yet"
        self.known_s = 0.0

    @property
    def last(self) -> _Point | None:
        return self.points[-1] if self.points else None

    def extend(self, time_s: float, value: float, source: str | None, step_j: float | None) -> None:
        """Add a point ``step_j`` joules after the last one; ``None`` starts a new segment."""
        joules, segment = 0.0, 0
        if (last := self.last) is not None:
            joules, segment = last.joules, last.segment
            if step_j is None or source != last.source:
                segment += 1
            else:
                joules += step_j
                self.known_s += time_s - last.time_s
        self.points.append(_Point(time_s, value, joules, segment, source))

    def between(self, t0_s: float, t1_s: float) -> Energy:
        """Return the energy of the part of an interval that lies within the points."""
        start_j, start = self._at(t0_s)
        end_j, end = self._at(t1_s)
        if start is None or end is None or start.segment != end.segment:
            return Energy(None, reason=f"a gap in the {self.name} samples between start and end")
        # Interpolating two large totals may leave the difference a rounding error below zero.
        return Energy(max(0.0, end_j - start_j), end.source)

    def beyond(self, t0_s: float, t1_s: float, max_hold_s: float) -> str | None:
        """Say in one line why an interval reaches too far beyond the points, or ``None``."""
        if not self.points:
            return self.absent
        before_s = self.points[0].time_s - t0_s
        if before_s > max_hold_s:
            return f"the first {self.name} sample kept is {before_s:.1f} s after the start"
        after_s = t1_s - self.points[-1].time_s
        if after_s > max_hold_s:
            return f"the last {self.name} sample is {after_s:.1f} s before the end"
        return None

    def _at(self, time_s: float) -> tuple[float, _Point | None]:
        """Interpolate the joules at ``time_s``, and name the point before, if not in a gap."""
        points = self.points
        index = bisect_right(points, time_s, key=lambda p: p.time_s)
        left = points[max(0, index - 1)]
        if index in (0, len(points)) or left.time_s == time_s:
            return left.joules, left
        right = points[index]
        if left.segment != right.segment:
            return left.joules, None
        share = (time_s - left.time_s) / (right.time_s - left.time_s)
        return left.joules + share * (right.joules - left.joules), left


class EnergyMeter:
    """Samples in, joules out; keeps a bounded history."""

    def __init__(
        self,
        *,
        max_samples: int = MAX_SAMPLES,
        max_gap_s: float = MAX_GAP_S,
        max_hold_s: float = MAX_HOLD_S,
    ) -> None:
        self._max_gap_s = max_gap_s
        self._max_hold_s = max_hold_s
        self._counter = _Track("energy counter", max_samples)
        self._power = _Track("power", max_samples)
        self._last: Sample | None = None

    def add(self, sample: Sample) -> None:
        """Take the next sample; one that is not newer than the last is ignored."""
        if self._last is not None and sample.time_s <= self._last.time_s:
            return
        self._add_counter(sample)
        self._add_power(sample)
        self._last = sample

    def energy_between(self, t0_s: float, t1_s: float) -> Energy:
        """Return the energy from ``t0_s`` to ``t1_s``, from the better source that covers it."""
        if t1_s < t0_s:
            return Energy(None, reason=f"the end {t1_s:.3f} s is before the start {t0_s:.3f} s")
        counter = self._from_counter(t0_s, t1_s)
        if counter.joules is not None:
            return counter
        power = self._from_power(t0_s, t1_s)
        if power.joules is None and self._counter.points and not self._power.points:
            return counter
        return power

    def total(self) -> Total:
        """Return everything since the start, from the source that covered more time."""
        track = max(self._counter, self._power, key=lambda t: t.known_s)
        if track.last is None:
            return Total(0.0, 0.0, None)
        return Total(track.last.joules, track.known_s, track.last.source)

    def _from_counter(self, t0_s: float, t1_s: float) -> Energy:
        problem = self._counter.beyond(t0_s, t1_s, 0.0)
        return Energy(None, reason=problem) if problem else self._counter.between(t0_s, t1_s)

    def _from_power(self, t0_s: float, t1_s: float) -> Energy:
        problem = self._power.beyond(t0_s, t1_s, self._max_hold_s)
        if problem:
            return Energy(None, reason=problem)
        first, last = self._power.points[0], self._power.points[-1]
        inside = self._power.between(t0_s, t1_s)
        if inside.joules is None:
            return inside
        before_s = max(0.0, min(first.time_s, t1_s) - t0_s)
        after_s = max(0.0, t1_s - max(last.time_s, t0_s))
        held_j = first.value * before_s + last.value * after_s
        return Energy(inside.joules + held_j, inside.source, None, before_s + after_s)

    def _add_counter(self, sample: Sample) -> None:
        track, now_j = self._counter, sample.energy_j
        if now_j is None:
            track.absent = sample.absent.get("energy_j", "no energy counter")
            return
        last, step_j = track.last, None
        if last is not None and now_j >= last.value:
            # After a reading without the counter it may have been restarted meanwhile.
            hole = self._last is not None and self._last.energy_j is None
            if not hole or sample.time_s - last.time_s <= self._max_gap_s:
                step_j = now_j - last.value
        track.extend(sample.time_s, now_j, sample.sources.get("energy_j"), step_j)

    def _add_power(self, sample: Sample) -> None:
        track, now_w = self._power, sample.power_w
        if now_w is None:
            track.absent = sample.absent.get("power_w", "no power sensor")
            return
        last, step_j = track.last, None
        if last is not None and sample.time_s - last.time_s <= self._max_gap_s:
            step_j = 0.5 * (last.value + now_w) * (sample.time_s - last.time_s)
        track.extend(sample.time_s, now_w, sample.sources.get("power_w"), step_j)
