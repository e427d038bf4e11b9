"""The worker's protocol, with an engine that only notes what it is asked: no llama.cpp needed."""

import argparse
import io
import json

import numpy as np
import pytest

from bench import peers

VOCAB = 50


class NotingEngine:
    """Logits always name the number of tokens seen so far; batches are written down."""

    vocab_size = VOCAB

    def __init__(self):
        self.batches = []
        self.threads = None
        self._seen = 0

    def set_threads(self, threads):
        self.threads = threads

    def forget(self):
        self._seen = 0
        self.batches.append("forget")

    def eval(self, ids):
        self._seen += len(ids)
        self.batches.append(list(ids))

    def logits(self):
        return np.eye(VOCAB, dtype=np.float32)[self._seen]


@pytest.fixture
def engine():
    return NotingEngine()


@pytest.fixture
def worker(engine):
    return peers.Worker(engine, argparse.Namespace(context=512))


def test_decode_is_one_token_a_batch_and_each_is_the_arg_max_before_it(engine, worker):
    answer = worker.answer({"op": "decode", "tokens": 3, "threads": 2, "past": 4})
    assert engine.batches[0] == "forget"
    assert [len(batch) for batch in engine.batches[1:]] == [4, 1, 1, 1]
    assert engine.batches[2:] == [[4], [5], [6]]
    assert engine.threads == 2
    assert answer["decode_tok_s"] == pytest.approx(3 / answer["seconds"], rel=1e-3)
    assert answer["rss_mb"] > 1


def test_prefill_is_one_batch_on_an_empty_cache(engine, worker):
    answer = worker.answer({"op": "prefill", "tokens": 20})
    assert [len(batch) for batch in engine.batches[1:]] == [20]
    assert len(set(engine.batches[1])) == 20
    assert (answer["tokens"], answer["threads"]) == (20, 1)
    assert answer["prefill_tok_s"] == pytest.approx(20 / answer["seconds"], rel=1e-3)


def test_numbers_left_out_take_the_documented_values(engine, worker):
    answer = worker.answer({"op": "decode"})
    assert {k: answer[k] for k in ("tokens", "threads", "past")} == peers.DEFAULTS
    answer = worker.answer({"op": "prefill", "tokens": 30})
    assert answer["threads"] == 1


def test_logits_of_every_position_are_saved(tmp_path, worker):
    out = str(tmp_path / "logits.npy")
    assert worker.answer({"op": "logits", "ids": [7, 8], "out": out})["shape"] == [2, VOCAB]
    assert np.load(out).argmax(axis=1).tolist() == [1, 2]


def test_a_bad_request_is_answered_and_the_next_one_too(monkeypatch, capsys, worker):
    lines = ["not json", "[]", '{"op": "fly"}', '{"op": "prefill", "tokens": 2}', '{"op": "quit"}']
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*lines, '{"op": "decode"}'])))
    peers.serve(worker)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in answer for answer in answers] == [True, True, True, False]
    assert "got 'fly'" in answers[2]["error"]


def test_a_missing_engine_is_one_clear_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["peers.py", str(tmp_path / "model.gguf")])
    assert peers.main() == 1
    failed = json.loads(capsys.readouterr().out)
    assert failed["event"] == "failed"
    assert "run `make peers`" in failed["error"]
