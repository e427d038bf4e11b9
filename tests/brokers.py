"""Real brokers on a free loopback port, for tests: Mosquitto (MQTT 5) and amqtt (MQTT 3.1.1 only).

with Mosquitto() as broker:
    connect("127.0.0.1", broker.port)
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path

START_TIMEOUT_S = 15.0  # amqtt needs a second to import on a slow core
STOP_TIMEOUT_S = 10.0


def mosquitto_path() -> str | None:
    """Return the Mosquitto binary; Debian keeps it outside a user's PATH."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker(ABC):
    """A broker process; subclasses say how it is started."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="broker-")
        self.directory = Path(self._directory.name)

    @abstractmethod
    def command(self) -> list[str]:
        """Return what starts it in the foreground."""

    def start(self) -> None:
        log = (self.directory / "log").open("ab")
        with log:
            self._process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        self._wait_until_it_accepts()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def _wait_until_it_accepts(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
            except ConnectionRefusedError:
                time.sleep(0.02)  # a listening socket is the one event a foreign broker gives
            else:
                return
        raise RuntimeError(f"broker did not start: {self.command()}\n{self.log()}")

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()
        self._directory.cleanup()


class Mosquitto(Broker):
    """Mosquitto with its defaults and anonymous access.

    Args:
        persistence: keep retained messages and sessions over ``restart``
        extra: more lines for its configuration
    """

    def __init__(self, *, persistence: bool = False, extra: str = "") -> None:
        super().__init__()
        lines = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
            "set_tcp_nodelay true",
            f"persistence {str(persistence).lower()}",
            f"persistence_location {self.directory}/",
            extra,
        ]
        (self.directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        # Started as root it would drop to user mosquitto, who may not enter a private directory.
        self.directory.chmod(0o777)

    def command(self) -> list[str]:
        binary = mosquitto_path()
        assert binary is not None, "mosquitto is not installed: apt install mosquitto"
        return [binary, "-c", str(self.directory / "mosquitto.conf")]


_AMQTT = """
import asyncio, sys
from amqtt.broker import Broker

async def main():
    broker = Broker({
        "listeners": {"default": {"type": "tcp", "bind": "127.0.0.1:" + sys.argv[1]}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    })
    await broker.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Amqtt(Broker):
    """amqtt in a process of its own; it refuses MQTT 5."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", _AMQTT, str(self.port)]
