"""What `edgeagent convert` does between reading and writing: quantise, merge, keep adapters.

The command opens a checkpoint and calls `prepare`; it writes what comes back, and calls
`Prepared.finish` on the directory before it is sealed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeagent.convert.adapter import (
    Merged,
    adapter_in,
    changed_fraction,
    check_adapter,
    copy_adapter,
)
from edgeagent.convert.calibrate import Calibration, FloatModel, sequences
from edgeagent.convert.checkpoint import Checkpoint, TokenizerFiles
from edgeagent.convert.dense import LAYOUT_OF
from edgeagent.convert.report import make_report, need_plots, summary, table, write_report
from edgeagent.convert.ternarise import Recipe, Ternarised, parse_alpha
from edgeagent.errors import ConfigError

#: Of a calibration text; 2048 tokens are used, and 32 bytes a token is far above any tokenizer.
MAX_TEXT_BYTES = 64 << 10
AUTO = "auto"
TERNARY = "ternary"
QUANTIZATIONS = (TERNARY, *LAYOUT_OF)

Say = Callable[[str], None]
#: done, total, what
Report = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of the command.

    Attributes:
        quantization: ternary, binary, int8 or f16; None: ternary where the source is, else refused.
        scheme: of a ternariser; None: absmean, or threshold where an alpha is given.
        alpha: a number, keys with numbers, or `auto`.
        heads: with `auto`: an alpha for each head of q, k and v.
        embedding: ternarise embedding and head too.
        calibrate: a text.
        report: a directory for table, JSON and plot.
        adapter: a PEFT directory to keep beside the model; None: the source's own, if it has one.
        merge_adapter: one to merge into float masters.
    """

    quantization: str | None = None
    scheme: str | None = None
    alpha: str | None = None
    heads: bool = False
    embedding: bool = False
    calibrate: Path | None = None
    report: Path | None = None
    adapter: Path | None = None
    merge_adapter: Path | None = None


@dataclass(slots=True)
class Prepared:
    """What to write, and what to say of it.

    Attributes:
        checkpoint: the source, wrapped.
        layout: 3 to 5 for the formats to compare with; None: as the writer chooses.
        facts: what was found out.
        table: the report for people; empty when nothing was ternarised here.
        adapter: to copy beside the model.
    """

    checkpoint: Checkpoint
    layout: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    table: str = ""
    adapter: Path | None = None

    def finish(self, work: Path) -> None:
        """Add the adapter to a directory that is complete but for `release.json`."""
        if self.adapter is not None:
            copy_adapter(self.adapter, work)


def _recipe(choices: Choices) -> Recipe:
    scheme = choices.scheme or ("absmean" if choices.alpha is None else "threshold")
    if choices.alpha == AUTO:
        if scheme != "threshold":
            raise ConfigError(f"--alpha auto: {scheme} has no alpha: --scheme threshold")
        if choices.calibrate is None:
            raise ConfigError("--alpha auto: expected a text to calibrate on: --calibrate FILE")
        return Recipe(scheme, {}, choices.embedding)
    if choices.heads:
        raise ConfigError("--alpha-per head: chooses with --alpha auto; else name heads in --alpha")
    alphas = {} if choices.alpha is None else parse_alpha(choices.alpha)
    return Recipe(scheme, alphas, choices.embedding)


def _check(choices: Choices) -> None:
    """Refuse what contradicts itself."""
    kind = choices.quantization
    if kind not in (None, *QUANTIZATIONS):
        raise ConfigError(f"--quantization: expected one of {QUANTIZATIONS}, got {kind!r}")
    ternariser = (choices.scheme, choices.alpha, choices.calibrate, choices.report)
    if kind != TERNARY and (any(ternariser) or choices.embedding or choices.heads):
        raise ConfigError(
            "--scheme, --alpha, --calibrate, --report and --ternary-embedding belong to "
            "--quantization ternary"
        )
    if choices.adapter is not None and choices.merge_adapter is not None:
        raise ConfigError(
            "--adapter keeps an adapter beside the model, --merge-adapter merges: one"
        )
    if choices.report is not None:
        need_plots()


