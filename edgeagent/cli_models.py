"""`export`, `adapter` and `inspect`: models of any format, without the daemon."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeagent.cli_tools import need
from edgeagent.errors import EX_OK, ModelError

if TYPE_CHECKING:
    from edgeagent.convert.checkpoint import Checkpoint


def _progress(quiet: bool) -> Callable[[int, int], None] | None:
    """Return what says how far a long export is, where somebody is looking."""
    if quiet or not sys.stderr.isatty():
        return None

    def say(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{done}/{total} tensors", end=end, file=sys.stderr, flush=True)

    return say


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _export_gguf(
    source: Checkpoint, args: argparse.Namespace, say: Callable[[int, int], None] | None
) -> dict[str, Any]:
    """Say who reads the file, then write it."""
    from edgeagent.convert.to_gguf import export_gguf, notes_on

    as_bitnet = args.relu2_as_bitnet
    for note in notes_on(source, args.format, as_bitnet=as_bitnet):
        print(f"note: {note}", file=sys.stderr)
    done = export_gguf(
        source, args.out, args.format, with_tokenizer=args.tokenizer, as_bitnet=as_bitnet,
        progress=say,
    )  # fmt: skip
    summary: dict[str, Any] = {"architecture": done.architecture, "ternary": done.n_ternary}
    return summary | {"others": done.others} | ({"notes": done.notes} if args.json else {})


def export(args: argparse.Namespace) -> int:
    """Write any ternary model that we read as a GGUF file or a Hugging Face directory."""
    need("numpy", "fleet")
    from edgeagent.convert.sources import open_checkpoint

    source = open_checkpoint(args.model)
    say = _progress(args.json)
    summary: dict[str, Any] = {"path": str(args.out), "format": args.format}
    if args.format == "hf":
        from edgeagent.convert.to_hf import export_hf

        summary["architecture"] = export_hf(
            source, args.out, with_tokenizer=args.tokenizer, progress=say
        )
    else:
        summary |= _export_gguf(source, args, say)
    summary["bytes"] = _size(args.out)
    if args.json:
        print(json.dumps(summary, ensure_ascii=False))
        return 0
    for key, value in summary.items():
        for line in value if isinstance(value, list) else [value]:
            if line != {}:
                print(f"{key:<13} {line}")
    return 0


def adapter(args: argparse.Namespace) -> int:
    """Make a model directory with another adapter, or with none."""
    need("numpy", "fleet")
    from edgeagent.convert.adapter import describe, reseal

    source = args.adapter if args.verb == "add" else None
    release = reseal(args.model, args.target, source, version=args.release, counter=args.counter)
    summary: dict[str, Any] = {
        "name": release.name,
        "version": release.version,
        "root": release.root,
        "path": str(args.target),
    }
    if source is not None:
        summary |= {f"adapter_{key}": value for key, value in describe(args.target).items()}
    if args.json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        print("\n".join(f"{key:<18} {value}" for key, value in summary.items()))
    return 0


def inspect(args: argparse.Namespace) -> int:
    """Say what is in a model before anything of it is loaded."""
    need("numpy", "fleet")
    from edgeagent import inspect as looking
    from edgeagent.adapters.machine import memory
    from edgeagent.cli_tools import progress_bar
    from edgeagent.inspect_text import text

    try:
        facts = looking.inspect_model(
            args.model,
            context=args.context,
            available_bytes=memory().available_bytes or 0,
            tokenizer=args.tokenizer,
            i2s_variant=args.i2s_variant,
            report=progress_bar("inspect") if sys.stderr.isatty() else lambda *_: None,
        )
    except ModelError as err:
        facts, code = looking.refused(args.model, err), err.exit_code
    else:
        code = EX_OK
    print(json.dumps(facts, ensure_ascii=False) if args.json else text(facts))
    return code
