"""One loaded model and the loop that makes it speak.

The integer kernels, the forward pass and the sampler are in C; here are the parts that are text.
`generate` is a Python generator: the caller decides between two tokens whether to go on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgeagent import _core
from edgeagent.errors import ContextFull, EdgeAgentError, ModelError
from edgeagent.model.adapter import Modules
from edgeagent.model.files import open_model, read_adapter
from edgeagent.model.stop import StopMatcher
from edgeagent.model.tokenizer import Tokenizer
from ota.release import Example, Health, Release

#: Tokens of a prompt between two looks at the caller: below a second even on a 2B model.
PREFILL_BLOCK_TOKENS = 32
#: Bits of a number in the KV cache that published hashes of logits are made with.
HEALTH_KV_BITS = 32
#: The repetition penalty looks at this many last tokens, as llama.cpp does by default.
REPETITION_WINDOW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Params:
    """How to generate; the bounds are those of docs/protocol.md, section 2."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    zero_skip: bool | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Params:
        """Take the known fields of `values`; absent or None means the default."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known and v is not None})


@dataclass(slots=True)
class Outcome:
    """What one generation gave and what it cost."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)  # ids of what was generated
    finish_reason: str = "length"
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt's, found in the KV cache
    completion_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    skipped: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float | None:
        """Decode speed; None before the second token."""
        steps = self.completion_tokens - 1  # the first token comes from the prefill
        return steps / self.decode_s if steps > 0 and self.decode_s > 0 else None

    def as_messages(self) -> dict[str, Any]:
        """The `text` … `skipped` part of a `done` event (docs/protocol.md, section 3)."""
        speed = self.tokens_per_s
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": self.completion_tokens,
            },
            "timings": {
                "prefill_ms": round(self.prefill_s * 1e3, 3),
                "decode_ms": round(self.decode_s * 1e3, 3),
                "tokens_per_s": None if speed is None else round(speed, 2),
            },
            "skipped": self.skipped,
        }


def _stop_ids(config: Mapping[str, Any]) -> frozenset[int]:
    eos = config.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool):
            raise ModelError(f"config.json: eos_token_id: expected token ids, got {token!r}")
    return frozenset(ids)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many first tokens are the same."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


