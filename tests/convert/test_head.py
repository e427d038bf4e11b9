"""The planes of the two-stage head: what docs/formats.md, section 3a, says of bytes and bounds."""

import numpy as np
import pytest

from edgeagent.convert.head import HeadScan, make_scan


def decoded(scan: HeadScan, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """What the codes mean, and what the refinement adds, read byte by byte as the format has it."""
    _, step, *_ = scan.rows.astype(np.float64)
    vocab = scan.rows.shape[1]
    coarse, fine = np.zeros((vocab, hidden)), np.zeros((vocab, hidden))
    for r in range(vocab):
        panel, lane = divmod(r, 16)
        for k in range(hidden):
            group, rest = divmod(k, 32)
            line, half, j = rest // 8, rest // 4 % 2, rest % 4
            lines = scan.codes[panel, 5 * group : 5 * group + 5, 4 * lane + j].astype(int)
            code = (lines[line] >> 4 * half & 15) + 16 * (lines[4] >> (2 * line + half) & 1)
            scale = float(scan.scales[panel, group, lane]) * float(scan.rows[0, r])
            coarse[r, k] = (int(scan.levels[code]) - 63) * scale
            block, at = divmod(k, 256)
            byte = int(scan.refine[r, 64 * block + at % 64])
            fine[r, k] = (2 * (byte >> 2 * (at // 64) & 3) - 3) * step[r]
    return coarse, fine


@pytest.mark.parametrize(("vocab", "hidden"), [(33, 70), (16, 256), (5, 300)])
def test_the_bounds_hold_for_what_the_bytes_mean(vocab, hidden):
    rng = np.random.default_rng(vocab)
    head = (rng.standard_normal((vocab, hidden)) * rng.uniform(0.01, 3, (vocab, 1))).astype("<f2")
    scan = make_scan(head)
    coarse, fine = decoded(scan, hidden)
    exact = head.astype(np.float64)
    _, _, norm, rest, refined_rest = scan.rows.astype(np.float64)
    assert (np.linalg.norm(exact, axis=1) <= norm).all()
    assert (np.linalg.norm(coarse, axis=1) <= norm).all()
    assert (np.linalg.norm(exact - coarse, axis=1) <= rest).all()
    assert (np.linalg.norm(exact - coarse - fine, axis=1) <= refined_rest).all()
    assert (rest <= 0.065 * norm).all(), "five bits leave 4 to 6 % of a normal row, four 8 %"
    assert (refined_rest <= 0.5 * rest).all()


def test_a_row_of_zeros_is_zero():
    scan = make_scan(np.zeros((17, 40), np.float16))
    assert not scan.rows.any()
    assert not scan.scales.any()
