"""The training loop: two stages, checkpoints, resume, and the two releases.

What lies in the run folder::

    tokenizer.json        learnt once, before the first step
    checkpoint.pt         model, optimiser and counters; replaced atomically
    progress.jsonl        one line a report
    STATUS                the last report, in words
    export/early          the newest usable weights
    export/1.0.0, 1.1.0   saved a third into stage 2, and at its end
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from edgeagent.train import data as batches
from edgeagent.train import tokenizer as tokenizers
from edgeagent.train.config import BOS, END, ModelConfig
from edgeagent.train.export import export, round_embedding
from edgeagent.train.model import BitNet, Rows
from edgeagent.train.schedule import Schedule

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

FIRST_RELEASE = "1.0.0"
SECOND_RELEASE = "1.1.0"
_CLIP_NORM = 1.0
_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Options:
    """What the caller asked for; exactly one of ``minutes`` and ``steps`` is set."""

    data: Path
    out: Path
    minutes: float | None = None
    steps: int | None = None
    resume: bool = False
    seed: int = 0
    compiled: bool = True
    report_every_s: float = 60.0
    save_every_s: float = 300.0
    early_every_s: float = 600.0


@dataclass
class Counters:
    """How far a run is; saved with each checkpoint."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    released: bool = False


def to_tensors(batch: batches.Batch) -> tuple[torch.Tensor, ...]:
    """Tokens, positions, scored indices and targets as tensors that share the arrays' memory."""
    arrays = (batch.tokens, batch.positions, batch.scored, batch.targets)
    return tuple(torch.from_numpy(array) for array in arrays)


def batch_loss(model: BitNet, batch: batches.Batch) -> torch.Tensor:
    """Mean cross entropy over the scored positions."""
    tokens, positions, scored, targets = to_tensors(batch)
    hidden = model(tokens, positions, [Rows(*row) for row in batch.rows])
    return functional.cross_entropy(model.logits(hidden[scored]), targets)


