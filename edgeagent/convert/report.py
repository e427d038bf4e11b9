"""What ternarising did to a model, matrix by matrix: as numbers, a table, JSON and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert.checkpoint import TritMatrix
from edgeagent.convert.ternarise import Floats, Ternarised
from edgeagent.errors import ConfigError

TABLE_NAME, JSON_NAME, PLOT_NAME = "ternary.txt", "ternary.json", "ternary.png"


@dataclass(frozen=True, slots=True)
class MatrixReport:
    """One matrix.

    Attributes:
        name: of the tensor.
        shape: (out, in).
        alphas: one, or one a head; empty for absmean.
        scale: mean of its scales.
        zeros: fraction of trits that are 0.
        entropy: bits a trit, order 0.
        weight_error: || W - s T || / || W ||.
        output_error: the same of outputs on a calibration text; None without one.
    """

    name: str
    shape: tuple[int, int]
    alphas: tuple[float, ...]
    scale: float
    zeros: float
    entropy: float
    weight_error: float
    output_error: float | None


def entropy_bits(trits: NDArray[np.int8]) -> float:
    """Return the order-0 entropy of trits, in bits a trit."""
    counts = np.array([np.count_nonzero(trits == value) for value in (-1, 0, 1)])
    shares = counts[counts > 0] / trits.size
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def weight_error(weights: Floats, matrix: TritMatrix) -> float:
    """Return || W - s T || / || W ||, of a matrix with a scale a row or one for all."""
    left = weights - matrix.trits * matrix.scales.T
    power = float(np.linalg.norm(weights.ravel()))
    return float(np.linalg.norm(left.ravel())) / power if power > 0 else 0.0


def matrix_report(source: Ternarised, name: str, output_error: float | None) -> MatrixReport:
    """Ternarise one matrix and say what became of it."""
    matrix = source.trits(name)
    out, width = matrix.trits.shape
    return MatrixReport(
        name=name,
        shape=(out, width),
        alphas=source.alphas(name),
        scale=float(matrix.scales.mean()),
        zeros=float((matrix.trits == 0).mean()),
        entropy=entropy_bits(matrix.trits),
        weight_error=weight_error(source.masters(name), matrix),
        output_error=output_error,
    )


def make_report(
    source: Ternarised,
    output_errors: Mapping[str, float],
    say: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[MatrixReport]:
    """Report every matrix that is ternarised here; one at a time is in memory."""
    names = [name for name in source.shapes() if source.is_ours(name)]
    rows = []
    for done, name in enumerate(sorted(names, key=_order)):
        say(done, len(names), name)
        rows.append(matrix_report(source, name, output_errors.get(name)))
    if names:
        say(len(names), len(names), "")
    return rows


def _order(name: str) -> tuple[int, str]:
    return int(name.split(".")[2]), name


def summary(rows: Sequence[MatrixReport]) -> dict[str, Any]:
    """Return the whole model's means, weighted by the size of a matrix."""
    if not rows:
        return {"matrices": 0}
    sizes = np.array([math.prod(row.shape) for row in rows], np.float64)
    out: dict[str, Any] = {"matrices": len(rows), "trits": int(sizes.sum())}
    for key in ("zeros", "entropy", "weight_error", "output_error"):
        values = [getattr(row, key) for row in rows]
        if None not in values:
            out[key] = round(float(np.average(values, weights=sizes)), 6)
    return out


def _alpha_text(alphas: tuple[float, ...]) -> str:
    if len(alphas) > 1:
        return f"{min(alphas):.3f}-{max(alphas):.3f}"
    return f"{alphas[0]:.3f}" if alphas else "-"


def table(rows: Sequence[MatrixReport]) -> str:
    """Return the report for people."""
    lines = [
        f"{'matrix':<32} {'shape':>13} {'alpha':>11} {'scale':>9} {'zeros':>7} {'bits':>6} "
        f"{'weights':>8} {'output':>8}"
    ]
    for row in rows:
        name = row.name.removeprefix("model.layers.").removesuffix(".weight")
        output = "-" if row.output_error is None else f"{row.output_error:.4f}"
        lines.append(
            f"{name:<32} {row.shape[0]:>6}x{row.shape[1]:<6} {_alpha_text(row.alphas):>11} "
            f"{row.scale:>9.5f} {row.zeros:>7.2%} {row.entropy:>6.3f} "
            f"{row.weight_error:>8.4f} {output:>8}"
        )
    return "\n".join(lines)


def need_plots() -> None:
    """Refuse early what would fail after a long conversion.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ConfigError("--report: matplotlib is not installed: pip install 'edgeagent[bench]'")


def _plot(rows: Sequence[MatrixReport], path: Path) -> None:
    """Draw zeros and errors by layer, one line a kind of matrix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    kinds = list(dict.fromkeys(row.name.split(".")[-2] for row in rows))
    for kind in kinds:
        own = [row for row in rows if row.name.split(".")[-2] == kind]
        layers = [int(row.name.split(".")[2]) for row in own]
        errors = [row.weight_error if row.output_error is None else row.output_error for row in own]
        top.plot(layers, [row.zeros for row in own], marker="o", markersize=3, label=kind)
        bottom.plot(layers, errors, marker="o", markersize=3, label=kind)
    calibrated = all(row.output_error is not None for row in rows)
    top.set_ylabel("zeros (fraction)")
    bottom.set_ylabel(f"relative error of {'outputs' if calibrated else 'weights'}")
    bottom.set_xlabel("layer")
    for axes in (top, bottom):
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    top.legend(ncols=len(kinds), fontsize="x-small", frameon=False, loc="upper center")
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")


def write_report(directory: Path, rows: Sequence[MatrixReport], facts: Mapping[str, Any]) -> None:
    """Write table, JSON and plot into `directory`, which may exist.

    Args:
        directory: where to.
        rows: of `make_report`.
        facts: what else is known of the whole: scheme, losses, changed trits.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / TABLE_NAME).write_text(table(rows) + "\n")
    document = {**facts, **summary(rows), "layers": [asdict(row) for row in rows]}
    (directory / JSON_NAME).write_text(json.dumps(document, indent=1) + "\n")
    if rows:
        _plot(rows, directory / PLOT_NAME)
