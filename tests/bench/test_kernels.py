"""The cold products: every byte of the stack once, and what zeros leave of it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgeagent import _core
from edgeagent.bench import kernels as bench
from edgeagent.convert.pack import unpack


@pytest.fixture(scope="module")
def stack():
    return bench.Stack((512, 384), 1 << 18)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_all_copies_are_multiplied_whatever_the_threads(stack, threads):
    want = unpack(stack.rows, 512, 384).astype(np.int32) @ stack.x
    with ThreadPoolExecutor(threads) as pool:
        for case in stack.cases(_core.Kernels(), pool, threads):
            case.run()
            calls = case.run.args[1]
            got = np.concatenate([np.asarray(call.args[2]) for call in calls])
            assert (got == np.tile(want, stack.copies)).all(), case.name


def test_zeros_leave_their_share_of_bytes(stack, monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", (None, stack.shape))
    with ThreadPoolExecutor(1) as pool:
        cases = stack.cases(_core.Kernels(), pool, 1)
    assert len({case.name for case in cases}) == len(cases) == 2 + len(bench.ZEROS)
    for case in cases:
        case.run()
        assert case.n_bytes / case.dense_bytes == pytest.approx(1 - (case.zeros or 0), abs=0.01)


def test_a_result_has_every_case_with_its_roofline(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", ((256, 128), (256, 384)))
    result = bench.measure(None, [1, 2], 1, lambda _: None, stack_bytes=1 << 18)
    figures = result["figures"]
    assert len(figures) == 2 * (2 + 2 + len(bench.ZEROS)) + 1
    assert all(f["us"] > 0 and f["bandwidth_gb_s"] > 0 for f in figures)
    assert {f["ideal_over_dense"] for f in figures if f["zeros"] == 0.5} == {2.0}
