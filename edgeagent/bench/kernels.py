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

import math
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
from edgeagent.convert.pack import (
    BLOCK3_TRITS,
    PANEL_OUTPUTS,
    TILE_OUTPUTS,
    pack_channels3,
    pack_input_major,
    pack_output_major,
    pack_rows3,
    pack_tiles3,
)
from edgeagent.model.pages import HUGE_BYTES

#: (out, in) of gate and up, and of down, at 2b4t.
SHAPES = ((6912, 2560), (2560, 6912))
#: Zeros at down_proj, besides none at all with every channel listed and none with no list.
ZEROS = (0.0, 0.5, 0.8, 0.9, 0.95)
STACK_BYTES = 256 << 20  # eight times the last-level cache of the machine of the first results
X_MAX = 127
F16_BYTES = 2
#: What our own dense decode uses: what skipping has to beat.
DENSE_OP = "tiles base3"
Call = Callable[[], object]


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


def _aligned(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return memory that begins with a huge page, as a plane of a mapped file begins with a line.

    numpy's own begins 16 bytes behind a page: every line of a plane would lie in two of the cache.
    """
    raw = np.empty(math.prod(shape) + HUGE_BYTES, np.uint8)
    begin = -raw.ctypes.data % HUGE_BYTES
    return raw[begin : begin + math.prod(shape)].reshape(shape)


class Stack:
    """Copies of one random matrix in one orientation, and one input vector."""

    def __init__(self, shape: tuple[int, int], packed: NDArray[np.uint8], stack_bytes: int) -> None:
        self.shape = shape
        self.copies = max(2, stack_bytes // packed.nbytes)
        self.plane = _aligned((len(packed) * self.copies, *packed.shape[1:]))
        np.concatenate([packed] * self.copies, out=self.plane)
        self.x = np.random.default_rng(0).integers(1, X_MAX + 1, shape[1]).astype(np.int8)

    def case(
        self, op: str, calls: Sequence[Call], pool: ThreadPoolExecutor, zeros: float | None = None
    ) -> Case:
        """Return the case that does all `calls` at once, one a thread."""
        dense = self.plane.nbytes
        share = 1.0 if zeros is None else round(self.shape[1] * (1 - zeros)) / self.shape[1]
        run = partial(_together, pool, calls)
        return Case(
            op, self.shape, len(calls), zeros, self.copies, round(dense * share), dense, run
        )

    def parts(self, threads: int) -> list[slice]:
        """Split the stack into one contiguous part a thread."""
        n = len(self.plane)
        return [slice(n * t // threads, n * (t + 1) // threads) for t in range(threads)]

    def with_zeros(self, zeros: float) -> tuple[NDArray[np.int8], NDArray[np.uint32]]:
        """Return the input with this share of zeros, and the list of its other channels."""
        n = len(self.x)
        keep = np.sort(np.random.default_rng(1).permutation(n)[: round(n * (1 - zeros))])
        x = np.zeros_like(self.x)
        x[keep] = self.x[keep]
        return x, keep.astype(np.uint32)


def _row_case(stack: Stack, op: str, gemv: Any, pool: ThreadPoolExecutor, threads: int) -> Case:
    y = np.empty(len(stack.plane), np.int32)
    calls = [
        partial(gemv, stack.plane[part].data, stack.x.data, y[part].data)
        for part in stack.parts(threads)
    ]
    return stack.case(op, calls, pool)


def _panel_case(
    stack: Stack, op: str, gemv: Any, outputs: int, pool: ThreadPoolExecutor, threads: int
) -> Case:
    """Tiles or lines: the stack is one long plane of panels."""
    y = np.empty(len(stack.plane) * outputs, np.int32)
    calls = [
        partial(
            gemv,
            stack.plane[part].data,
            stack.x.data,
            y[part.start * outputs : part.stop * outputs].data,
        )
        for part in stack.parts(threads)
    ]
    return stack.case(op, calls, pool)


def _channel_case(
    stack: Stack, gemv: Any, pool: ThreadPoolExecutor, threads: int, zeros: float | None
) -> Case:
    """Threads take whole copies."""
    n_in, blocks = stack.shape[1], stack.plane.shape[1]
    x, live = (stack.x, None) if zeros is None else stack.with_zeros(zeros)
    shares = [
        range(stack.copies * t // threads, stack.copies * (t + 1) // threads)
        for t in range(threads)
    ]
    calls = [
        partial(
            gemv,
            stack.plane[share.start * n_in : share.stop * n_in].data,
            x.data,
            np.empty(blocks * BLOCK3_TRITS, np.int32).data,
            None if live is None else live.data,
            copies=len(share),
        )
        for share in shares
        if share
    ]
    return stack.case("channels base3", calls, pool, zeros)


def shape_cases(
    shape: tuple[int, int],
    kernels: _core.Kernels,
    pool: ThreadPoolExecutor,
    threads: Sequence[int],
    stack_bytes: int,
) -> list[Case]:
    """Return every orientation of one shape, dense, and channels with zeros for down_proj's."""
    trits = np.random.default_rng(0).integers(-1, 2, shape, np.int8)
    rows2, rows3, lines, tiles, channels = (
        Stack(shape, pack(trits), stack_bytes)
        for pack in (
            pack_output_major,
            pack_rows3,
            pack_input_major,
            pack_tiles3,
            pack_channels3,
        )
    )
    rows3_gemv = partial(kernels.gemv_rows, layout=2)
    found = []
    for n in threads:
        found += [
            _row_case(rows2, "rows 2bit", kernels.gemv_rows, pool, n),
            _row_case(rows3, "rows base3", rows3_gemv, pool, n),
            _panel_case(lines, "lines 2bit", kernels.gemv_cols, PANEL_OUTPUTS, pool, n),
            _panel_case(tiles, DENSE_OP, kernels.gemv_tiles, TILE_OUTPUTS, pool, n),
            _channel_case(channels, kernels.gemv_channels, pool, n, None),
        ]
        if shape == SHAPES[1]:
            gemv = kernels.gemv_channels
            found += [_channel_case(channels, gemv, pool, n, zeros) for zeros in ZEROS]
    return found


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
    dense = {(c.shape, c.threads): times.median(c.name) for c in cases if c.op == DENSE_OP}
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
        cases = [
            case
            for shape in SHAPES
            for case in shape_cases(shape, kernels, pool, threads, stack_bytes)
        ]
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