class Trainer:
    """One run."""

    def __init__(
        self, options: Options, schedule: Schedule, config: ModelConfig | None = None
    ) -> None:
        self._options = options
        self._schedule = schedule
        self._counters = Counters()
        self._config = config or ModelConfig()
        options.out.mkdir(parents=True, exist_ok=True)
        corpus = batches.load_corpus(options.data, options.seed)
        self._tokenizer = self._load_tokenizer(corpus)
        torch.manual_seed(options.seed)
        self._model = BitNet(self._config, options.compiled)
        self._optimizer = self._make_optimizer()
        self._stage = 1
        if options.resume:
            self._load_checkpoint()
        seed = options.seed + 1000 * self._counters.step
        self._source = batches.BatchSource(corpus, self._tokenizer, seed)
        self._heldout = self._heldout_batch(corpus)
        self._recent: list[float] = []

    def _load_tokenizer(self, corpus: batches.Corpus) -> Tokenizer:
        """Read the run's tokenizer, or learn it."""
        path = self._options.out / "tokenizer.json"
        if path.exists():
            return tokenizers.load(path)
        texts = batches.tokenizer_texts(corpus, self._options.seed)
        tokenizer = tokenizers.train(texts, self._config.vocab_size)
        tokenizers.save(tokenizer, self._options.out, self._config.max_positions)
        return tokenizer

    def _make_optimizer(self) -> torch.optim.AdamW:
        """AdamW; group 0 (the planes' masters) decays, group 1 (embedding, gains) does not."""
        groups: list[dict[str, Any]] = [
            {"params": list(self._model.projections())},
            {"params": list(self._model.others()), "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=1e-3, betas=_BETAS, fused=True)

    def _heldout_batch(self, corpus: batches.Corpus) -> batches.Batch:
        """Eight rows of held-out stories."""
        encoded = tokenizers.encode_all(self._tokenizer, corpus.heldout_stories[:60])
        stream = [t for ids in encoded for t in (BOS, *ids, END)]
        size = batches.STORY_LENGTH
        n_rows = min(batches.BATCH_TOKENS // size, (len(stream) - 1) // size)
        windows = [
            np.array(stream[i * size : (i + 1) * size + 1], dtype="int64") for i in range(n_rows)
        ]
        return batches.make_batch(windows, [])

    @property
    def _progress(self) -> float:
        """The done share of the run."""
        if self._options.minutes is not None:
            return min(1.0, self._counters.elapsed_s / (60 * self._options.minutes))
        return min(1.0, self._counters.step / (self._options.steps or 1))

    def run(self) -> None:
        """Train to the end and write both releases."""
        last = time.monotonic()
        due = {"report": 0.0, "save": self._options.save_every_s, "early": 150.0}
        due = {name: wait + self._counters.elapsed_s for name, wait in due.items()}
        stream = self._enter_stage()
        while self._progress < 1.0:
            if self._schedule.stage(self._progress) != self._stage:
                stream = self._enter_stage()
            self._step(next(stream))
            now = time.monotonic()
            self._counters.elapsed_s += now - last
            last = now
            self._do_due(due)
        self._save_checkpoint()
        self._release(SECOND_RELEASE)
        self._report()

    def _enter_stage(self) -> Iterator[batches.Batch]:
        """Set the model up for the stage that progress is in; return its batches."""
        self._stage = self._schedule.stage(self._progress)
        if self._stage == 2:
            round_embedding(self._model)
            for parameter in self._model.others():
                parameter.requires_grad_(requires_grad=False)
                parameter.grad = None
        log.info("train.stage stage=%d step=%d", self._stage, self._counters.step)
        return self._source.batches(self._schedule.story_rows(self._progress))

    def _step(self, batch: batches.Batch) -> None:
        """One optimiser step."""
        rate = self._schedule.rate(self._progress, self._counters.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.param_groups[0]["weight_decay"] = self._schedule.decay(self._progress)
        loss = batch_loss(self._model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), _CLIP_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._recent.append(loss.item())
        self._counters.step += 1
        self._counters.tokens += batches.BATCH_TOKENS

    def _do_due(self, due: dict[str, float]) -> None:
        """Report, save, export early and release when their time has come."""
        options, elapsed = self._options, self._counters.elapsed_s
        jobs = {
            "report": (self._report, options.report_every_s),
            "save": (self._save_checkpoint, options.save_every_s),
            "early": (self._export_early, options.early_every_s),
        }
        for name, (job, every_s) in jobs.items():
            if elapsed >= due[name]:
                job()
                due[name] = elapsed + every_s
        if not self._counters.released and self._progress >= self._schedule.first_release:
            self._release(FIRST_RELEASE)
            self._counters.released = True
            self._save_checkpoint()

    def _report(self) -> None:
        """Append to ``progress.jsonl`` and rewrite ``STATUS``."""
        with torch.no_grad(), self._model.eager() as model:
            heldout = batch_loss(model, self._heldout).item()
        counters = self._counters
        line = {
            **asdict(counters),
            "progress": round(self._progress, 4),
            "stage": self._stage,
            "rate": self._optimizer.param_groups[0]["lr"],
            "loss": round(sum(self._recent) / max(1, len(self._recent)), 4),
            "heldout_story_loss": round(heldout, 4),
            "tokens_per_s": round(counters.tokens / max(1.0, counters.elapsed_s)),
            "command_epochs": self._source.command_epochs,
        }
        self._recent.clear()
        with (self._options.out / "progress.jsonl").open("a") as out:
            out.write(json.dumps(line) + "\n")
        left_s = counters.elapsed_s * (1 / max(self._progress, 1e-6) - 1)
        status = f"{json.dumps(line)}\nleft: {left_s / 60:.0f} min\n"
        (self._options.out / "STATUS").write_text(status)
        log.info("train.progress %s", json.dumps(line))

    def _export_early(self) -> None:
        """Refresh the weights that others may build against."""
        export(self._model, self._tokenizer, self._options.out / "export" / "early")

    def _release(self, version: str) -> None:
        """Write a release's weights."""
        export(self._model, self._tokenizer, self._options.out / "export" / version)
        log.info("train.release version=%s step=%d", version, self._counters.step)

    def _save_checkpoint(self) -> None:
        """Write ``checkpoint.pt`` atomically."""
        path = self._options.out / "checkpoint.pt"
        partial = path.with_suffix(".partial")
        torch.save(
            {
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "counters": asdict(self._counters),
            },
            partial,
        )
        partial.rename(path)

    def _load_checkpoint(self) -> None:
        """Continue from ``checkpoint.pt``."""
        saved = torch.load(self._options.out / "checkpoint.pt", weights_only=True)
        self._model.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._counters = Counters(**saved["counters"])
