"""The engine process, driven over a real socket pair as the agent drives it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.model.test_adapter import write_adapter
from tests.tiny import make_model

TIMEOUT_S = 60


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("m") / "model")


def cpu_s(pid):
    """Processor seconds of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Engine:
    def __init__(self, path, *options):
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(TIMEOUT_S)
        fd = str(theirs.fileno())
        command = [sys.executable, "-m", "edgeagent.engine", "--fd", fd, "--model", str(path)]
        self.process = subprocess.Popen([*command, *options], pass_fds=[theirs.fileno()])
        theirs.close()
        self.lines = self.sock.makefile("rb")
        self.first = self.receive()

    def send(self, **message):
        self.sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self):
        return json.loads(self.lines.readline() or b"null")

    def until(self, *events):
        seen = [self.receive()]
        while seen[-1]["event"] not in events:
            seen.append(self.receive())
        return seen

    def close(self):
        self.lines.close()
        self.sock.close()
        return self.process.wait(TIMEOUT_S)


@pytest.fixture
def engine(path):
    engine = Engine(path)
    yield engine
    engine.process.kill()
    engine.close()


def test_it_says_what_it_loaded(engine, path):
    ready = engine.first
    assert ready["event"] == "ready"
    assert ready["model"]["version"] == "1.0.0"
    assert len(ready["model"]["root"]) == 64
    assert ready["context"] == 128
    assert ready["rss_mib"] > 0


def test_tokens_stream_and_the_end_stands_alone(engine):
    engine.send(op="generate", id="a", prompt="hello", params={"max_tokens": 8})
    *tokens, done = engine.until("done")
    assert {t["event"] for t in tokens} <= {"token"}
    assert done["id"] == "a"
    assert "".join(t["text"] for t in tokens) == done["text"]
    assert done["usage"]["prompt_tokens"] == 6
    assert done["usage"]["cached_tokens"] == 0
    engine.send(op="generate", id="b", prompt="hello", params={"max_tokens": 8})
    again = engine.until("done")[-1]
    assert (again["text"], again["usage"]["cached_tokens"]) == (done["text"], 5)


def test_messages_go_through_the_template(engine):
    messages = [{"role": "user", "content": "hi"}]
    engine.send(op="generate", id="a", messages=messages, params={"max_tokens": 2})
    assert engine.until("done")[-1]["usage"]["prompt_tokens"] == 6


def test_cancel_and_ping_are_heard_in_the_middle_of_an_answer(engine):
    engine.send(op="generate", id="a", prompt="x", params={"max_tokens": 120, "temperature": 1.5})
    engine.send(op="ping", n=5)
    engine.send(op="cancel", id="other")
    engine.send(op="cancel", id="a", reason="deadline")
    seen = engine.until("done")
    assert {"event": "pong", "n": 5} in seen
    assert seen[-1]["finish_reason"] == "deadline"


def test_it_rests_between_tokens_as_the_pace_demands(engine):
    engine.send(op="generate", id="a", prompt="x", params={"max_tokens": 30})
    text = engine.until("done")[-1]["text"]
    engine.send(op="pace", duty=0.05)
    before, started = cpu_s(engine.process.pid), time.monotonic()
    engine.send(op="generate", id="b", prompt="x", params={"max_tokens": 30})
    assert engine.until("done")[-1]["text"] == text
    elapsed = time.monotonic() - started
    assert cpu_s(engine.process.pid) - before < 0.5 * elapsed + 0.05  # of two clock ticks and more


def test_a_cancel_ends_a_rest(engine):
    engine.send(op="pace", duty=0.05)
    engine.send(op="generate", id="a", prompt="x", params={"max_tokens": 120})
    engine.until("token", "done")
    engine.send(op="cancel", id="a")
    assert engine.until("done")[-1]["finish_reason"] == "cancelled"


def test_it_stays_on_its_cpus(path):
    cpu = max(os.sched_getaffinity(0))
    engine = Engine(path, "--cpus", str(cpu), "--threads", "3")
    tasks = list(Path(f"/proc/{engine.process.pid}/task").iterdir())
    assert all(os.sched_getaffinity(int(task.name)) == {cpu} for task in tasks)
    assert len(tasks) >= 3
    assert engine.close() == 0


def test_cpus_that_are_not_there_are_the_operators_error(path):
    engine = Engine(path, "--cpus", "8191")
    assert engine.first["event"] == "failed"
    assert "engine.cpus: 8191" in engine.first["error"]["message"]
    assert engine.close() == 78


