"""Real update pairs: small fine-tunes of the bundled model, for the table of ``bench/delta.py``.

    python bench/pairs.py --data DIR --out DIR     needs the extra edgeagent[train]; a CPU will do

The float masters of the bundled model are not published.  They are drawn again from its trits (a
normal distribution cut at the thresholds of absmean, so that every trit comes out as it was) and
trained on for ``BASE_STEPS`` steps, which gives ``base``.  From ``base`` start the fine-tunes, each
on its own sentences mixed with the ordinary ones: a new intent, the words of new devices, and a
correction of answers; ``embedding`` is the one with new words again, with the embedding and the
norms learning too.  ``--out`` then holds one sealed model directory for each.

``bench/pairs/*.etd`` are their deltas, written here too: ``base`` from the bundled model, the
others from ``base``; the table needs nothing else.  ``embedding`` is too large to keep.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgeagent.convert.masters import convert_masters
from edgeagent.convert.pack import unpack
from edgeagent.convert.seal import seal
from edgeagent.model.safetensors import SafetensorsFile
from edgeagent.paths import bundled_model
from edgeagent.train import data as batches
from edgeagent.train import tokenizer as tokenizers
from edgeagent.train.config import ModelConfig
from edgeagent.train.export import export
from edgeagent.train.loop import batch_loss
from edgeagent.train.model import BitNet
from edgeagent.train.samples import CommandSample, augment
from ota.encoder import Encoder
from ota.storage import Directory, read_release

SEED = 58
BASE_STEPS = 150
BASE_RATE = 6e-5
BATCH_TOKENS = 2048
OWN_SHARE = 0.5  # of a fine-tune's sentences; the rest keeps the old answers alive

PAIRS = Path(__file__).parent / "pairs"
KEPT = ("intent", "vocabulary", "correction")

PETS = ("cat", "dog", "rabbit", "hamster", "parrot", "goldfish", "tortoise", "guinea pig")
DEVICES = (
    "heat pump",
    "wallbox",
    "ventilation unit",
    "solar inverter",
    "irrigation valve",
    "dehumidifier",
    "towel rail",
    "car charger",
    "cistern pump",
    "aquarium filter",
)
ROOMS = ("kitchen", "cellar", "garage", "study", "bathroom", "hallway", "nursery", "attic")


@dataclass(frozen=True)
class Tune:
    """One fine-tune."""

    steps: int
    rate: float
    with_embedding: bool = False


TUNES = {
    "intent": Tune(100, 1e-4),
    "vocabulary": Tune(60, 6e-5),
    "correction": Tune(25, 3e-5),
    "embedding": Tune(60, 6e-5, with_embedding=True),
}


def intent_samples(rng: random.Random) -> Iterator[CommandSample]:
    """Feeding pets: an intent that the bundled model has never seen."""
    while True:
        pet = rng.choice(PETS)
        amount = str(rng.randrange(10, 200, 5))
        form = rng.choice(("feed the {}", "give the {} some food", "time to feed the {}"))
        if rng.random() < 0.5:
            text = f"{form.format(pet)} {amount} grams"
            yield CommandSample(text, "FeedPet", {"pet": pet, "grams": amount})
        else:
            yield CommandSample(form.format(pet), "FeedPet", {"pet": pet})


def vocabulary_samples(rng: random.Random) -> Iterator[CommandSample]:
    """Old intents, devices that no home of the training data has."""
    while True:
        name, area = rng.choice(DEVICES), rng.choice(ROOMS)
        verb, intent = rng.choice((("on", "HassTurnOn"), ("off", "HassTurnOff")))
        if rng.random() < 0.5:
            yield CommandSample(f"turn {verb} the {name}", intent, {"name": name})
        else:
            text = f"switch the {name} in the {area} {verb}"
            yield CommandSample(text, intent, {"area": area, "name": name})


def correction_samples(rng: random.Random) -> Iterator[CommandSample]:
    """One phrase that was understood wrongly: "lights out" means off."""
    while True:
        area = rng.choice(ROOMS)
        slots = {"area": area, "domain": "light"}
        form = rng.choice(("lights out in the {}", "{} lights out", "no more light in the {}"))
        yield CommandSample(form.format(area), "HassTurnOff", slots)


OWN = {
    "intent": intent_samples,
    "vocabulary": vocabulary_samples,
    "correction": correction_samples,
    "embedding": vocabulary_samples,
}


def bundled_trits(config: ModelConfig) -> Iterator[tuple[str, np.ndarray, float]]:
    """Yield name, trits and scale of every projection of the bundled model."""
    hidden, kv, ffn = config.hidden_size, config.kv_size, config.ffn_size
    shapes = {
        "q_proj": (hidden, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, hidden),
        "gate_proj": (ffn, hidden),
        "up_proj": (ffn, hidden),
        "down_proj": (hidden, ffn),
    }
    for path in sorted(bundled_model().glob("model-*.safetensors")):
        file = SafetensorsFile(path)
        for name, info in file.infos.items():
            if info.dtype == "U8":
                _, shape, data = file.tensor(name)
                packed = np.frombuffer(data, np.uint8).reshape(shape)
                scale = np.frombuffer(file.tensor(f"{name}_scale")[2], "<f4")
                yield name, unpack(packed, *shapes[name.split(".")[-2]]), float(scale[0])


def draw_masters(trits: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Draw weights whose absmean trits are ``trits`` and whose mean magnitude is ``scale``."""
    drawn = np.abs(rng.standard_normal(4 * trits.size))
    cut = np.quantile(drawn, (trits == 0).mean())
    small, large = drawn[drawn < cut], drawn[drawn >= cut]
    n_zero = int((trits == 0).sum())
    weights = np.empty(trits.size)
    flat = trits.reshape(-1)
    weights[flat == 0] = rng.choice(small, n_zero) * rng.choice((-0.5, 0.5), n_zero) / cut * scale
    ones = 0.5 * scale + (rng.choice(large, flat.size - n_zero) - cut)
    excess = scale * flat.size - np.abs(weights[flat == 0]).sum() - 0.5 * scale * len(ones)
    ones = 0.5 * scale + (ones - 0.5 * scale) * excess / (ones - 0.5 * scale).sum()
    weights[flat != 0] = ones * flat[flat != 0]
    return weights.reshape(trits.shape).astype(np.float32)


