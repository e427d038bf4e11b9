"""One shape in several number formats in the same engine, side by side.

A format is a row of `FORMATS`.  Dense rows are packed for an engine that skips nothing; the last is
packed, and computed, so that zeros and closed gates are skipped.  Each has its size, the time of a
token, the bytes that it moves and, where the board has a sensor, its joules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeagent.bench import machine
from edgeagent.bench.bandwidth import Probe
from edgeagent.bench.energy import Joules
from edgeagent.bench.figures import Series, roofline
from edgeagent.bench.subject import Subject, decode, traffic
from edgeagent.bench.synthetic import Report
from edgeagent.bench.whole import Plan

#: From a format's kind of weights to its model directory.
MakeModel = Callable[[str], Path]


@dataclass(frozen=True, slots=True)
class Format:
    """A number format of the seven projections; `bits` a weight as they are counted on paper."""

    name: str
    weights: str  # what the model directory holds: a key for `MakeModel`
    bits: float
    zero_skip: bool


#: What `make_model` is asked for when the trits themselves are wanted.
TERNARY = "ternary"
#: log2(3) bits are in a trit, whatever the packing spends on it.
TRIT_BITS = 1.585
FORMATS = (
    Format("f16", "f16", 16, zero_skip=False),
    Format("int8", "int8", 8, zero_skip=False),
    Format("binary", "binary", 1, zero_skip=False),
    Format("ternary dense, 2 bit", "lines", TRIT_BITS, zero_skip=False),
    Format("ternary dense, base 3", "tiles", TRIT_BITS, zero_skip=False),
    Format("ternary zero-skip", TERNARY, TRIT_BITS, zero_skip=True),
)


class Row:
    """One format, loaded and ready to be measured in turn with the others."""

    def __init__(self, form: Format, path: Path, plan: Plan) -> None:
        self._plan = replace(plan, zero_skip=form.zero_skip)
        self.form = form
        self.subject = Subject(path, context=plan.context, kernel=plan.kernel, kv_bits=plan.kv_bits)
        self._session = self.subject.session(plan.threads, form.zero_skip)
        self.series = Series()
        self.traffic: dict[str, Any] = {}

    def decode(self) -> int:
        """Measure one decode; return its tokens."""
        plan = self._plan
        got = decode(self._session, self.subject.prompt(plan.past), plan.decode_tokens)
        ms, head_ms = (got[key] / plan.decode_tokens * 1e3 for key in ("seconds", "head_seconds"))
        self.series.add(tok_s=got["tok_s"], ms=ms, layers_ms=ms - head_ms)
        self.traffic = traffic(self.subject, self._session, plan.past, plan.decode_tokens)
        return plan.decode_tokens

    def figures(self, bandwidth_gb_s: float) -> dict[str, Any]:
        """Return the row of the table."""
        tok_s, ms = self.series.median("tok_s"), self.series.median("ms")
        if tok_s is None or ms is None:
            raise RuntimeError("a row was never measured")
        n_bytes = self.traffic["bytes_per_token"]
        return {
            "format": self.form.name,
            "bits": self.form.bits,
            "model_mb": round(self.subject.release.n_bytes / 1e6, 1),
            "weights_mb": round(self.subject.core.ternary_bytes / 1e6, 2),
            "ms_per_token": round(ms, 3),
            "layers_ms": round(self.series.median("layers_ms") or 0.0, 3),
            "tok_s": round(tok_s, 2),
            "read_gb_s": round(n_bytes * tok_s / 1e9, 2),
            "roofline_tok_s": round(roofline(n_bytes, bandwidth_gb_s), 2),
            **self.traffic,
            **Joules().of(self.decode),
            "spread": self.series.summary(3),
        }


def measure(
    make_model: MakeModel, plan: Plan, report: Report, formats: Sequence[Format] = FORMATS
) -> dict[str, Any]:
    """Measure all formats in turn; return the result's document."""
    facts, probe = machine.describe(), Probe(plan.bandwidth_bytes)
    rows = [Row(form, make_model(form.weights), plan) for form in formats]
    for row in rows:
        row.decode()
        row.series = Series()  # that was the warm-up
    speed = Series()
    for turn in range(plan.repetitions):
        report(f"formats: round {turn + 1} of {plan.repetitions}")
        for row in rows:
            speed.add(gb_s=probe.read(plan.threads))
            row.decode()
    bandwidth = speed.median("gb_s") or 0.0
    probe.close()
    return {
        "bench": "formats",
        **facts,
        "kernel": rows[0].subject.core.kernel,
        "threads": plan.threads,
        "repetitions": plan.repetitions,
        "bandwidth_gb_s": round(bandwidth, 2),
        "formats": [row.figures(bandwidth) for row in rows],
    }
