"""The plots of docs/performance.md from the newest results: python bench/plots.py [--png DIR]

roofline.svg    decode of ours and of the peers beside what the memory allows, every shape
zero-skip.svg   what leaving out zeros gains at down_proj, beside the ideal
formats.svg     time of a token in every number format
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
IMAGES = ROOT / "docs" / "img"
INK, OURS, DENSE, PEER, LIMIT = "#333333", "#1b6ca8", "#8fbcdb", "#c9a227", "#b03a2e"
PEERS_SHOWN = 3
INSIDE = 0.3  # of the axis: a longer bar has its label inside
STYLE = {
    "svg.hashsalt": "edgeagent",  # the same figures give the same file
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
}


def newest() -> list[dict[str, Any]]:
    """Return every result of `edgeagent bench`, oldest first."""
    found = []
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        if isinstance(result, dict) and "bench" in result:
            found.append(result)
    return sorted(found, key=lambda result: result["date"])


def source(result: dict[str, Any]) -> str:
    return f"{result['cpu']}, {result['kernel']}, {result['date'][:10]}, {result['commit']}"


# ---- decode beside the roofline ----


def bars_of(
    zeros: dict[str, Any], dense: dict[str, Any] | None
) -> list[tuple[str, float, Any, str]]:
    """Return (name, tokens/s, roofline or None, colour) of one shape and number of threads."""
    bars = [("ours, zero-skip", zeros["decode_tok_s"], zeros["roofline_tok_s"], OURS)]
    if dense:
        bars.append(("ours, dense", dense["decode_tok_s"], dense["roofline_tok_s"], DENSE))
    peers = sorted(zeros["peers"].items(), key=lambda item: -item[1]["decode_tok_s"])
    for name, peer in peers[:PEERS_SHOWN]:
        bars.append((name, peer["decode_tok_s"], None, PEER))
    return bars


def draw_bars(axes: Axes, title: str, bars: list[tuple[str, float, Any, str]]) -> None:
    for i, (_, value, limit, colour) in enumerate(bars):
        axes.barh(i, value, color=colour, height=0.7)
        label = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        if limit:
            axes.plot([limit, limit], [i - 0.42, i + 0.42], color=LIMIT, linewidth=2.5)
            label += f" ({value / limit:.0%})"
        is_inside = value > INSIDE * axes.get_xlim()[1]
        axes.annotate(
            label,
            (value, i),
            xytext=(-5 if is_inside else 5, 0),
            textcoords="offset points",
            ha="right" if is_inside else "left",
            va="center",
            fontsize=8.5,
            color="white" if is_inside and colour != DENSE else INK,
        )
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("decode, tokens/s")


def roofline_plot(results: list[dict[str, Any]]) -> Figure | None:
    models = {
        (r["shape"], r["threads"], r["zero_skip"]): r
        for r in results
        if r["bench"] == "model" and r.get("shape") in ("small", "2b4t")
    }
    panels = [(s, t) for s in ("small", "2b4t") for t in (1, 2, 4) if (s, t, True) in models]
    if not panels:
        return None
    threads = sorted({t for _, t in panels})
    shapes = [s for s in ("small", "2b4t") if any(p[0] == s for p in panels)]
    figure, grid = plt.subplots(
        len(shapes), len(threads), squeeze=False, figsize=(5.2 * len(threads), 2.3 * len(shapes))
    )
    for row, shape in enumerate(shapes):
        for column, n in enumerate(threads):
            axes = grid[row][column]
            if (shape, n, True) not in models:
                axes.axis("off")
                continue
            bars = bars_of(models[shape, n, True], models.get((shape, n, False)))
            axes.set_xlim(0, 1.04 * max(max(value, limit or 0) for _, value, limit, _ in bars))
            draw_bars(axes, f"{shape}, {n} thread{'s' * (n > 1)}", bars)
    last = models[panels[-1][0], panels[-1][1], True]
    figure.suptitle(
        f"Decode; red, and in brackets: memory bandwidth / bytes a token\n{source(last)}",
        fontsize=9,
        color=INK,
    )
    figure.tight_layout()
    return figure


# ---- zero-skip ----


def zero_skip_plot(results: list[dict[str, Any]]) -> Figure | None:
    kernels = [r for r in results if r["bench"] == "kernels"]
    if not kernels:
        return None
    last = kernels[-1]
    rows = [f for f in last["figures"] if f["over_dense"] is not None]
    figure, axes = plt.subplots(figsize=(6.4, 4))
    ideal = sorted({(f["zeros"], f["ideal_over_dense"]) for f in rows})
    axes.plot(
        *zip(*ideal, strict=True), color=LIMIT, linestyle="--", label="ideal: 1 / (1 - zeros)"
    )
    for threads, colour in zip(sorted({f["threads"] for f in rows}), (OURS, PEER), strict=False):
        line = sorted((f["zeros"], f["over_dense"]) for f in rows if f["threads"] == threads)
        axes.plot(
            *zip(*line, strict=True),
            color=colour,
            marker="o",
            label=f"measured, {threads} thread{'s' * (threads > 1)}",
        )
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.set_yticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
    axes.set_xticks([0, 0.5, 0.8, 0.9, 0.95], ["0", "50", "80", "90", "95"])
    axes.set_xlabel("zero activations at down_proj (2560 x 6912, from memory), %")
    axes.set_ylabel("times our own dense product")
    axes.legend(frameon=False, loc="upper left")
    axes.set_title(source(last), fontsize=9, loc="left")
    figure.tight_layout()
    return figure


# ---- formats ----


def formats_plot(results: list[dict[str, Any]]) -> Figure | None:
    by_shape = {r["shape"]: r for r in results if r["bench"] == "formats" and r["shape"] != "tiny"}
    if not by_shape:
        return None
    figure, grid = plt.subplots(1, len(by_shape), squeeze=False, figsize=(5.6 * len(by_shape), 3))
    last = None
    for axes, (shape, result) in zip(grid[0], sorted(by_shape.items()), strict=True):
        last = result
        rows = result["formats"]
        limits = [1e3 / row["roofline_tok_s"] for row in rows]
        axes.set_xlim(0, 1.3 * max(row["ms_per_token"] for row in rows))
        for i, (row, limit) in enumerate(zip(rows, limits, strict=True)):
            colour = OURS if row["format"].startswith("ternary") else DENSE
            axes.barh(i, row["ms_per_token"], color=colour, height=0.7)
            axes.plot([limit, limit], [i - 0.42, i + 0.42], color=LIMIT, linewidth=2.5)
            axes.annotate(
                f"{row['ms_per_token']:.3g} ms, {row['bytes_per_token'] / 1e6:.3g} MB",
                (row["ms_per_token"], i),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        axes.set_yticks(range(len(rows)), [row["format"] for row in rows])
        axes.invert_yaxis()
        axes.set_title(f"{shape}, {result['threads']} threads", loc="left", fontsize=10)
        axes.set_xlabel("ms a token")
    if last is not None:
        figure.suptitle(
            f"One engine, several formats; red: bytes / bandwidth\n{source(last)}", fontsize=9
        )
    figure.tight_layout()
    return figure


PLOTS = {"roofline": roofline_plot, "zero-skip": zero_skip_plot, "formats": formats_plot}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--png", type=Path, help="write PNG files there instead")
    arguments = parser.parse_args()
    target, kind = arguments.png or IMAGES, "png" if arguments.png else "svg"
    target.mkdir(parents=True, exist_ok=True)
    results = newest()
    with mpl.rc_context(STYLE):
        for name, plot in PLOTS.items():
            figure = plot(results)
            if figure is None:
                print(f"{name}: no results yet")
                continue
            path = target / f"{name}.{kind}"
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(path, dpi=110, metadata=metadata)
            print(path)


if __name__ == "__main__":
    main()
