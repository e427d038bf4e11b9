"""A peer is a process: a small real one speaks the protocol of bench/peers.py here."""

import sys

import pytest

from edgeagent.bench.peer import Peer, split_command
from edgeagent.errors import AdapterError, ConfigError

WORKER = """
import json, sys
print(json.dumps({"event": "ready", "name": "other", "model": "bitnet 2B TQ2_0"}), flush=True)
for line in sys.stdin:
    r = json.loads(line)
    if r["op"] == "decode":
        print(json.dumps({"op": "decode", "decode_tok_s": r["tokens"] * 2.0}), flush=True)
    elif r["op"] == "die":
        sys.exit(3)
    elif r["op"] == "babble":
        print("llama_init: hello", flush=True)
    else:
        print(json.dumps({"error": "no such op"}), flush=True)
"""


def command(tmp_path, text=WORKER):
    path = tmp_path / "worker.py"
    path.write_text(text)
    return f"{sys.executable} {path}"


def test_a_name_may_stand_before_the_command():
    assert split_command("python w.py 'a b.gguf'") == (None, ["python", "w.py", "a b.gguf"])
    assert split_command("llama.cpp TQ2_0=python w.py") == ("llama.cpp TQ2_0", ["python", "w.py"])
    assert split_command("/x/y=z/python w") == (None, ["/x/y=z/python", "w"])


@pytest.mark.parametrize("text", ["", "  ", "name=", "python 'open"])
def test_no_command_is_one_clear_line(text):
    with pytest.raises(ConfigError, match="--peer"):
        split_command(text)


def test_it_answers_and_is_named_by_what_it_runs(tmp_path):
    with Peer(command(tmp_path)) as peer:
        peer.wait()
        assert peer.name == "other TQ2_0"
        assert peer.ask("decode", tokens=8, threads=1)["decode_tok_s"] == 16.0
        with pytest.raises(AdapterError, match="no such op"):
            peer.ask("nonsense")
        assert peer.ask("decode", tokens=4)["decode_tok_s"] == 8.0


def test_a_given_name_stays(tmp_path):
    with Peer(f"mine={command(tmp_path)}") as peer:
        peer.wait()
        assert peer.name == "mine"


def test_a_dead_peer_and_one_that_babbles_are_errors(tmp_path):
    with Peer(command(tmp_path)) as peer:
        peer.wait()
        with pytest.raises(AdapterError, match="expected JSON, got 'llama_init"):
            peer.ask("babble")
        with pytest.raises(AdapterError, match="exit code 3"):
            peer.ask("die")


def test_one_that_cannot_load_says_so(tmp_path):
    text = 'print(\'{"event": "failed", "error": "no such file"}\')'
    with Peer(command(tmp_path, text)) as peer, pytest.raises(AdapterError, match="no such file"):
        peer.wait()


def test_a_program_that_is_not_there_is_one_clear_line():
    with pytest.raises(AdapterError, match="no-such-program"):
        Peer("no-such-program-at-all")
