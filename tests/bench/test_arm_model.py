"""The arithmetic behind the predictions for Arm boards."""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import arm_model as model
import arm_tables as tables

LINE = b"Trace 0: 0x7fa43f800100 [0000000001009331/%016x/00000001/00000201] main\n"


def log(*addresses):
    return [b"cpu: noise\n", *(LINE % address for address in addresses)]


def test_executions_are_counted_by_guest_address():
    assert model.executions(log(0x400, 0x404, 0x400)) == {0x400: 2, 0x404: 1}


def test_the_start_of_the_program_cancels_out():
    few = Counter({0x100: 5, 0x200: 64})
    many = Counter({0x100: 5, 0x200: 192, 0x204: 2})
    assert model.per_call(few, many, 2) == {0x200: 64, 0x204: 1}


def test_runs_of_different_programs_are_refused():
    with pytest.raises(ValueError, match="not the same program"):
        model.per_call(Counter({0x100: 2}), Counter({0x100: 1}), 1)


LISTING = """
kernels:\tfile format elf64-littleaarch64

0000000000000400 <f>:
     400:      \tmov\tx8, #0x10              // =16
     404:      \tldr\tq0, [x0], #0x10
     408:      \tsdot\tv1.4s, v0.16b, v2.16b
     40c:      \tb.ne\t0x404 <f+0x4>
     410:      \tcbz\tx1, 0x418 <f+0x18>
     414:      \tbl\t0x500 <memset>
     418:      \tret
     41c:      \tnop
"""


def test_a_loop_is_one_piece_and_a_branch_ahead_does_not_cut():
    listing = model.parse_listing(LISTING)
    assert listing[0x400] == "mov x8, #0x10"
    counts = {0x400: 1, 0x404: 9, 0x408: 9, 0x40C: 9, 0x410: 1, 0x414: 1, 0x418: 1, 0x41C: 1}
    found = model.pieces(counts, listing)
    assert [(len(piece.code), piece.runs) for piece in found] == [(3, 9), (3, 1), (1, 1), (1, 1)]
    assert found[0].code[0].startswith("ldr")
    assert found[1].code[-1] == "ret"


def test_a_loop_that_ran_once_still_ends_at_its_jump():
    counts = {0x404: 1, 0x408: 1, 0x40C: 1, 0x410: 1}
    assert [len(p.code) for p in model.pieces(counts, model.parse_listing(LISTING))] == [3, 1]


def test_llvm_mca_gets_no_address_and_no_call():
    code = ("cbz x1, 0x418 <f+0x18>", "adrp x0, 0x49c000 <x>", "bl 0x5 <f>", "tbl v0", "ret")
    text = model.mca_input([model.Piece(code, 1)])
    body = ["cbz x1, #0", "adrp x0, #0", "b #0", "tbl v0", "b #0"]
    assert text.splitlines() == ["# LLVM-MCA-BEGIN p0", *body, "# LLVM-MCA-END p0"]


def test_cycles_are_weighted_with_the_runs():
    parts = [model.Piece(("a",), 10), model.Piece(("b",), 2)]
    views = {"p1": (700, 100), "p0": (300, 100)}
    report = {
        "CodeRegions": [
            {"Name": name, "SummaryView": {"TotalCycles": c, "Iterations": n}}
            for name, (c, n) in views.items()
        ]
    }
    assert model.cycles_per_call(parts, report) == 10 * 3 + 2 * 7


BOARD = model.Board("board", "cpu", ghz=2.0, gb_s={1: 4.0, 4: 8.0})


@pytest.mark.parametrize(
    ("cycles", "bits", "threads", "seconds"),
    [
        (0.5, 2, 1, 0.25),  # computing: 1e9 * 0.5 / 2e9
        (0.5, 2, 4, 0.0625),  # computing, shared
        (0.1, 8, 1, 0.25),  # reading: 1e9 bytes at 4 GB/s
        (0.1, 8, 4, 0.125),  # reading: the four threads share the memory
    ],
)
def test_a_phase_takes_the_slower_of_computing_and_reading(cycles, bits, threads, seconds):
    phase = model.Phase("x", "k", 1_000_000_000, bits)
    assert model.phase_s(phase, cycles, BOARD, threads) == pytest.approx(seconds)
    computes = cycles == 0.5
    assert model.compute_bound([phase], {"k": cycles}, BOARD, threads) == float(computes)


def test_what_is_skipped_costs_nothing():
    whole = model.Phase("x", "k", 1000, 2)
    half = model.Phase("x", "k", 1000, 2, read=0.5)
    assert model.phase_s(half, 0.5, BOARD, 1) == model.phase_s(whole, 0.5, BOARD, 1) / 2


def test_a_token_is_the_sum_of_its_phases():
    phases = [model.Phase("a", "fast", 8_000_000, 8), model.Phase("b", "slow", 2_000_000, 2)]
    cycles = {"fast": 0.0, "slow": 1.0}
    assert model.token_s(phases, cycles, BOARD, 1) == pytest.approx(0.002 + 0.001)
    assert model.compute_bound(phases, cycles, BOARD, 1) == pytest.approx(1 / 3)


def test_the_2b4t_shape_has_its_published_number_of_weights():
    shape = next(shape for shape in tables.SHAPES if shape.name == "2b4t")
    assert sum(model.body(shape).values()) == 2_084_044_800


def figures():
    return {
        cpu.name: [
            {"kernel": op, "instructions": 1.0, "cycles": dict.fromkeys(cpu.mca, 0.1)}
            for op in [
                *(f"{kernel.op}, {variant}" for kernel in tables.OURS for variant in cpu.variants),
                *(kernel.op for kernel in tables.PEER),
            ]
        ]
        for cpu in tables.CPUS
    }


def test_predictions_cover_every_board_engine_and_thread_count():
    rows = tables.predictions(figures())
    shape = tables.SHAPES[0]
    engines = len(tables.engines(shape)) + len(tables.prefills(shape))
    expected = len(tables.SHAPES) * len(tables.SOURCES) * engines * len(tables.THREADS)
    assert len(rows) == expected
    assert all(row["tok_s"] > 0 for row in rows)


def test_without_the_peer_only_our_engine_is_predicted():
    own = {
        cpu: [figure for figure in rows if "," in figure["kernel"]]
        for cpu, rows in figures().items()
    }
    assert {row["engine"].split(",")[0] for row in tables.predictions(own)} == {"edgeagent"}
    assert tables.checks(own) == []


def test_the_page_says_that_it_predicts_and_names_its_file():
    found = figures()
    record = {
        "kernels": found,
        "predictions": tables.predictions(found),
        "checks": tables.checks(found),
    }
    page = tables.markdown(record, "arm-x.json")
    assert "**Predicted**" in page
    assert "bench/results/arm-x.json" in page
    assert all(source.board.name in page for source in tables.SOURCES)
