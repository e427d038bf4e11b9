"""`bench`: speed beside the roofline, of a synthetic shape or of a model directory."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeagent.cli_tools import need
from edgeagent.errors import ConfigError

if TYPE_CHECKING:
    from edgeagent.bench.whole import Plan


def bench(args: argparse.Namespace) -> int:
    """Measure, print a table or JSON, and keep the result if a file is named."""
    need("numpy", "fleet")
    _check(args)
    measure = _kernels if args.kernels else _formats if args.formats else _whole
    result, text = measure(args)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(result, ensure_ascii=False) if args.json else text)
    return 0


def _check(args: argparse.Namespace) -> None:
    for name, value in (("--zero-act", args.zero_act), ("--closed-gates", args.closed_gates)):
        if value is not None and not 0 <= value < 1:
            raise ConfigError(f"{name}: expected a fraction from 0 to below 1, got {value:g}")
    for name in ("tokens", "prompt", "repeat"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name}: expected at least 1, got {getattr(args, name)}")


def _report(args: argparse.Namespace) -> Any:
    """Return what says how far long work has come: on stderr, so that stdout stays the result."""
    is_terminal = sys.stderr.isatty()

    def report(line: str) -> None:
        if is_terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif args.verbose:
            print(line, file=sys.stderr, flush=True)

    return report


def _model(args: argparse.Namespace, report: Any) -> Path:
    from edgeagent.bench.model_dir import Wanted, ensure_model
    from edgeagent.bench.shapes import DEFAULT_ZERO_ACT, GATES_PER_ZERO, SHAPES

    if args.model is not None:
        return Path(args.model)
    zero_act = DEFAULT_ZERO_ACT if args.zero_act is None else args.zero_act
    closed = zero_act * GATES_PER_ZERO if args.closed_gates is None else args.closed_gates
    shape = SHAPES[args.shape]
    if zero_act == 0:  # nothing to skip: what such a model's converter chooses is measured
        shape = replace(shape, act="silu")
    wanted = Wanted(shape, round(zero_act, 4), round(closed, 4))
    return ensure_model(wanted, args.cache, report)


def _threads(args: argparse.Namespace) -> int:
    from edgeagent.api import default_threads

    cores = default_threads()
    return cores if args.threads is None else int(args.threads)


def _kernels(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from edgeagent.bench.kernels import measure
    from edgeagent.bench.report import kernels_text

    threads = sorted({1, _threads(args)})
    result = measure(args.kernel, threads, args.repeat, _report(args))
    return result, kernels_text(result)


def _formats(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from edgeagent.bench.comparison import ensure_comparison
    from edgeagent.bench.formats import FORMATS, TERNARY, measure
    from edgeagent.bench.report import formats_text
    from edgeagent.bench.shapes import SHAPES

    report = _report(args)
    path = _model(args, report)

    def make(weights: str) -> Path:
        if weights == TERNARY:
            return path
        return ensure_comparison(path, SHAPES[args.shape], weights, report)

    # A model of one's own exists as trits only.
    formats = [form for form in FORMATS if args.model is None or form.weights == TERNARY]
    result = measure(make, _plan(args), report, formats)
    result["shape"] = None if args.model else args.shape
    return result, formats_text(result)


def _plan(args: argparse.Namespace) -> Plan:
    from edgeagent.bench.whole import Plan

    return Plan(
        threads=_threads(args),
        zero_skip=args.zero_act != 0,
        kernel=args.kernel,
        kv_bits=args.kv_bits,
        past=args.past,
        decode_tokens=args.tokens,
        prefill_tokens=args.prompt,
        repetitions=args.repeat,
        starts=args.starts,
        bandwidth_bytes=args.bandwidth_mb << 20,
        peers=args.peer,
    )


def _whole(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from edgeagent.bench.report import model_text
    from edgeagent.bench.whole import measure

    report = _report(args)
    result = measure(_model(args, report), _plan(args), report)
    result["shape"] = None if args.model else args.shape
    return result, model_text(result)