def test_a_second_query_waits_for_the_first(engine):
    for query in "ab":
        engine.send(op="generate", id=query, prompt="x", params={"max_tokens": 5})
    assert engine.until("done")[-1]["id"] == "a"
    assert engine.until("done")[-1]["id"] == "b"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"prompt": "x" * 500}, "context_full"),
        ({"messages": [{"role": "user", "content": "x" * 500}]}, "context_full"),
        ({"prompt": "x", "params": {"temperature": -1}}, "bad_request"),
        ({"prompt": "x", "params": {"top_k": "many"}}, "bad_request"),
    ],
)
def test_a_bad_query_ends_with_its_code_and_the_next_is_answered(engine, query, code):
    engine.send(op="generate", id="bad", **query)
    error = engine.until("error")[-1]["error"]
    assert error["code"] == code
    assert "\n" not in error["message"]
    engine.send(op="generate", id="good", prompt="x", params={"max_tokens": 1})
    assert engine.until("done")[-1]["id"] == "good"


def test_health_is_exact(engine):
    engine.send(op="health")
    health = engine.receive()
    assert health["ok"]
    assert [check["detail"] for check in health["checks"]] == ["exact"] * 3


def test_it_leaves_when_told_and_when_the_agent_has_gone(path):
    for leave in (lambda e: e.send(op="quit"), lambda e: None):
        engine = Engine(path)
        leave(engine)
        assert engine.close() == 0


def test_a_broken_model_is_reported_in_one_line(path, tmp_path):
    engine = Engine(tmp_path)
    assert engine.first["event"] == "failed"
    assert engine.first["error"]["code"] == "model"
    assert engine.close() == 65


def test_an_unknown_kernel_is_the_operators_error(path):
    engine = Engine(path, "--kernel", "avx9000")
    assert engine.first["error"]["code"] == "config"
    assert "scalar" in engine.first["error"]["message"]
    assert engine.close() == 78


def test_it_never_survives_its_parent(path):
    """A shell stands for the agent: it starts the engine, is killed, and the engine goes too."""
    ours, theirs = socket.socketpair()
    engine = f"{sys.executable} -m edgeagent.engine --fd {theirs.fileno()} --model {path}"
    script = f"{engine} & echo $!; wait"
    shell = subprocess.Popen(
        ["sh", "-c", script], pass_fds=[theirs.fileno()], stdout=subprocess.PIPE
    )
    theirs.close()
    ours.settimeout(TIMEOUT_S)
    pid = int(shell.stdout.readline())
    assert b"ready" in ours.recv(1 << 16)
    fd = os.pidfd_open(pid)
    shell.send_signal(signal.SIGKILL)
    import select

    assert select.select([fd], [], [], TIMEOUT_S)[0], "the engine outlived its parent"
    os.close(fd)
    shell.stdout.close()
    shell.wait()
    ours.close()


def answer(engine, query, prompt="turn on the light"):
    engine.send(op="generate", id=query, prompt=prompt, params={"max_tokens": 12})
    return engine.until("done", "error")[-1]["text"]


def test_adapters_are_swapped_between_two_answers(engine, tmp_path):
    lora = tmp_path / "lora"
    write_adapter(lora)
    plain = answer(engine, "a")
    # asked for in the middle of an answer, which ends as it began
    engine.send(op="generate", id="b", prompt="turn on the light", params={"max_tokens": 12})
    engine.send(op="adapter", path=str(lora))
    seen = engine.until("adapter")
    assert [m["text"] for m in seen if m["event"] == "done"] == [plain]
    assert seen[-1] == {"event": "adapter", "ok": True, "path": str(lora)}
    adapted = answer(engine, "c")
    assert adapted != plain
    engine.send(op="adapter", path=None)
    assert engine.receive()["ok"]
    assert answer(engine, "d") == plain
    engine.send(op="adapter", path=str(lora))
    assert engine.receive()["ok"]
    assert answer(engine, "e") == adapted


def test_an_adapter_that_is_refused_changes_nothing(engine, tmp_path):
    lora = tmp_path / "lora"
    write_adapter(lora)
    engine.send(op="adapter", path=str(lora))
    assert engine.receive()["ok"]
    adapted = answer(engine, "a")
    for path in (str(tmp_path / "none"), 7):
        engine.send(op="adapter", path=path)
        refused = engine.receive()
        assert not refused["ok"]
        assert refused["error"]["code"] == "model"
    assert answer(engine, "b") == adapted
