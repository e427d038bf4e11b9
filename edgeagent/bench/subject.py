"""Our engine as the thing that is measured: one model, and runs that are alike every time."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeagent import _core
from edgeagent.bench.figures import fraction, head_bytes, ternary_bytes
from edgeagent.bench.shapes import token_ids
from edgeagent.errors import ConfigError, ModelError
from edgeagent.model.files import open_model

#: Greedy tokens that must agree between every pair of settings.
EXACT_TOKENS = 8


class Subject:
    """A model directory in the engine; its sessions are made and measured here."""

    def __init__(
        self, path: Path, *, context: int, kernel: str | None, kv_bits: int | None
    ) -> None:
        """Verify and map the model.

        Raises:
            ModelError: it is not a sound model.
            ConfigError: the kernel or `kv_bits` is not to be had.
        """
        files = open_model(path, comparison=True)
        try:
            _core.Kernels(kernel)
        except ValueError as err:
            raise ConfigError(str(err)) from err
        try:
            self.core = _core.Model(dict(files.config), files.tensors, kernel)
        except ValueError as err:
            raise ModelError(f"{path}: {err}") from err
        self.path = path
        self.release = files.release
        self.mapped_bytes = sum(len(data) for _, _, data in files.tensors.values())
        self.layout = files.config["quantization_config"]["layout"]
        self.context = min(context, self.core.context)
        self._kv = kv_arguments(kv_bits)

    def session(self, threads: int, zero_skip: bool) -> _core.Session:
        """Make a new conversation."""
        try:
            return _core.Session(self.core, self.context, threads, zero_skip, **self._kv)
        except ValueError as err:
            raise ConfigError(str(err)) from err

    def prompt(self, n: int) -> list[int]:
        """Return the first `n` tokens of the one prompt that all runs and peers share."""
        return token_ids(self.core.vocab_size, n)


def kv_arguments(kv_bits: int | None) -> dict[str, Any]:
    """Return what a Session must be given for this KV cache; None is the engine's own choice.

    Raises:
        ConfigError: this engine has one kind of KV cache only.
    """
    if kv_bits is None:
        return {}
    if "kv_bits" not in (inspect.getdoc(_core.Session) or ""):
        raise ConfigError("--kv-bits: this engine has one kind of KV cache: leave the option out")
    return {"kv_bits": kv_bits}


def greedy(session: _core.Session) -> Iterator[int]:
    """Yield the most likely token, evaluate it, and so on."""
    sampler = _core.Sampler()
    while True:
        token = sampler.sample(session)
        yield token
        session.eval([token])


def decode(session: _core.Session, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
    """Time `tokens` steps of one token each, the choice of the next one included."""
    session.truncate(0)
    session.eval(prompt)
    sampler = _core.Sampler()
    token = sampler.sample(session)
    session.reset_counters()
    chosen = []
    head_seconds = 0.0
    began_s = time.perf_counter()
    for _ in range(tokens):
        session.eval([token])
        evaluated_s = time.perf_counter()
        token = sampler.sample(session)
        head_seconds += time.perf_counter() - evaluated_s
        chosen.append(token)
    seconds = time.perf_counter() - began_s
    return {
        "seconds": seconds,
        "head_seconds": head_seconds,
        "tok_s": tokens / seconds,
        "tokens": chosen,
    }


def prefill(session: _core.Session, prompt: Sequence[int]) -> dict[str, Any]:
    """Time one prompt from an empty cache to the choice of the first token."""
    session.truncate(0)
    sampler = _core.Sampler()
    began_s = time.perf_counter()
    session.eval(prompt)
    sampler.sample(session)
    seconds = time.perf_counter() - began_s
    return {"seconds": seconds, "tok_s": len(prompt) / seconds}


def traffic(
    subject: Subject, session: _core.Session, prompt_tokens: int, tokens: int
) -> dict[str, Any]:
    """Return what the engine's counters say of a decode that has just ended."""
    layers = session.counters()
    ternary = ternary_bytes(layers, tokens)
    head = head_bytes(subject.core.vocab_size, subject.core.hidden_size, session.head_counters())
    head /= tokens
    past = prompt_tokens + (tokens + 1) / 2  # the mean over the run
    kv = session.kv_bytes / session.context * past
    return {
        "bytes_per_token": round(ternary + head + kv),
        "ternary_bytes_per_token": round(ternary),
        "head_bytes_per_token": round(head),
        "head": session.head_counters(),
        "kv_bytes_per_token": round(kv),
        "skipped_fraction": round(fraction(layers, "weight_bytes_skipped", "weight_bytes"), 4),
        "multiplications_skipped_fraction": round(
            fraction(layers, "multiplications_skipped", "multiplications"), 4
        ),
        "zero_act": round(fraction(layers, "zero_down_inputs", "down_inputs"), 4),
        "closed_gates": round(fraction(layers, "closed_gates", "gates"), 4),
    }


def check_exact(subject: Subject, threads: int, prompt: Sequence[int]) -> dict[str, Any]:
    """Generate with every setting that must not matter; the tokens and logits must be the same.

    Raises:
        ModelError: they are not: the figures would be of a wrong engine.
    """
    runs = {
        f"{n} threads, zero-skip {'on' if skip else 'off'}, {how}": (n, skip, parts)
        for n in sorted({1, threads})
        for skip in (True, False)
        for how, parts in (("whole prompt", 1), ("prompt in two", 2))
    }
    wanted: tuple[list[int], bytes] | None = None
    for name, (n, skip, parts) in runs.items():
        session = subject.session(n, skip)
        cut = len(prompt) // parts
        for part in (prompt[:cut], prompt[cut:]):
            if part:
                session.eval(part)
        steps = greedy(session)
        got = [next(steps) for _ in range(EXACT_TOKENS)], bytes(session.logits())
        if wanted is not None and got != wanted:
            raise ModelError(f"exactness: {name}: expected tokens {wanted[0]}, got {got[0]}")
        wanted = got
    return {"ok": True, "tokens": EXACT_TOKENS, "settings": list(runs)}
