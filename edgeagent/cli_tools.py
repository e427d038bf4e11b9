"""`doctor`, `demo`, `convert` and `train`."""

from __future__ import annotations

import argparse
import json
import sys

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
    """Convert float masters to a sealed model directory."""
    need("numpy", "fleet")
    from edgeagent.convert.masters import convert_masters
    from edgeagent.convert.seal import seal

    if args.target.exists():
        raise ConfigError(f"{args.target}: exists: name a new directory")
    convert_masters(args.source, args.target)
    release = seal(args.target, name=args.name, version=args.release, counter=args.counter)
    summary = {
        "name": release.name,
        "version": release.version,
        "root": release.root,
        "bytes": release.n_bytes,
        "path": str(args.target),
    }
    if args.json:
        print(json.dumps(summary))
    else:
        print("\n".join(f"{key:<8} {value}" for key, value in summary.items()))
    return 0


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
