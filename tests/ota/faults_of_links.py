"""Networks, brokers and servers that fail in the middle of a pull over MQTT; all of it is real.

The device pulls through a proxy, the server answers through another one, Mosquitto is between them.
When enough bytes have come, the fault happens.  The waits of the product are shortened, all in
proportion, or a dead link would cost 20 s a row.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import ota.device.mqtt_source as mqtt_source
import ota.mqtt
import ota.window
from bench.slow_link import Cut, SlowLink
from bench.slow_link import Link as LinkShape
from ota.device.mqtt_source import MqttSource
from ota.fleet.responder import Responder
from ota.mqtt import Broker
from ota.wire import Request, Response, encode_response
from tests.brokers import Mosquitto
from tests.ota.lab import COMMITTED, Lab

Make = Callable[[Lab, ExitStack], None]
LINK = LinkShape(40e6, 0.01, 0.0)
KEEPALIVE_S = 1
PATIENCE_S = mqtt_source.PATIENCE_S
SHORT_PATIENCE_S = 1.0
"""Where the fault lasts, and three workers have to run out of it."""
FIRST_WAIT_S = 0.4
AFTER_BYTES = 250_000


@dataclass
class Net:
    """What a fault may break."""

    broker: Mosquitto
    link: SlowLink
    server_link: SlowLink
    responder: Responder


Act = Callable[[Net], None]


def linked(
    act: Act,
    protocol: str = "5",
    patience_s: float = PATIENCE_S,
    answers: type[Responder] = Responder,
    *,
    persistence: bool = False,
) -> Make:
    """Break something with ``act`` once ``AFTER_BYTES`` have come to the device."""

    def make(lab: Lab, stack: ExitStack) -> None:
        for module, name, value in (
            (ota.mqtt, "KEEPALIVE_S", KEEPALIVE_S),
            (mqtt_source, "PATIENCE_S", patience_s),
            (ota.window, "FIRST_WAIT_S", FIRST_WAIT_S),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        broker = stack.enter_context(Mosquitto(persistence=persistence))
        at = (broker.host, broker.port)
        link = stack.enter_context(SlowLink(at, LINK))
        server_link = stack.enter_context(SlowLink(at, LINK))
        path = lab.fleet.repo.path
        responder = answers(Broker("127.0.0.1", server_link.port), "tests", path)
        responder.open()
        net = Net(broker, link, server_link, responder)
        stack.callback(lambda: net.responder.close())
        where = Broker("127.0.0.1", link.port, protocol=protocol)
        lab.source = lambda: MqttSource(where, "tests", "dev1")
        _when(link, lambda: act(net), stack)

    return make


def _when(link: SlowLink, act: Callable[[], None], stack: ExitStack) -> None:
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.005):
            if link.n_down >= AFTER_BYTES:
                act()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    stack.callback(thread.join)
    stack.callback(is_over.set)


def cut(how: Cut, down_s: float = 0.0) -> Act:
    return lambda net: net.link.cut(how, down_s)


def three_resets(net: Net) -> None:
    for _ in range(3):
        seen = net.link.n_connections
        net.link.cut(Cut.RESET)
        until_s = time.monotonic() + 5
        while net.link.n_connections == seen and time.monotonic() < until_s:
            time.sleep(0.01)


def cut_server(how: Cut) -> Act:
    return lambda net: net.server_link.cut(how)


def broker_killed(net: Net) -> None:
    net.broker.kill()
    net.broker.start()


def broker_restarted(net: Net) -> None:
    net.broker.restart()


def broker_gone(net: Net) -> None:
    net.broker.kill()


def server_restarted(net: Net) -> None:
    net.responder.close()
    net.responder = type(net.responder)(
        Broker("127.0.0.1", net.server_link.port), "tests", net.responder._path
    )
    net.responder.open()


def server_gone(net: Net) -> None:
    net.responder.close()


def drip(net: Net) -> None:
    net.link.bits_per_s = 8 * 200


def nothing(_net: Net) -> None:
    pass


class Odd(Responder, ABC):
    """Every third answer is odd; how, each fault says."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._n = 0

    def _answer(self, request: Request) -> Response:
        self._n += 1
        answer = super()._answer(request)
        return answer if self._n % 3 else self.odd(request, answer)

    @abstractmethod
    def odd(self, request: Request, answer: Response) -> Response:
        """Return what is sent in place of `answer`."""


