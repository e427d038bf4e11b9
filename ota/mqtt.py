"""One MQTT connection, as both ends of an update use it; MQTT 5, or 3.1.1 where 5 is refused.

Facts that shaped it: paho and Mosquitto leave Nagle's algorithm on, which costs a request and
response 25 times the throughput; a 3.1.1 broker answers a version 5 CONNECT with return code 1, but
only while that CONNECT has no properties (with some, amqtt waits for bytes that never come);
subscriptions are made again at every reconnect, because a broker may have lost the session; what
another thread publishes between a new socket and its CONNECT goes out first, and the broker hangs
up (``is_up`` says when not to).
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from ota.errors import BrokerRefused, ConfigError, NameUnknown, TlsFailed, TransportError

KEEPALIVE_S = 10
"""A dead link is noticed within 20 s, so a pull outlives it; bytes of a slow one keep it alive."""
CONNECT_TIMEOUT_S = 15.0  # a TCP handshake and a CONNACK over a slow cellular link
RECONNECT_MIN_S = 1
RECONNECT_MAX_S = 30

_PROTOCOLS = {
    "auto": (MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311),
    "5": (MQTTProtocolVersion.MQTTv5,),
    "3.1.1": (MQTTProtocolVersion.MQTTv311,),
}
_UNSUPPORTED_VERSION = 0x84


@dataclass(frozen=True, slots=True)
class Tls:
    """Encrypt, and verify the broker; None: the system's authorities, or no identity of ours."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def context(self) -> ssl.SSLContext:
        """Read the files.

        Raises:
            ConfigError: one of them is missing or is not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as err:
            raise ConfigError(f"mqtt tls: {err}: check {self}") from err
        return context


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is and how to speak to it."""

    host: str
    port: int = 1883
    username: str | None = None
    password: str | None = None
    protocol: str = "auto"
    tls: Tls | None = None

    def __post_init__(self) -> None:
        if self.protocol not in _PROTOCOLS:
            known = ", ".join(_PROTOCOLS)
            raise ConfigError(f"mqtt protocol: expected one of {known}, got {self.protocol!r}")
        if not 0 < self.port < 1 << 16:
            raise ConfigError(f"mqtt port: expected 1 to 65535, got {self.port}")


@dataclass(frozen=True, slots=True)
class Message:
    """What arrived."""

    topic: str
    payload: bytes
    is_retained: bool


class Link:
    """A connection that comes back by itself.

    Args:
        broker: where to connect
        client_id: unique at the broker
        topics: what to subscribe to, at QoS 0
        on_message: called in the network thread; must not block
        on_written: called in the network thread with the packet id of each message that left
        on_connected: called in the network thread after every connect, when the topics are asked
            for; what was waiting is gone
    """

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        topics: Sequence[str],
        on_message: Callable[[Message], None],
        on_written: Callable[[int], None] = lambda _: None,
        on_connected: Callable[[], None] = lambda: None,
    ) -> None:
        self._broker = broker
        self._client_id = client_id
        self._topics = topics
        self._on_message = on_message
        self._on_written = on_written
        self._on_connected = on_connected
        self._client: paho.Client | None = None
        self._ready = threading.Event()
        self._refusal: ReasonCode | None = None
        self.is_v5 = False
        self.is_up = False
        """Whether the broker has accepted this connection, and it is not known to be lost."""
        self.max_packet_bytes: int | None = None
        """The longest packet that the broker takes, where it says so (MQTT 5)."""

    def open(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect and subscribe.

        Raises:
            TransportError: there is no broker, or it refused us.
        """
        for protocol in _PROTOCOLS[self._broker.protocol]:
            if self._try(protocol, timeout_s):
                return
        raise TransportError(f"{self._where}: the broker speaks neither MQTT 5 nor 3.1.1 with us")

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        reply_to: str | None = None,
        correlation: bytes | None = None,
        expiry_s: int | None = None,
    ) -> paho.MQTTMessageInfo:
        """Publish; the last three are MQTT 5 properties and are left out on 3.1.1."""
        client = self._client
        if client is None:
            raise TransportError(f"{self._where}: publish before open")
        properties = None
        if self.is_v5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            for name, value in (
                ("ResponseTopic", reply_to),
                ("CorrelationData", correlation),
                ("MessageExpiryInterval", expiry_s),
            ):
                if value is not None:
                    setattr(properties, name, value)
        return client.publish(topic, payload, qos, retain, properties)

    def close(self) -> None:
        """Disconnect and stop the network thread."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None

    @property
    def _where(self) -> str:
        return f"mqtt {self._broker.host}:{self._broker.port}"

    def _try(self, protocol: MQTTProtocolVersion, timeout_s: float) -> bool:
        """Connect with one protocol; False: the broker does not speak it."""
        self.is_v5 = protocol is MQTTProtocolVersion.MQTTv5
        client = self._client = self._make_client(protocol)
        try:
            client.connect(self._broker.host, self._broker.port, KEEPALIVE_S)
        except socket.gaierror as err:
            self._client = None
            raise NameUnknown(f"{self._where}: {err}; check the name and the network") from err
        except ssl.SSLError as err:
            self._client = None
            raise TlsFailed(f"{self._where}: {err}; check certificates and clocks") from err
        except OSError as err:
            self._client = None
            raise TransportError(f"{self._where}: {err}; is the broker running?") from err
        client.loop_start()
        is_up = self._ready.wait(timeout_s)
        if is_up and self._refusal is None:
            return True
        self.close()
        self._ready.clear()
        if self._refusal is None:
            raise TransportError(f"{self._where}: no answer within {timeout_s:g} s")
        if self._refusal.value == _UNSUPPORTED_VERSION:
            return False
        raise BrokerRefused(f"{self._where}: refused: {self._refusal}; check user and password")

    def _make_client(self, protocol: MQTTProtocolVersion) -> paho.Client:
        self._refusal = None
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=self._client_id, protocol=protocol
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.reconnect_delay_set(RECONNECT_MIN_S, RECONNECT_MAX_S)
        if self._broker.username is not None:
            client.username_pw_set(self._broker.username, self._broker.password)
        if self._broker.tls is not None:
            client.tls_set_context(self._broker.tls.context())
        client.on_socket_open = _no_delay
        client.on_pre_connect = self._down
        client.on_disconnect = self._down
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._received
        client.on_publish = self._published
        return client

    def _connected(
        self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, props: Any
    ) -> None:
        self.max_packet_bytes = getattr(props, "MaximumPacketSize", None)
        if reason.is_failure:
            self._refusal = reason
            self._ready.set()
            return
        if self._topics:
            client.subscribe([(topic, 0) for topic in self._topics])
        else:
            self._ready.set()
        self.is_up = True
        self._on_connected()

    def _down(self, *_about: Any) -> None:
        self.is_up = False

    def _subscribed(
        self, _client: paho.Client, _data: Any, _mid: int, codes: list[Any], _props: Any
    ) -> None:
        refused = [code for code in codes if code.is_failure]
        if refused:
            self._refusal = refused[0]
        self._ready.set()

    def _received(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self._on_message(Message(message.topic, bytes(message.payload), message.retain))

    def _published(
        self, _client: paho.Client, _data: Any, mid: int, _reason: Any, _props: Any
    ) -> None:
        self._on_written(mid)


def _no_delay(_client: paho.Client, _data: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
