"""Rounds and medians, with peers that answer from a list."""

import argparse

from bench import compare


class ListedPeer:
    def __init__(self, name, speeds, log):
        self.name, self.ready = name, {"file_bytes": 1}
        self._speeds, self._log = iter(speeds), log

    def ask(self, request):
        self._log.append((self.name, request["op"], request["threads"]))
        said = {"op": request["op"], "threads": request["threads"], "rss_mb": 9.0}
        if request["op"] == "decode":
            return said | {"decode_tok_s": next(self._speeds)}
        if request["op"] == "prefill":
            return said | {"prefill_tok_s": 10.0}
        return said | {"first_token_ms": 5.0, "rss_mb": 3.0}


def test_rounds_alternate_and_figures_are_medians():
    log = []
    peers = [ListedPeer("a", [1.0, 9.0, 2.0], log), ListedPeer("b", [4.0, 6.0, 50.0], log)]
    arguments = argparse.Namespace(rounds=3, threads=[2], decode=8, prefill=16)
    figures = compare.collect(peers, arguments)
    assert figures["a"]["decode_tok_s"] == {"2": 2.0}
    assert figures["b"]["decode_tok_s"] == {"2": 6.0}
    assert figures["b"]["samples"]["decode_tok_s, 2 threads"] == [4.0, 6.0, 50.0]
    assert [name for name, op, _ in log if op == "decode"] == ["a", "b", "b", "a", "a", "b"]
    assert figures["a"]["rss_mb"] == 9.0  # of the worker, not of the first-token process
    assert figures["a"]["first_token_ms"] == {"2": 5.0}


def test_only_ik_llama_reads_its_own_format(tmp_path):
    assert compare.engine_of(tmp_path / "iq2_bn.gguf") == ["--engine", "ik"]
    assert compare.engine_of(tmp_path / "tq2_0.gguf") == []
