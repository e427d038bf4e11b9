"""`generate` and `chat`: a model in this process, no daemon, no network."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator
from typing import Any

from edgeagent.errors import ConfigError, ContextFull
from edgeagent.model.generation import LoadedModel, Outcome, Params
from edgeagent.paths import bundled_model


def _load(args: argparse.Namespace) -> LoadedModel:
    from edgeagent.api import default_threads, resolve

    threads = args.threads or default_threads()
    zero_skip = True if args.zero_skip is None else args.zero_skip
    try:
        return LoadedModel(
            resolve(args.model or bundled_model(), tokenizer=args.tokenizer),
            threads=threads,
            kernel=args.kernel,
            zero_skip=zero_skip,
            kv_bits=args.kv_bits,
            kv_group_size=args.kv_group_size,
            comparison=True,
        )
    except ValueError as err:
        raise ConfigError(str(err)) from err


def _params(args: argparse.Namespace) -> Params:
    return Params.from_mapping(vars(args))


def _stream(steps: Generator[str, Any, Outcome], show: bool) -> Outcome:
    try:
        while True:
            text = next(steps)
            if show and text:
                sys.stdout.write(text)
                sys.stdout.flush()
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome
    except ValueError as err:  # the core refuses a sampling parameter
        raise ConfigError(str(err)) from err


def _verbose(outcome: Outcome) -> None:
    speed = outcome.tokens_per_s
    print(
        f"\nprompt eval count    {outcome.prompt_tokens} tokens, {outcome.cached_tokens} cached\n"
        f"prompt eval duration {outcome.prefill_s * 1e3:.1f} ms\n"
        f"eval count           {outcome.completion_tokens} tokens\n"
        f"eval duration        {outcome.decode_s * 1e3:.1f} ms\n"
        f"eval rate            {'-' if speed is None else f'{speed:.1f}'} tokens/s\n"
        f"skipped              {outcome.skipped}",
        file=sys.stderr,
    )


def generate(args: argparse.Namespace) -> int:
    """Continue one prompt; the text alone goes to stdout."""
    model = _load(args)
    messages = None if args.user is None else [{"role": "user", "content": args.user}]
    ids = model.encode(args.prompt, messages)
    outcome = _stream(model.generate(ids, _params(args)), show=not args.json)
    if args.json:
        release = model.release
        document = outcome.as_messages() | {
            "kernel": model.core.kernel,
            "model": {"name": release.name, "version": release.version, "root": release.root},
        }
        print(json.dumps(document, ensure_ascii=False))
    else:
        print()
    if args.verbose:
        _verbose(outcome)
    return 0


def chat(args: argparse.Namespace) -> int:
    """Read a line, answer it, until end of file or /bye."""
    model = _load(args)
    base = [] if args.system is None else [{"role": "system", "content": args.system}]
    messages = list(base)
    prompt = ">>> " if sys.stdin.isatty() and not args.json else ""
    if prompt:
        print(f"{model.release.name} {model.release.version}: /clear forgets, /bye leaves")
    while (line := _read(prompt)) not in (None, "/bye"):
        if line == "/clear":
            messages = list(base)
        elif line:
            messages = _turn(model, args, base, [*messages, {"role": "user", "content": line}])
    return 0


def _read(prompt: str) -> str | None:
    try:
        return input(prompt).strip()
    except EOFError:
        return None


def _turn(
    model: LoadedModel,
    args: argparse.Namespace,
    base: list[dict[str, str]],
    messages: list[dict[str, str]],
) -> list[dict[str, str]]:
    """Answer the last message; forget the oldest turns when the context is full."""
    steps = model.generate(model.encode(None, messages), _params(args))
    try:
        outcome = _stream(steps, show=not args.json)
    except ContextFull:
        if len(messages) - len(base) < 2:
            print("edgeagent: this message alone is longer than the context", file=sys.stderr)
            return messages[:-1]
        return _turn(model, args, base, base + messages[len(base) + 2 :])
    print(json.dumps(outcome.as_messages(), ensure_ascii=False) if args.json else "")
    if args.verbose:
        _verbose(outcome)
    return [*messages, {"role": "assistant", "content": outcome.text}]
