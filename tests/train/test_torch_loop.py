"""A whole training run on a toy corpus."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
import torch
import zstandard
from safetensors.torch import load_file

from edgeagent.train.config import ModelConfig
from edgeagent.train.loop import Options, Trainer
from edgeagent.train.schedule import Schedule

torch.set_num_threads(1)  # toy tensors: a second thread only waits

TINY = ModelConfig(vocab_size=300, hidden_size=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_size=16)
SCHEDULE = Schedule(stage2_start=0.5, first_release=0.75, warmup_steps=1)
SENTENCES = 'data:\n  - sentences: ["turn on the {area} lights"]\n    inferred_domain: light\n'
NLU = "answerid;scenario;intent;answer_annotation\n" + "".join(
    f'{i};iot;coffee;"make coffee number {i}"\n' for i in range(40)
)


def pack(files: dict[str, str]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return raw.getvalue()


@pytest.fixture
def data(tmp_path):
    story = "Once upon a time there was a small cat who lived in a big house. " * 3
    stories = "\n<|endoftext|>\n".join(f"{story} {i}" for i in range(60)).encode()
    snips = {"PlayMusic": [{"data": [{"text": f"play song {i}"}]} for i in range(40)]}
    pairs = [[f"flip coin {i}", "flip_coin"] for i in range(40)]
    clinc = {"train": pairs, "val": pairs[:3], "oos_train": [], "oos_val": []}
    home = {"sentences/en/HassTurnOn/area_domain.yaml": SENTENCES}
    content = {
        "stories/tinystories_train_merged.txt.zst": stories,
        "stories/tinystories_heldout.txt.zst": stories,
        "commands/snips/train_PlayMusic_full.json.zst": json.dumps(snips).encode(),
        "commands/clinc150_train_val.json.zst": json.dumps(clinc).encode(),
        "commands/nlu_home_train.tar.zst": pack({"coffee.csv": NLU}),
        "commands/home_assistant_intents_en.tar.zst": pack(home),
    }
    for name, raw in content.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstandard.compress(raw))
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def no_books(monkeypatch):
    monkeypatch.setattr("edgeagent.train.corpus_stories.BOOKS", ())


def options(data, out, **changes):
    return Options(data=data, out=out, compiled=False, **changes)


def test_a_run_writes_two_releases_that_differ_in_planes_only(data, tmp_path):
    out = tmp_path / "run"
    Trainer(options(data, out, steps=8), SCHEDULE, TINY).run()
    first, second = (
        load_file(str(out / "export" / version / "model.safetensors"))
        for version in ("1.0.0", "1.1.0")
    )
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed
    assert all(name.endswith("_proj.weight") for name in changed)
    lines = [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 8
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_resumed_run_continues_where_the_checkpoint_was(data, tmp_path):
    out = tmp_path / "run"
    Trainer(options(data, out, steps=2), SCHEDULE, TINY).run()
    Trainer(options(data, out, steps=4, resume=True), SCHEDULE, TINY).run()
    last = json.loads((out / "progress.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4
    assert last["tokens"] == 4 * 4096
