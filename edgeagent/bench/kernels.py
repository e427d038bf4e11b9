"""Cold matrix-vector products: how near to the memory's bandwidth, and what skipping zeros saves.

A matrix of the `2b4t` shape fits the cache of a server, so many copies of it are laid end to end
and every run walks all of them: each copy comes from memory.  Two threads take one half of the
stack each, as the engine's threads take halves of a matrix, without its barriers between matrices
(the whole-model figures have those).

A figure is the median of rounds; every round does all cases once, a read of as many bytes with the
bandwidth probe before them, so that a slow moment of the machine hits all.  GB/s counts the bytes
that a case has to read: with zeros only the lines that are left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent import _core
from edgeagent.bench import machine
from edgeagent.bench.bandwidth import Probe
from edgeagent.bench.figures import Series
from edgeagent.bench.synthetic import Report
from edgeagent.convert.pack import PANEL_OUTPUTS, pack_input_major, pack_output_major

#: (out, in) of gate and up, and of down, at 2b4t.
SHAPES = ((6912, 2560), (2560, 6912))
#: Zeros at down_proj, besides none at all with every channel listed and none with no list.
ZEROS = (0.0, 0.5, 0.8, 0.9, 0.95)
STACK_BYTES = 256 << 20  # eight times the last-level cache of the machine of the first results
X_MAX = 127
F16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is timed: `run` does it once and reads `n_bytes` of `dense_bytes`."""

    op: str
    shape: tuple[int, int]
    threads: int
    zeros: float | None
    copies: int
    n_bytes: int
    dense_bytes: int
    run: Callable[[], object]

    @property
    def name(self) -> str:
        """Return what distinguishes this case from all others."""
        zeros = "dense" if self.zeros is None else f"{self.zeros:g}"
        return f"{self.op} {self.shape[0]}x{self.shape[1]} {self.threads} {zeros}"


class Stack:
    """Copies of one random matrix, in both orientations, and one input vector."""

    def __init__(self, shape: tuple[int, int], stack_bytes: int) -> None:
        rng = np.random.default_rng(0)
        self.shape = shape
        trits = rng.integers(-1, 2, shape, np.int8)
        rows, lines = pack_output_major(trits), pack_input_major(trits)
        self.copies = max(2, stack_bytes // lines.nbytes)
        self.rows = np.concatenate([rows] * self.copies)
        self.lines = np.concatenate([lines] * self.copies)
        self.x = rng.integers(1, X_MAX + 1, shape[1]).astype(np.int8)

    def halves(self, n: int, threads: int) -> list[slice]:
        """Split `n` into one contiguous part a thread."""
        return [slice(n * t // threads, n * (t + 1) // threads) for t in range(threads)]

    def cases(self, kernels: _core.Kernels, pool: ThreadPoolExecutor, threads: int) -> list[Case]:
        """Return the dense cases of this shape and, for down_proj's, those with zeros."""
        found = [self._rows_case(kernels, pool, threads), self._lines_case(kernels, pool, threads)]
        if self.shape == SHAPES[1]:
            found += [self._lines_case(kernels, pool, threads, zeros) for zeros in ZEROS]
        return found

    def _rows_case(self, kernels: _core.Kernels, pool: ThreadPoolExecutor, threads: int) -> Case:
        y, x = np.empty(len(self.rows), np.int32), self.x.data
        calls = [
            partial(kernels.gemv_rows, self.rows[part].data, x, y[part].data)
            for part in self.halves(len(y), threads)
        ]

        n_bytes = self.rows.nbytes
        return Case(
            "gemv_rows",
            self.shape,
            threads,
            None,
            self.copies,
            n_bytes,
            n_bytes,
            partial(_together, pool, calls),
        )

    def _lines_case(
        self,
        kernels: _core.Kernels,
        pool: ThreadPoolExecutor,
        threads: int,
        zeros: float | None = None,
    ) -> Case:
        y = np.empty(len(self.lines) * PANEL_OUTPUTS, np.int32)
        x, live, share = self.x, None, 1.0
        if zeros is not None:
            keep = np.random.default_rng(1).permutation(len(x))[: round(len(x) * (1 - zeros))]
            live = np.sort(keep).astype(np.uint32).data
            x = np.where(np.isin(np.arange(len(x)), keep), x, 0).astype(np.int8)
            share = len(keep) / len(x)
        calls = [
            partial(
                kernels.gemv_cols,
                self.lines[part].data,
                x.data,
                y[part.start * PANEL_OUTPUTS : part.stop * PANEL_OUTPUTS].data,
                live,
            )
            for part in self.halves(len(self.lines), threads)
        ]
        dense = self.lines.nbytes
        return Case(
            "gemv_cols",
            self.shape,
            threads,
            zeros,
            self.copies,
            round(dense * share),
            dense,
            partial(_together, pool, calls),
        )


def _together(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], object]]) -> None:
    """Do all calls at once, the first one on this thread."""
    others = [pool.submit(call) for call in calls[1:]]
    calls[0]()
    for other in others:
        other.result()


