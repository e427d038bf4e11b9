"""The cold products: every byte of the stack once, and what zeros leave of it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgeagent import _core
from edgeagent.bench import kernels as bench

SHAPE = (640, 384)  # whole blocks of every orientation


def cases_of(threads, monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", (None, SHAPE))
    pool = ThreadPoolExecutor(max(threads))
    return bench.shape_cases(SHAPE, _core.Kernels(), pool, threads, 1 << 18)


def outputs(case):
    """What each call of a case wrote, once a copy where copies share their outputs."""
    calls = case.run.args[1]
    if case.op.startswith("channels"):
        return [np.asarray(call.args[2]) for call in calls]
    return [np.concatenate([np.asarray(call.args[2]) for call in calls]).reshape(case.copies, -1)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_all_copies_are_multiplied_whatever_the_threads(threads, monkeypatch):
    trits = np.random.default_rng(0).integers(-1, 2, SHAPE, np.int8).astype(np.int32)
    x = np.random.default_rng(0).integers(1, 128, SHAPE[1]).astype(np.int32)
    want = trits @ x
    for case in cases_of([threads], monkeypatch):
        if case.zeros is None:
            case.run()
            for got in outputs(case):
                assert (got.reshape(-1, got.shape[-1])[:, : len(want)] == want).all(), case.name


def test_zeros_leave_their_share_of_bytes(monkeypatch):
    cases = cases_of([1], monkeypatch)
    assert len({case.name for case in cases}) == len(cases) == 5 + len(bench.ZEROS)
    for case in cases:
        case.run()
        assert case.n_bytes / case.dense_bytes == pytest.approx(1 - (case.zeros or 0), abs=0.01)


def test_a_result_has_every_case_with_its_roofline(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", ((256, 128), (256, 384)))
    result = bench.measure(None, [1, 2], 1, lambda _: None, stack_bytes=1 << 18)
    figures = result["figures"]
    assert len(figures) == 2 * (5 + 5 + len(bench.ZEROS)) + 1
    assert all(f["us"] > 0 and f["bandwidth_gb_s"] > 0 for f in figures)
    assert {f["ideal_over_dense"] for f in figures if f["zeros"] == 0.5} == {2.0}
