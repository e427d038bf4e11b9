"""A ternary model in a Python program, without the daemon.

    from edgeagent import TernaryTransformer

    with TernaryTransformer.from_pretrained("model-dir") as model:
        print(model.generate("Once upon a time", max_tokens=50).text)

A directory of ours is mapped where it lies.  Anything else that `edgeagent convert` reads is
converted once, into a cache, which needs the `fleet` extra.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeagent.errors import ConfigError, ModelError
from edgeagent.model.generation import LoadedModel, Outcome, Params
from ota.release import RELEASE_FILE

#: More threads than this only fight for the same memory bus on the boards we serve.
MAX_DEFAULT_THREADS = 4
#: Changes when a conversion would write something else from the same source.
CACHE_RECIPE = 1
#: Tokens of a window of `perplexity`: long enough to judge by, short enough to repeat.
DEFAULT_WINDOW = 512

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Result:
    """An answer.

    Attributes:
        text: what was generated.
        tokens: its token ids; an end-of-sequence token is not among them.
        finish_reason: "stop" (the model or a stop text ended it) or "length".
        usage: `prompt_tokens`, `cached_tokens` of them, `completion_tokens`.
        timings: `prefill_ms`, `decode_ms`, `tokens_per_s` (None before the second token).
        skipped: fractions of multiplications and of weight bytes that zeros saved.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    usage: Mapping[str, int]
    timings: Mapping[str, float | None]
    skipped: Mapping[str, float]


def default_threads() -> int:
    """Return the cores that this process may use, at most MAX_DEFAULT_THREADS."""
    return min(len(os.sched_getaffinity(0)), MAX_DEFAULT_THREADS)


def default_cache() -> Path:
    """Return where conversions are kept: $EDGEAGENT_CACHE, or below $XDG_CACHE_HOME."""
    named = os.environ.get("EDGEAGENT_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgeagent" / "models"


def is_ours(path: Path) -> bool:
    """Say whether `path` is a model directory that needs no conversion."""
    return (path / RELEASE_FILE).is_file()


def _fingerprint(paths: Sequence[Path]) -> str:
    """Return what changes when a source does: names, sizes and times of its files."""
    digest = hashlib.sha256(f"{CACHE_RECIPE}\n".encode())
    for path in paths:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                stat = file.stat()
                digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _name(path: Path) -> str:
    """Return a name that a release may have."""
    stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in path.stem.lower())
    return stem.encode("ascii", "ignore").decode().strip("._-")[:64] or "model"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes: two of them do not convert the same model at once."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(source: Path, target: Path, tokenizer: Path | None) -> None:
    from edgeagent.convert.adapter import adapter_in, check_adapter, copy_adapter
    from edgeagent.convert.packed import Options, write_model
    from edgeagent.convert.seal import seal
    from edgeagent.convert.sources import open_checkpoint, open_tokenizer

    is_file = tokenizer is not None and tokenizer.is_file()
    checkpoint = open_checkpoint(source, tokenizer=tokenizer if is_file else None)
    other = None if tokenizer is None or is_file else open_tokenizer(tokenizer)
    adapter = adapter_in(source)
    if adapter is not None:
        check_adapter(adapter, checkpoint.shapes())

    def finish(work: Path) -> None:
        if adapter is not None:
            copy_adapter(adapter, work)
        seal(work, name=_name(source), version="1", counter=1)

    write_model(checkpoint, target, Options(tokenizer=other), finish)


