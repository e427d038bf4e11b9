"""Results as text: every figure with the roofline beside it.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table: the first column to the left, the others to the right."""
    cells = [[_text(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def percent(share: float | None) -> str:
    """Return a share as per cent, or a dash."""
    return "-" if share is None else f"{share:.1%}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x"


def model_text(result: dict[str, Any]) -> str:
    """Return the whole-model result for people."""
    r = result
    skip = "zero-skip" if r["zero_skip"] else "dense"
    head = (
        f"{r['model']['name']} {r['model']['version']}: {r['kernel']}, {r['threads']} threads, "
        f"{skip}, layout {r['layout']}, {r['cpu']} ({r['date']})"
    )
    rows = [
        ["decode", r["decode_tok_s"], r["roofline_tok_s"], percent(r["of_roofline"])],
        ["prefill", r["prefill_tok_s"], None, "-"],
        ["read, GB/s", r["read_gb_s"], r["bandwidth_gb_s"], percent(r["of_roofline"])],
    ]
    parts = [head, table(["tokens/s", "median", "roofline", "of it"], rows)]
    parts.append(
        f"bytes a token {r['bytes_per_token'] / 1e6:.1f} MB: ternary "
        f"{r['ternary_bytes_per_token'] / 1e6:.1f} ({percent(r['skipped_fraction'])} skipped), "
        f"head {r['head_bytes_per_token'] / 1e6:.1f}, KV {r['kv_bytes_per_token'] / 1e6:.2f}; "
        f"zeros at down_proj {percent(r['zero_act'])}, closed gates {percent(r['closed_gates'])}"
    )
    if "start" in r:
        parts.append(
            f"fresh process: loaded in {r['load_ms']:.0f} ms, first token {r['first_token_ms']:.0f}"
            f" ms (cold {_text(r['first_token_cold_ms'])}), peak RSS {r['rss_mb']:.0f} MB = "
            f"{r['rss_over_mapped_and_kv']:.3f} x (mapped files + KV)"
        )
    energy = r["energy"]
    per_token = energy["j_per_token"]
    parts.append(f"energy: {energy['reason'] if per_token is None else f'{per_token} J/token'}")
    parts.append(
        f"exact: {r['exact']['tokens']} tokens and their logits are the same in "
        f"{len(r['exact']['settings'])} settings of threads, zero-skip and prompt"
    )
    if r["peers"]:
        parts.append(_peer_table(r["peers"]))
    return "\n\n".join(parts)


def _peer_table(peers: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            name,
            p["decode_tok_s"],
            _times(p["ours_over_decode"]),
            p["prefill_tok_s"],
            _times(p["ours_over_prefill"]),
            p.get("first_token_ms"),
            p["rss_mb"],
        ]
        for name, p in peers.items()
    ]
    header = ["peer", "decode", "ours", "prefill", "ours", "first token, ms", "RSS, MB"]
    return table(header, rows)


def kernels_text(result: dict[str, Any]) -> str:
    """Return the cold matrix-vector products for people."""
    rows = [
        [
            f["op"],
            "x".join(map(str, f["shape"])),
            f["threads"],
            "-" if f["zeros"] is None else f"{f['zeros']:.0%}",
            f["us"],
            f["gb_s"],
            f["bandwidth_gb_s"],
            percent(f["of_bandwidth"]),
            _times(f["over_dense"]),
            _times(f["ideal_over_dense"]),
        ]
        for f in result["figures"]
    ]
    header = ["op, cold", "shape", "threads", "zeros", "µs", "GB/s", "roofline", "of it"]
    head = f"{result['kernel']}, {result['cpu']} ({result['date']})"
    return f"{head}\n\n{table([*header, 'over dense', 'ideal'], rows)}"


def formats_text(result: dict[str, Any]) -> str:
    """Return the formats for people."""
    rows = [
        [
            f["format"],
            f["bits"],
            f["weights_mb"],
            f["ms_per_token"],
            f["layers_ms"],
            f["tok_s"],
            f["roofline_tok_s"],
            f["read_gb_s"],
            result["bandwidth_gb_s"],
            f["j_per_token"],
        ]
        for f in result["formats"]
    ]
    header = ["format", "bits", "MB", "ms/token", "layers", "tokens/s", "roofline", "GB/s"]
    head = f"{result['kernel']}, {result['threads']} threads, {result['cpu']} ({result['date']})"
    why = {f["reason"] for f in result["formats"] if f["reason"]}
    return "\n\n".join([head, table([*header, "roofline", "J/token"], rows), *sorted(why)])
