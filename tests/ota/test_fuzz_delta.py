"""The quick version of ``make fuzz-delta``: the same cases, and always the same ones."""

from tests.ota.fuzz_delta import run


def test_broken_containers_are_refused_in_bounded_memory():
    counts = run(1500, 60, seed=1)
    assert counts["DeltaFormatError"] > 300
    assert counts["PayloadMismatch"] > 100, "the coder was never reached"
    assert counts["made planes"] > 50