class LoadedModel:
    """A model directory ready to answer, with one KV cache.

    The cache remembers the last query: what a prompt has in common with it is not computed again.
    Arithmetic that does not depend on how a prompt is split makes the answer the same either way.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        kernel: str | None = None,
        zero_skip: bool = True,
        kv_bits: int = 16,
        kv_group_size: int = 64,
        context: int | None = None,
        comparison: bool = False,
    ) -> None:
        """Verify, map and check everything, then allocate the KV cache.

        Args:
            path: the model directory; an adapter that its release names is used from the start.
            threads: compute threads.
            kernel: a variant's name; None for the best one.
            zero_skip: skip zeros unless a query says otherwise.
            kv_bits: bits of a number in the KV cache.
            kv_group_size: channels that share a scale in 8 and 4 bits.
            context: positions of the KV cache; None for all that the model has.  A model with
                longrope takes its short factors for a context up to that of its first training.
            comparison: take the layouts 3 to 5 too, which no device serves.

        Raises:
            ModelError: the directory is not a sound model, or its numbers do not fit the engine.
            ValueError: `kernel` is unknown here, or `threads`, `kv_bits`, `kv_group_size` or
                `context` is out of range.
        """
        files = open_model(path, comparison=comparison)
        self.path = path
        self.release: Release = files.release
        self.tokenizer = Tokenizer(path)
        _core.Kernels(kernel)  # a wrong name is the operator's error, not the model's
        try:
            self.core = _core.Model(dict(files.config), files.tensors, kernel)
        except (ValueError, KeyError, TypeError) as err:
            raise ModelError(f"{path}: {err}") from err
        if self.tokenizer.size > self.core.vocab_size:
            raise ModelError(
                f"{path}: expected at most {self.core.vocab_size} tokens, "
                f"the tokenizer has {self.tokenizer.size}"
            )
        self._zero_skip = zero_skip
        self._stop_ids = _stop_ids(files.config)
        adapter = None if files.adapter is None else self._adapter(files.adapter, path)
        positions = self.core.context if context is None else context
        self.session = _core.Session(
            self.core, positions, threads, zero_skip, kv_bits, kv_group_size, adapter
        )
        self._seen: list[int] = []  # the tokens in the KV cache

    def _adapter(self, modules: Modules, path: Path) -> _core.Adapter:
        try:
            return _core.Adapter(self.core, modules)
        except ValueError as err:
            raise ModelError(f"{path}: {err}") from err

    def set_adapter(self, path: Path | None) -> None:
        """Use the adapter in the directory `path` from the next query on; None for none.

        The base model stays where it is; the KV cache, which another function filled, is emptied.

        Raises:
            ModelError: there is no adapter, or one that does not fit; nothing has changed then.
        """
        adapter = None if path is None else self._adapter(read_adapter(path), path)
        self.session.set_adapter(adapter)
        self._seen.clear()

    def encode(self, prompt: str | None, messages: Sequence[Mapping[str, str]] | None) -> list[int]:
        """Return the token ids of a raw prompt or of chat messages."""
        if messages is not None:
            return self.tokenizer.encode_chat(messages)
        return self.tokenizer.encode_prompt(prompt or "")

    def generate(
        self, prompt_ids: Sequence[int], params: Params
    ) -> Generator[str, str | None, Outcome]:
        """Yield text as it comes; return the Outcome.

        The caller may `send` a reason ("cancelled", "deadline") to stop before the next token;
        plain iteration goes on.  Empty pieces are yielded too: they are the points where a caller
        may look up, during the prefill as well.

        Raises:
            ContextFull: the prompt leaves no room for an answer; nothing was computed.
        """
        session, outcome = self.session, Outcome(prompt_tokens=len(prompt_ids))
        room = session.context - len(prompt_ids)
        if not prompt_ids or room < 1:
            raise ContextFull(
                f"prompt: expected 1 to {session.context - 1} tokens, got {len(prompt_ids)}: "
                "shorten it"
            )
        session.zero_skip = self._zero_skip if params.zero_skip is None else params.zero_skip
        session.reset_counters()
        outcome.cached_tokens = self._keep_prefix(prompt_ids)
        reason = yield from self._prefill(prompt_ids[outcome.cached_tokens :], outcome)
        if reason is None:
            reason = yield from self._decode(min(params.max_tokens, room), params, outcome)
        outcome.finish_reason = reason
        outcome.skipped = _fractions(session.counters())
        return outcome

    def forget(self) -> None:
        """Empty the KV cache: the next prompt is computed whole."""
        self.session.truncate(0)
        self._seen.clear()

    def _keep_prefix(self, prompt_ids: Sequence[int]) -> int:
        """Truncate the KV cache to what it shares with the prompt; return how many tokens stay.

        The last token of a prompt is always computed: its logits are needed.
        """
        n = _common_prefix(self._seen, prompt_ids[:-1])
        self.session.truncate(n)
        del self._seen[n:]
        return n

    def _eval(self, ids: Sequence[int]) -> None:
        self.session.eval(ids)
        self._seen.extend(ids)

    def _prefill(
        self, ids: Sequence[int], outcome: Outcome
    ) -> Generator[str, str | None, str | None]:
        started_s = time.perf_counter()
        for at in range(0, len(ids), PREFILL_BLOCK_TOKENS):
            self._eval(ids[at : at + PREFILL_BLOCK_TOKENS])
            outcome.prefill_s = time.perf_counter() - started_s
            reason = yield ""
            if reason:
                return reason
        return None

    def _decode(
        self, max_tokens: int, params: Params, outcome: Outcome
    ) -> Generator[str, str | None, str]:
        sampler = _core.Sampler(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            seed=params.seed,
        )
        stream, stops = self.tokenizer.decode_stream(), StopMatcher(params.stop)
        recent: list[int] = []
        busy_s, finish = 0.0, "length"
        while True:
            started_s = time.perf_counter()
            token = sampler.sample(self.session, recent[-REPETITION_WINDOW_TOKENS:])
            if token in self._stop_ids:
                finish = "stop"
                break
            recent.append(token)
            outcome.completion_tokens = len(recent)
            outcome.tokens = recent
            text, met = stops.push(stream.push(token))
            outcome.text += text
            busy_s += time.perf_counter() - started_s
            reason = yield text
            if met:
                return "stop"
            if reason or len(recent) == max_tokens:
                finish = reason or finish
                break
            started_s = time.perf_counter()
            self._eval([token])
            busy_s += time.perf_counter() - started_s
            outcome.decode_s = busy_s
        tail = stops.flush()
        if tail:
            outcome.text += tail
            yield tail
        return finish

    def logits_sha256(self, prompt: Sequence[int]) -> str:
        """Hash the last position's logits after `prompt`, in a float32 KV cache of its own."""
        session = _core.Session(
            self.core, len(prompt), self.session.threads, self._zero_skip, HEALTH_KV_BITS,
            adapter=self.session.adapter,
        )  # fmt: skip
        session.eval(prompt)
        return hashlib.sha256(session.logits()).hexdigest()

    def check_health(self, health: Health | None = None) -> list[dict[str, Any]]:
        """Run the release's health suite; one check a prompt, one an example.

        The arithmetic is the same on every CPU, so a hash differs only if the weights, the code or
        the machine is broken.
        """
        health = self.release.health if health is None else health
        checks = []
        for i, (prompt, want) in enumerate(
            zip(health.prompts, health.logits_sha256, strict=True), 1
        ):
            name = f"logits {i}/{len(health.prompts)}"
            if len(prompt) >= self.session.context or max(prompt) >= self.core.vocab_size:
                checks.append(
                    {"name": name, "ok": False, "detail": "prompt does not fit the model"}
                )
                continue
            got = self.logits_sha256(prompt)
            detail = "exact" if got == want else f"expected {want[:16]}…, got {got[:16]}…"
            checks.append({"name": name, "ok": got == want, "detail": detail})
        n = len(health.examples)
        return checks + [
            self._check_example(f"example {i}/{n}", each)
            for i, each in enumerate(health.examples, 1)
        ]

    def _check_example(self, name: str, example: Example) -> dict[str, Any]:
        """Ask for the greedy answer, in the KV cache that answers are given from here."""
        self.forget()
        answer = ""
        try:
            ids = self.encode(None, [{"role": "user", "content": example.prompt}])
            steps = self.generate(ids, Params(max_tokens=example.max_tokens))
            while True:
                next(steps)
        except StopIteration as end:
            answer = end.value.text
        except EdgeAgentError as err:  # no room, or no chat template
            return {"name": name, "ok": False, "detail": str(err)}
        finally:
            self.forget()
        if example.is_met_by(answer):
            return {"name": name, "ok": True, "detail": example.kind}
        detail = f"expected an answer that {example.kind} {example.expected[:60]!r}, got "
        return {"name": name, "ok": False, "detail": detail + repr(answer[:60])}


def _fractions(counters: Sequence[Mapping[str, int]]) -> dict[str, float]:
    def fraction(what: str) -> float:
        total = sum(layer[what] for layer in counters)
        skipped = sum(layer[f"{what}_skipped"] for layer in counters)
        return round(skipped / total, 4) if total else 0.0

    return {
        "multiplications_fraction": fraction("multiplications"),
        "bytes_fraction": fraction("weight_bytes"),
    }
