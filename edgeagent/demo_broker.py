"""A broker for the demo: Mosquitto when it is on the PATH, else the embedded amqtt."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from edgeagent.errors import AdapterError, ConfigError

#: amqtt imports for two seconds on a slow board; Mosquitto is there at once.
START_TIMEOUT_S = 20.0
_AMQTT = """
import asyncio, sys
from amqtt.broker import Broker
config = {
    "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{sys.argv[1]}"}},
    "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
}
async def main():
    await Broker(config).start()
    await asyncio.Event().wait()
asyncio.run(main())
"""


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class DemoBroker:
    """A broker process on a loopback port of its own, used as a context manager."""

    def __init__(self, kind: str, directory: Path) -> None:
        """Choose the broker: `auto`, `mosquitto` or `amqtt`.

        Raises:
            ConfigError: the one asked for is not installed, or none is.
        """
        from importlib.util import find_spec

        mosquitto = shutil.which("mosquitto") if kind != "amqtt" else None
        if kind == "mosquitto" and mosquitto is None:
            raise ConfigError("no mosquitto: apt install mosquitto, or use --broker amqtt")
        if mosquitto is None and find_spec("amqtt") is None:
            raise ConfigError("no broker: apt install mosquitto, or pip install 'edgeagent[demo]'")
        self.port = free_port()
        self.name = "amqtt" if mosquitto is None else "mosquitto"
        self.protocol = "3.1.1" if mosquitto is None else "5"
        if mosquitto is None:
            self._command = [sys.executable, "-W", "ignore", "-c", _AMQTT, str(self.port)]
        else:
            config = directory / "mosquitto.conf"
            config.write_text(
                f"listener {self.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
            )
            self._command = [mosquitto, "-c", str(config)]
        self._log = directory / "broker.log"

    def __enter__(self) -> DemoBroker:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        end_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end_s and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return self
        self.__exit__(None, None, None)
        raise AdapterError(f"{self.name} did not start, its log is {self._log}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()