def resolve(
    path: Path | str, *, tokenizer: Path | str | None = None, cache_dir: Path | str | None = None
) -> Path:
    """Return a directory of ours for `path`, converted into the cache if need be.

    Raises:
        ConfigError: it has to be converted, and the `fleet` extra is not installed; or a
            tokenizer is named for a directory that has its own.
        ModelError: nothing is there, or no model that we read.
    """
    source = Path(path)
    if is_ours(source):
        if tokenizer is not None:
            raise ConfigError(f"{source}: has its own tokenizer: leave --tokenizer out")
        return source
    if not source.exists():
        raise ModelError(
            f"{source}: expected a directory with release.json or config.json, or a GGUF file; "
            "nothing is there"
        )
    if find_spec("numpy") is None:
        raise ConfigError(
            f"{source}: is not in our layout, and converting it needs numpy: "
            "pip install 'edgeagent[fleet]'"
        )
    other = None if tokenizer is None else Path(tokenizer)
    cache = default_cache() if cache_dir is None else Path(cache_dir)
    cache.mkdir(parents=True, exist_ok=True)
    key = _fingerprint([source] if other is None else [source, other])
    target = cache / f"{_name(source)}-{key}"
    with _locked(cache / f".{target.name}.lock"):
        if not is_ours(target):
            shutil.rmtree(target, ignore_errors=True)
            _convert(source, target, other)
    return target