def _tokens(path: Path, tokenizer: TokenizerFiles | None) -> list[int]:
    from tokenizers import Tokenizer

    if tokenizer is None:
        raise ConfigError("--calibrate: the source has no tokenizer: name one with --tokenizer")
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TEXT_BYTES).decode("utf-8", "ignore")
    except OSError as err:
        raise ConfigError(f"--calibrate: {path}: {err.strerror}") from err
    hf = Tokenizer.from_str(json.dumps(tokenizer.tokenizer))
    return list(hf.encode(text, add_special_tokens=False).ids)


def _ternarise(
    source: Checkpoint,
    choices: Choices,
    tokenizer: TokenizerFiles | None,
    report: Report,
    facts: dict[str, Any],
) -> tuple[Ternarised, Mapping[str, float]]:
    """Return the wrapped source, and the output errors by tensor name."""
    recipe = _recipe(choices)
    facts["scheme"] = recipe.scheme
    wrapped = Ternarised(source, recipe)
    if choices.calibrate is None:
        return wrapped, {}
    tokens = _tokens(choices.calibrate, tokenizer or source.tokenizer())
    context = int(source.config.get("max_position_embeddings", 0)) or 2048
    model = FloatModel(source, sequences(tokens, context))
    watch = Calibration(wrapped, choose=choices.alpha == AUTO, heads=choices.heads)
    model.run(watch.visit, report)
    facts["float_loss"] = round(model.loss(), 4)
    if watch.chosen:
        wrapped = Ternarised(source, recipe, watch.chosen)
    return wrapped, watch.errors


def _merged(source: Checkpoint, choices: Choices, facts: dict[str, Any]) -> Checkpoint:
    if choices.merge_adapter is None:
        return source
    merged = Merged(source, choices.merge_adapter)
    before: Checkpoint = source
    after: Checkpoint = merged
    if choices.quantization == TERNARY and choices.alpha != AUTO:
        before, after = (Ternarised(c, _recipe(choices)) for c in (source, merged))
    ternary = [name for name in merged.merged if after.is_ternary(name)]
    if ternary:
        facts["changed_trits"] = changed_fraction(before, after, ternary)
    return merged


def prepare(
    path: Path,
    source: Checkpoint,
    choices: Choices,
    tokenizer: TokenizerFiles | None = None,
    report: Report = lambda done, total, what: None,
) -> Prepared:
    """Wrap `source` as the options say.

    Args:
        path: where `source` was opened; an adapter that lies there is kept.
        source: the checkpoint.
        choices: the options.
        tokenizer: in place of the source's own, for a calibration.
        report: is told of the progress of a calibration and of a report.

    Raises:
        ConfigError: options that contradict each other or the source.
        ModelError: an adapter that does not fit, a text or weights that cannot be used.
    """
    _check(choices)
    facts: dict[str, Any] = {}
    source = _merged(source, choices, facts)
    prepared = Prepared(source, facts=facts)
    if choices.quantization in LAYOUT_OF:
        prepared.layout = LAYOUT_OF[choices.quantization]
    elif choices.quantization == TERNARY:
        wrapped, errors = _ternarise(source, choices, tokenizer, report, facts)
        rows = make_report(wrapped, errors, report) if choices.report or errors else []
        prepared.checkpoint, prepared.table = wrapped, table(rows) if rows else ""
        facts |= summary(rows) if rows else {}
        if choices.report is not None:
            write_report(choices.report, rows, facts)
    adapter = choices.adapter
    if adapter is None and choices.merge_adapter is None and path.is_dir():
        adapter = adapter_in(path)
    if adapter is not None:
        check_adapter(adapter, source.shapes())
        prepared.adapter = adapter
    return prepared