def head_case(kernels: _core.Kernels, stack_bytes: int) -> Case:
    """Return the full float16 head of 2b4t, as far as it fills the stack."""
    hidden = 2560
    n_rows = stack_bytes // (hidden * F16_BYTES)
    rng = np.random.default_rng(0)
    rows: NDArray[np.uint16] = (
        rng.standard_normal((n_rows, hidden), np.float32).astype(np.float16).view(np.uint16)
    )
    x, y = rng.standard_normal(hidden, np.float32), np.empty(n_rows, np.float32)
    run = partial(kernels.dot_f16, rows.data, x.data, y.data)
    return Case("dot_f16", (n_rows, hidden), 1, None, 1, rows.nbytes, rows.nbytes, run)


def _timed(case: Case) -> float:
    began_s = time.perf_counter()
    case.run()
    return (time.perf_counter() - began_s) / case.copies


def _figures(cases: Sequence[Case], times: Series, bandwidth: dict[int, float]) -> list[Any]:
    dense = {
        (c.shape, c.threads): times.median(c.name)
        for c in cases
        if c.op == "gemv_cols" and c.zeros is None
    }
    out = []
    for case in cases:
        seconds = times.median(case.name)
        base = dense.get((case.shape, case.threads))
        if seconds is None:
            raise RuntimeError("a case was never run")
        rate = case.n_bytes / case.copies / seconds / 1e9
        out.append(
            {
                "op": case.op,
                "shape": list(case.shape),
                "threads": case.threads,
                "zeros": case.zeros,
                "us": round(seconds * 1e6, 2),
                "gb_s": round(rate, 2),
                "bandwidth_gb_s": round(bandwidth[case.threads], 2),
                "of_bandwidth": round(rate / bandwidth[case.threads], 3),
                "over_dense": round(base / seconds, 3) if base and case.zeros is not None else None,
                "ideal_over_dense": round(case.dense_bytes / case.n_bytes, 3),
                "spread_us": times.summary(9)[case.name],
            }
        )
    return out


def measure(
    kernel: str | None,
    threads: Sequence[int],
    repetitions: int,
    report: Report,
    stack_bytes: int = STACK_BYTES,
) -> dict[str, Any]:
    """Measure every case in turn, `repetitions` times; return the result's document."""
    facts, kernels = machine.describe(), _core.Kernels(kernel)
    times, probe = Series(), Probe(stack_bytes)
    with ThreadPoolExecutor(max(threads)) as pool:
        stacks = [Stack(shape, stack_bytes) for shape in SHAPES]
        cases = [c for s in stacks for n in threads for c in s.cases(kernels, pool, n)]
        cases.append(head_case(kernels, stack_bytes))
        for case in cases:
            case.run()
        for turn in range(repetitions):
            report(f"{kernels.name}: round {turn + 1} of {repetitions}")
            for n in {1, *threads}:
                times.add(**{f"bandwidth {n}": probe.read(n)})
            for case in cases:
                times.add(**{case.name: _timed(case)})
    probe.close()
    bandwidth = {n: times.median(f"bandwidth {n}") or 0.0 for n in {1, *threads}}
    return {
        "bench": "kernels",
        **facts,
        "kernel": kernels.name,
        "repetitions": repetitions,
        "stack_bytes": stack_bytes,
        "bandwidth_gb_s": {str(n): round(rate, 2) for n, rate in bandwidth.items()},
        "figures": _figures(cases, times, bandwidth),
    }