class TernaryTransformer:
    """One loaded model with one KV cache; one thread at a time may use it."""

    def __init__(self, model: LoadedModel) -> None:
        """Take a loaded model; `from_pretrained` is the usual way."""
        self._model: LoadedModel | None = model

    @classmethod
    def from_pretrained(
        cls,
        path: Path | str,
        *,
        tokenizer: Path | str | None = None,
        kv_bits: int = 16,
        kv_group_size: int = 64,
        zero_skip: bool = True,
        threads: int | None = None,
        context: int | None = None,
        kernel: str | None = None,
        cache_dir: Path | str | None = None,
    ) -> Self:
        """Load a model from anywhere.

        Args:
            path: a directory of ours, a Hugging Face directory, a GGUF file.
            tokenizer: a directory or file, for a source that has none.
            kv_bits: bits of a number in the KV cache: 4, 8, 16 or 32.  The default is 16: it is the
                one that changes no answer in practice; 4 takes 3.5 times less memory.
            kv_group_size: channels that share a scale in 8 and 4 bits.
            zero_skip: skip zeros; never changes an answer.
            threads: compute threads; None: the cores, at most 4.
            context: positions of the KV cache; None: all that the model has.
            kernel: a kernel variant's name; None: the best.
            cache_dir: where a converted model is kept; None: `default_cache`.

        Raises:
            ModelError: no model, or one that is not sound.
            ConfigError: an argument is out of range, or an extra is missing.
        """
        directory = resolve(path, tokenizer=tokenizer, cache_dir=cache_dir)
        try:
            return cls(
                LoadedModel(
                    directory,
                    threads=default_threads() if threads is None else threads,
                    kernel=kernel,
                    zero_skip=zero_skip,
                    kv_bits=kv_bits,
                    kv_group_size=kv_group_size,
                    context=context,
                    comparison=True,
                )
            )
        except ValueError as err:
            raise ConfigError(str(err)) from err

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give memory and threads back; a closed model answers nothing."""
        self._model = None

    @property
    def loaded(self) -> LoadedModel:
        """Return the loaded model below.

        Raises:
            ConfigError: it was closed.
        """
        if self._model is None:
            raise ConfigError("this model is closed: load it again")
        return self._model

    def generate(self, prompt: str, **sampling: Any) -> Result:
        """Continue a text.

        Args:
            prompt: the text.
            sampling: fields of `Params`: max_tokens, temperature, top_k, top_p, min_p,
                repetition_penalty, seed, stop, zero_skip.

        Raises:
            ContextFull: the prompt leaves no room for an answer.
            ConfigError: an unknown or impossible sampling parameter.
        """
        return self._collect(self._steps(prompt, None, sampling))

    def chat(self, messages: Sequence[Message] | str, **sampling: Any) -> Result:
        """Answer messages (`role`, `content`) through the model's chat template; or one text.

        Raises:
            ModelError: the model has no chat template.
            ContextFull, ConfigError: as `generate`.
        """
        return self._collect(self._steps(None, _messages(messages), sampling))

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Yield the text of an answer as it comes: to a prompt, or to messages.

        Raises:
            ContextFull, ConfigError, ModelError: as `generate` and `chat`.
        """
        if (prompt is None) == (messages is None):
            raise ConfigError("stream: expected a prompt or messages, one of the two")
        return _pieces(self._steps(prompt, messages, sampling))

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text, as `generate` sees it."""
        return self.loaded.encode(text, None)

    def _steps(
        self, prompt: str | None, messages: Sequence[Message] | None, sampling: Mapping[str, Any]
    ) -> Generator[str, Any, Outcome]:
        unknown = set(sampling) - set(Params.__dataclass_fields__)
        if unknown:
            raise ConfigError(
                f"{sorted(unknown)[0]}: expected one of {', '.join(Params.__dataclass_fields__)}"
            )
        model = self.loaded
        return model.generate(model.encode(prompt, messages), Params.from_mapping(sampling))

    @staticmethod
    def _collect(steps: Generator[str, Any, Outcome]) -> Result:
        try:
            while True:
                next(steps)
        except StopIteration as end:
            return _result(end.value)
        except ValueError as err:  # the core refuses a sampling parameter
            raise ConfigError(str(err)) from err

    def set_adapter(self, path: Path | str | None) -> None:
        """Use the LoRA adapter in a PEFT directory from now on; None for none.

        Raises:
            ModelError: it does not fit; nothing has changed.
        """
        self.loaded.set_adapter(None if path is None else Path(path))

    def perplexity(
        self, text: str, *, stride: int | None = None, window: int | None = None
    ) -> float:
        """Return exp of the mean negative log likelihood of a text's tokens but the first.

        The text is read in windows that begin `stride` tokens apart; each token is judged once,
        in the first window that holds it, with what precedes it there.

        Args:
            text: any length.
            stride: None: half a window.  The smaller, the more context, and the slower.
            window: None: 512 tokens, or the context if that is shorter.

        Raises:
            ConfigError: fewer than two tokens, or a stride outside 1 to window - 1.
        """
        model = self.loaded
        ids = self.tokenize(text)
        size = min(window or DEFAULT_WINDOW, model.session.context)
        step = size // 2 if stride is None else stride
        if len(ids) < 2 or not 1 <= step < size:
            raise ConfigError(
                f"perplexity: expected 2 tokens or more and a stride from 1 to {size - 1}, "
                f"got {len(ids)} and {step}"
            )
        total = 0.0
        done = 1  # the first token has nothing before it
        for begin in range(0, len(ids), step):
            end = min(begin + size, len(ids))
            total += self._judge(ids[begin:end], done - begin)
            done = end
            if end == len(ids):
                break
        model.forget()
        return math.exp(total / (len(ids) - 1))

    def _judge(self, ids: Sequence[int], first: int) -> float:
        """Return the summed negative log likelihood of `ids[first:]`, given what precedes them."""
        session = self.loaded.session
        self.loaded.forget()
        session.eval(ids[:first])
        total = 0.0
        for at in range(first, len(ids)):
            logits = session.logits()
            total += _surprise(logits, ids[at])
            if at + 1 < len(ids):
                session.eval(ids[at : at + 1])
        return total


def _result(outcome: Outcome) -> Result:
    said = outcome.as_messages()
    return Result(
        outcome.text, tuple(outcome.tokens), outcome.finish_reason,
        said["usage"], said["timings"], outcome.skipped,
    )  # fmt: skip


def _messages(messages: Sequence[Message] | str) -> Sequence[Message]:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


def _pieces(steps: Generator[str, Any, Outcome]) -> Iterator[str]:
    try:
        yield from (text for text in steps if text)
    except ValueError as err:
        raise ConfigError(str(err)) from err


def _surprise(logits: memoryview, token: int) -> float:
    """Return -log of a token's probability."""
    values = logits.tolist()
    largest = max(values)
    total = math.fsum(math.exp(value - largest) for value in values)
    return float(math.log(total) + largest - values[token])