class Lost(Odd):
    def odd(self, request: Request, answer: Response) -> Response:
        return replace(answer, id="nobody")


class Repeated(Odd):
    def odd(self, request: Request, answer: Response) -> Response:
        self._link.publish(request.reply_to, encode_response(answer))
        return answer


class Delayed(Odd):
    def odd(self, request: Request, answer: Response) -> Response:
        time.sleep(FIRST_WAIT_S / 2)  # and everybody behind it
        return answer


class Reordered(Odd):
    """An answer is held back until two others have left."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._held: list[tuple[str, Response]] = []

    def odd(self, request: Request, answer: Response) -> Response:
        for reply_to, held in self._held:
            self._link.publish(reply_to, encode_response(held))
        self._held = [(request.reply_to, answer)]
        return replace(answer, id="nobody")


class Truncated(Odd):
    def odd(self, request: Request, answer: Response) -> Response:
        return replace(answer, data=answer.data[:5])


class Unavailable(Odd):
    def odd(self, request: Request, answer: Response) -> Response:
        return replace(answer, status=503, data=b"")


class Dripping(Responder):
    """A byte an answer: never silent, and never done."""

    def _answer(self, request: Request) -> Response:
        answer = super()._answer(request)
        return replace(answer, data=answer.data[:1])


FAILED = "transport_failed"
FAULTS: dict[str, tuple[Make, str]] = {
    f"{how.value} in a pull, MQTT {protocol}": (linked(cut(how), protocol), COMMITTED)
    for how in Cut
    for protocol in ("5", "3.1.1")
} | {
    "three resets in a row": (linked(three_resets), COMMITTED),
    "reset, then down for 3 s": (linked(cut(Cut.RESET, 3.0)), COMMITTED),
    "server's connection reset": (linked(cut_server(Cut.RESET)), COMMITTED),
    "server's connection half-open": (linked(cut_server(Cut.HALF_OPEN)), COMMITTED),
    "server's connection a black hole": (linked(cut_server(Cut.BLACK_HOLE)), COMMITTED),
    "broker killed, no sessions kept": (linked(broker_killed), COMMITTED),
    "broker killed, MQTT 3.1.1": (linked(broker_killed, "3.1.1"), COMMITTED),
    "broker restarted, sessions kept": (linked(broker_restarted, persistence=True), COMMITTED),
    "broker restarted, sessions kept, MQTT 3.1.1": (
        linked(broker_restarted, "3.1.1", persistence=True),
        COMMITTED,
    ),
    "broker gone": (linked(broker_gone, patience_s=SHORT_PATIENCE_S), FAILED),
    "server restarted": (linked(server_restarted), COMMITTED),
    "server gone": (linked(server_gone, patience_s=SHORT_PATIENCE_S), FAILED),
    "answers lost": (linked(nothing, answers=Lost), COMMITTED),
    "answers repeated": (linked(nothing, answers=Repeated), COMMITTED),
    "answers delayed": (linked(nothing, answers=Delayed), COMMITTED),
    "answers reordered": (linked(nothing, answers=Reordered), COMMITTED),
    "answers truncated": (linked(nothing, answers=Truncated), COMMITTED),
    "answers that say: later": (linked(nothing, answers=Unavailable), COMMITTED),
    "slow loris: a byte an answer": (
        linked(nothing, patience_s=SHORT_PATIENCE_S, answers=Dripping),
        FAILED,
    ),
    "slow loris: 200 bytes a second": (linked(drip, patience_s=SHORT_PATIENCE_S), FAILED),
}
