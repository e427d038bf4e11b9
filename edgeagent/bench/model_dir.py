"""Synthetic model directories, made once and kept in a cache.

The weights do not depend on the shares that are asked for, only the norms do: weights are written
once a shape and hard-linked into the directory of every pair of targets.  A directory is made
beside its place and renamed when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgeagent.bench.calibrate import Calibration, calibrate, measure_with, untuned
from edgeagent.bench.shapes import Shape
from edgeagent.bench.synthetic import (
    RECIPE,
    Report,
    norm_tensors,
    shard_name,
    write_shard,
    write_weights,
)
from edgeagent.convert.seal import hash_files
from edgeagent.model.files import (
    CONFIG_NAME,
    INDEX_NAME,
    QUANT_METHOD,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    Tensors,
    read_json,
)
from edgeagent.model.safetensors import SafetensorsFile
from ota.release import RELEASE_FILE, Health, make_release

BENCH_NAME = "bench.json"
SPECIAL = ("<|bos|>", "<|eos|>")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A synthetic model: its shape, and the shares that its norms are tuned for."""

    shape: Shape
    zero_act: float
    closed_gates: float

    def key(self, *, weights_only: bool = False) -> str:
        """Return the name of its directory below the cache."""
        facts = {"shape": asdict(self.shape), "recipe": RECIPE, "layout": self.shape.layout}
        if not weights_only:
            facts |= {"zero_act": self.zero_act, "closed_gates": self.closed_gates}
        text = json.dumps(facts, sort_keys=True)
        kind = "weights" if weights_only else "model"
        return f"{self.shape.name}-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def write_json(path: Path, value: Any) -> None:
    """Write one JSON object, keys sorted."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_tokenizer(shape: Shape, path: Path) -> None:
    """Write a byte-level tokenizer padded to the vocabulary: loading it costs what it must."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *alphabet]
    words += [f"Ġ{i:06d}" for i in range(shape.vocab - len(words))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    tokenizer.save(str(path / TOKENIZER_NAME), pretty=False)
    write_json(path / TOKENIZER_CONFIG_NAME, {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]})


def fresh(path: Path) -> Path:
    """Return an empty directory beside `path`, to be renamed to it."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def settle(partial: Path, path: Path) -> Path:
    """Rename a finished directory; another process may have been faster, with the same bytes."""
    try:
        partial.rename(path)
    except OSError:
        shutil.rmtree(partial)
    return path


def _weights(wanted: Wanted, cache: Path, report: Report) -> Path:
    path = cache / wanted.key(weights_only=True)
    if path.exists():
        return path
    partial = fresh(path)
    weight_map = write_weights(wanted.shape, partial, report)
    write_tokenizer(wanted.shape, partial)
    write_json(partial / INDEX_NAME, {"metadata": {}, "weight_map": weight_map})
    return settle(partial, path)


def _tune(wanted: Wanted, weights: Path, config: dict[str, Any], report: Report) -> Calibration:
    tensors: Tensors = {}
    for shard in sorted(weights.glob("*.safetensors")):
        file = SafetensorsFile(shard)
        tensors |= {name: file.tensor(name) for name in file.infos}
    measure = measure_with(config, tensors)
    if not wanted.shape.relu2:
        return untuned(wanted.shape, measure)
    return calibrate(wanted.shape, measure, wanted.zero_act, wanted.closed_gates, report)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def ensure_model(wanted: Wanted, cache: Path, report: Report) -> Path:
    """Return the directory of a synthetic model, made now if it is not in the cache."""
    path = cache / wanted.key()
    if path.exists():
        return path
    weights = _weights(wanted, cache, report)
    config = wanted.shape.config()
    config["quantization_config"] = {"quant_method": QUANT_METHOD, "layout": wanted.shape.layout}
    tuned = _tune(wanted, weights, config, report)
    partial = fresh(path)
    for file in weights.iterdir():
        if file.name != INDEX_NAME:
            link(file, partial / file.name)
    norm_shard = shard_name(wanted.shape, wanted.shape.layers + 1)
    names = write_shard(partial / norm_shard, wanted.shape.layout, norm_tensors(tuned.norms))
    weight_map = read_json(weights / INDEX_NAME)["weight_map"] | dict.fromkeys(names, norm_shard)
    write_json(partial / INDEX_NAME, {"metadata": {}, "weight_map": weight_map})
    write_json(partial / CONFIG_NAME, config)
    facts = asdict(tuned)
    del facts["norms"]
    write_json(partial / BENCH_NAME, {"wanted": asdict(wanted), "tuned": facts})
    name = f"bench-{wanted.shape.name}"
    release = make_release(name, str(RECIPE), 1, hash_files(partial), Health())
    (partial / RELEASE_FILE).write_bytes(release.text)
    return settle(partial, path)