def load_base(config: ModelConfig) -> BitNet:
    """The bundled model with masters drawn again."""
    model = BitNet(config)
    rng = np.random.default_rng(SEED)
    state = model.state_dict()
    for path in sorted(bundled_model().glob("model-*.safetensors")):
        file = SafetensorsFile(path)
        for name, info in file.infos.items():
            if info.dtype in ("F16", "F32") and not name.endswith("_scale"):
                kind = "<f2" if info.dtype == "F16" else "<f4"
                array = np.frombuffer(file.tensor(name)[2], kind).astype(np.float32)
                state[name] = torch.from_numpy(array.reshape(state[name].shape))
    for name, trits, scale in bundled_trits(config):
        state[name] = torch.from_numpy(draw_masters(trits, scale, rng))
    model.load_state_dict(state)
    return model


def mixed(own: Iterator[CommandSample], ordinary: list[CommandSample], rng: random.Random):
    """Endless chunks of commands, half of them the fine-tune's own."""
    while True:
        n = 256
        drawn = [next(own) for _ in range(int(n * OWN_SHARE))]
        drawn += rng.sample(ordinary, n - len(drawn))
        rng.shuffle(drawn)
        yield [augment(sample, rng) for sample in drawn]


def tune_batches(name: str, corpus, tokenizer, rng: random.Random) -> Iterator[batches.Batch]:
    """Batches of commands for a fine-tune."""
    ordinary = batches.epoch_samples(corpus, rng)
    for samples in mixed(OWN[name](rng), ordinary, rng):
        rows = batches.command_rows(tokenizer, samples)
        for chunk in batches.command_chunks(rows, BATCH_TOKENS, rng):
            yield batches.make_batch([], chunk)


def train(model: BitNet, source: Iterator[batches.Batch], tune: Tune, label: str) -> None:
    """A few steps of AdamW at a rate that falls to a tenth."""
    for parameter in model.others():
        parameter.requires_grad_(tune.with_embedding)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=tune.rate, betas=(0.9, 0.95), weight_decay=0.0)
    start_s = time.monotonic()
    for step in range(tune.steps):
        share = step / tune.steps
        warm = min(1.0, (step + 1) / 10)
        optimizer.param_groups[0]["lr"] = tune.rate * warm * (1 - 0.9 * share)
        loss = batch_loss(model, next(source))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0 or step == tune.steps - 1:
            seconds = time.monotonic() - start_s
            print(f"{label} {step} loss {loss.item():.4f} {seconds:.0f} s", flush=True)


def save(model: BitNet, tokenizer, out: Path, name: str) -> None:
    """Write one model directory in our layout."""
    export(model, tokenizer, out / "masters" / name)
    convert_masters(out / "masters" / name, out / name)


def write_delta(old: Path, new: Path, target: Path) -> None:
    """Write the container from one sealed directory to another."""
    with Directory(old) as base, Directory(new) as result, target.open("wb") as out:
        Encoder((read_release(old), base), (read_release(new), result)).write(out)


def seal_and_compare(out: Path) -> None:
    """Give every model its release.json, and write the deltas that are kept."""
    for counter, name in enumerate(("base", *TUNES), start=100):
        version = "2.0.0" if name == "base" else f"2.1.0-{name}"
        seal(out / name, name="edge-tiny", version=version, counter=counter)
    PAIRS.mkdir(exist_ok=True)
    write_delta(bundled_model(), out / "base", PAIRS / "base.etd")
    for name in KEPT:
        write_delta(out / "base", out / name, PAIRS / f"{name}.etd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    batches.BATCH_TOKENS = BATCH_TOKENS
    config = ModelConfig()
    corpus = batches.load_corpus(args.data, 0)
    tokenizer = tokenizers.load(bundled_model() / "tokenizer.json")
    model = load_base(config)
    source = batches.BatchSource(corpus, tokenizer, SEED).batches(1)
    save(model, tokenizer, args.out, "drawn")
    train(model, source, Tune(BASE_STEPS, BASE_RATE), "base")
    save(model, tokenizer, args.out, "base")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, tune in TUNES.items():
        model.load_state_dict(state)
        own = tune_batches(name, corpus, tokenizer, random.Random(SEED))
        train(model, own, tune, name)
        save(model, tokenizer, args.out, name)
    seal_and_compare(args.out)


if __name__ == "__main__":
    main()
