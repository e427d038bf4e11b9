import asyncio
import json
import socket
import stat
import threading

import pytest

from edgeagent.adapters import control
from edgeagent.adapters.control import Control, ask, only_agent
from edgeagent.errors import AdapterError


def serving(path, body, handle=None):
    """Run `body` in a thread while a door is open at `path`."""

    async def main():
        door = Control(path, handle or (lambda request: {"heard": request}), lambda: None, 0.05)
        task = asyncio.create_task(door.run())
        await asyncio.sleep(0.1)
        try:
            return await asyncio.to_thread(body)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return asyncio.run(main())


def raw(path, data):
    with socket.socket(socket.AF_UNIX) as link, control._short(path) as name:
        link.connect(name)
        link.settimeout(10)
        link.sendall(data)
        with link.makefile("rb") as answers:
            return json.loads(answers.readline())


def test_one_line_in_one_line_out(tmp_path):
    path = tmp_path / "control.sock"
    assert serving(path, lambda: ask(path, {"update": "status"})) == {"heard": {"update": "status"}}
    assert not path.exists()  # it is gone with the agent


def test_a_path_longer_than_an_address_is_no_trouble(tmp_path):
    path = tmp_path / ("d" * 120) / "control.sock"
    assert serving(path, lambda: ask(path, {}))["heard"] == {}


def test_only_the_agents_user_may_open_it(tmp_path):
    path = tmp_path / "control.sock"
    mode = serving(path, lambda: path.stat().st_mode)
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) & 0o007 == 0


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b"\n", b"x" * 200_000 + b"\n"])
def test_what_is_no_request_gets_one_line(tmp_path, line):
    path = tmp_path / "control.sock"
    answer = serving(path, lambda: raw(path, line))
    assert answer["status"] == "error" and "expected a JSON object" in answer["error"]


def test_somebody_who_says_nothing_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "PATIENCE_S", 0.3)
    path = tmp_path / "control.sock"

    def body():
        with socket.socket(socket.AF_UNIX) as silent, control._short(path) as name:
            silent.connect(name)
            assert ask(path, {"a": 1}) == {"heard": {"a": 1}}
            silent.settimeout(5)
            return silent.recv(1)

    assert serving(path, body) == b""


def test_a_socket_that_a_killed_agent_left_is_replaced(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left, control._short(path) as name:
        left.bind(name)
    assert ask(path, {}) is None
    assert serving(path, lambda: ask(path, {})) == {"heard": {}}


def test_where_nobody_listens_there_is_no_answer(tmp_path):
    assert ask(tmp_path / "control.sock", {}) is None
    assert ask(tmp_path / "nowhere" / "control.sock", {}) is None


def test_an_agent_that_cannot_listen_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "control.sock"
    assert serving(path, lambda: "alive") == "alive"
    assert "control.closed" in caplog.text


def test_an_answer_that_is_none_is_an_error(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listening, control._short(path) as name:
        listening.bind(name)
        listening.listen()

        def answer():
            other, _ = listening.accept()
            with other:
                other.recv(100)
                other.sendall(b"what?\n")

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(AdapterError, match="expected a JSON line"):
            ask(path, {})
        answering.join()


def test_one_agent_holds_the_lock(tmp_path):
    with only_agent(tmp_path / "state") as first:
        assert first
        with only_agent(tmp_path / "state") as second:
            assert not second
    with only_agent(tmp_path / "state") as again:
        assert again


def test_a_state_directory_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="agent's user"), only_agent(tmp_path / "file"):
        pass
