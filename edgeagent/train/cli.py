"""``edgeagent train``: the command line of this package."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from pathlib import Path

_NEEDED = ("torch", "numpy", "tokenizers", "zstandard", "safetensors", "yaml")
_DEFAULT_MINUTES = 80.0


def build_parser() -> argparse.ArgumentParser:
    """The arguments of ``edgeagent train``."""
    parser = argparse.ArgumentParser(prog="edgeagent train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the open corpora")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="stop after this much wall time")
    length.add_argument("--steps", type=int, help="stop after this many steps")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch decides)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="do not compile (no C++ compiler)")
    return parser


def main(argv: list[str]) -> int:
    """Train; return 0, or 78 if the optional extra is not installed."""
    arguments = build_parser().parse_args(argv)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"edgeagent train: needs {', '.join(missing)}; install the extra edgeagent[train]\n"
        )
        return 78
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    """Run the training loop; the heavy imports happen here."""
    import torch

    from edgeagent.train.loop import Options, Trainer
    from edgeagent.train.schedule import Schedule

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    minutes = arguments.minutes
    if minutes is None and arguments.steps is None:
        minutes = _DEFAULT_MINUTES
    options = Options(
        data=arguments.data,
        out=arguments.out,
        minutes=minutes,
        steps=arguments.steps,
        resume=arguments.resume,
        seed=arguments.seed,
        compiled=not arguments.eager,
    )
    Trainer(options, Schedule()).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
