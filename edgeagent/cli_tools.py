"""`doctor`, `demo`, `convert` and `train`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from edgeagent.errors import ConfigError


def doctor(args: argparse.Namespace) -> int:
    """Check this machine; exit 1 when something is broken."""
    from edgeagent import doctor as checks
    from edgeagent.cli_remote import load_config

    results = checks.checks(load_config(args.config))
    if args.json:
        print(json.dumps([checks.as_dict(check) for check in results], ensure_ascii=False))
    else:
        print(checks.format_table(results))
    return 1 if any(check.status == "fail" for check in results) else 0


def demo(args: argparse.Namespace) -> int:
    """Run the whole product once on this machine."""
    from edgeagent import demo as show

    return show.run(args.out, args.broker)


def convert(args: argparse.Namespace) -> int:
    """Convert a model of any format to a sealed model directory."""
    need("numpy", "fleet")
    from edgeagent.convert.options import Choices, prepare
    from edgeagent.convert.packed import Options, write_model
    from edgeagent.convert.seal import seal
    from edgeagent.convert.sources import open_checkpoint, open_tokenizer

    is_file = args.tokenizer is not None and args.tokenizer.is_file()
    source = open_checkpoint(
        args.source, tokenizer=args.tokenizer if is_file else None, i2s_variant=args.i2s_variant
    )
    tokenizer = None if args.tokenizer is None or is_file else open_tokenizer(args.tokenizer)
    choices = Choices(
        args.quantization, args.scheme, args.alpha, args.alpha_per == "head",
        args.ternary_embedding, args.calibrate, args.report, args.adapter, args.merge_adapter,
    )  # fmt: skip
    prepared = prepare(args.source, source, choices, tokenizer, progress_bar("ternarise"))
    options = Options(
        layout=prepared.layout or args.layout,
        activation_bits=args.activation_bits,
        tokenizer=tokenizer,
        report=progress_bar("convert"),
    )
    releases = []

    def finish(work: Path) -> None:
        prepared.finish(work)
        releases.append(seal(work, name=args.name, version=args.release, counter=args.counter))

    write_model(prepared.checkpoint, args.target, options, finish)
    release = releases[0]
    summary = {
        "name": release.name,
        "version": release.version,
        "root": release.root,
        "bytes": release.n_bytes,
        "path": str(args.target),
        **prepared.facts,
    }
    if args.json:
        print(json.dumps(summary))
    else:
        if prepared.table:
            print(prepared.table)
        print("\n".join(f"{key:<13} {value}" for key, value in summary.items()))
    return 0


def progress_bar(what: str) -> Callable[[int, int, str], None]:
    """Return what draws how much is done on stderr; where nobody looks, a line in each tenth."""
    tty = sys.stderr.isatty()
    width = 30
    said = [-1]

    def report(done: int, total: int, item: str) -> None:
        if tty:
            bar = "#" * (width * done // total)
            end = "\n" if done == total else ""
            text = f"\r{what} [{bar:<{width}}] {done}/{total} {item}\x1b[K"
            print(text, end=end, file=sys.stderr, flush=True)
        elif 10 * done // total != said[0]:
            said[0] = 10 * done // total
            print(f"{what}: {done}/{total} {item}".rstrip(), file=sys.stderr, flush=True)

    return report


def train(args: argparse.Namespace) -> int:
    """Train a model; everything behind the word belongs to the trainer's own parser."""
    try:
        need("torch", "train")
    except ConfigError as err:
        print(f"edgeagent: {err}", file=sys.stderr)
        return err.exit_code
    from edgeagent.train import cli

    return cli.main(args.rest)


def need(module: str, extra: str) -> None:
    """Refuse in one line what needs an optional package that is not there."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise ConfigError(f"{module} is not installed: pip install 'edgeagent[{extra}]'")
