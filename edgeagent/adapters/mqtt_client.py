"""One MQTT connection of paho-mqtt, on its own thread; all that happens is told as a `Happening`.

The thread connects and turns paho's loop until the connection ends; then it ends too.  Publishing
and acknowledging from another thread only append to paho's queue and wake this one.  Whether to
connect again, when, and with which version is the business of `edgeagent.adapters.mqtt`.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgeagent.protocol.messages import Incoming
from edgeagent.protocol.reconnect import V5, V311

MAX_PACKET_BYTES = 12 << 20
"""Far above the largest query, so that one of 10 MB is refused with `too_large` by us, in words,
rather than dropped by the broker in silence; far below what hurts a 1 GB board for a moment."""

MAX_SENT_UNCONFIRMED = 8
"""Below HiveMQ's Receive Maximum of 10, the lowest default in use."""

WILL_DELAY_S = 5
"""A restart of the agent is shorter; nobody needs to hear of it."""

CONNECT_TIMEOUT_S = 5.0

LOOP_S = 2.0
"""Bounds how late a hang of the thread is seen, at one wake-up in 2 s."""

UNSUPPORTED_VERSION = 0x84  # paho maps the 3.1.1 form, 0x01, to it

_PAHO_VERSIONS = {V5: paho.MQTTv5, V311: paho.MQTTv311}


@dataclass(frozen=True, slots=True)
class Subscription:
    """A topic to listen to."""

    topic: str
    qos: int = 1
    wants_retained: bool = False


@dataclass(frozen=True, slots=True)
class Broker:
    """How to reach the broker, and as whom."""

    host: str
    port: int
    client_id: str
    will_topic: str
    will_payload: bytes
    subscriptions: tuple[Subscription, ...]
    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None
    protocol: str = "auto"
    keepalive_s: int = 30
    session_expiry_s: int = 3600
    max_unacknowledged: int = 40
    max_payload_bytes: int = 65536
    turn_s: float = LOOP_S  # longest sleep of the thread


@dataclass(frozen=True, slots=True)
class Opened:
    """The TCP connection, or the TLS one, was made."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """CONNACK with success, and what the broker takes."""

    session_present: bool
    max_packet_bytes: int | None


@dataclass(frozen=True, slots=True)
class Refused:
    """CONNACK with a refusal."""

    reason: str
    is_version: bool


@dataclass(frozen=True, slots=True)
class Subscribed:
    """SUBACK; ``failures`` are the topics that were refused, with the reason."""

    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """PUBACK; ``error`` is the reason when the broker refuses the message."""

    mid: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Turned:
    """The loop made a turn: it is alive."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection is over, and so is the thread."""

    reason: str


Happening = Opened | Accepted | Refused | Subscribed | Confirmed | Turned | Ended | Incoming


def tls_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return a verifying TLS context; raises OSError (`ssl.SSLError` too) when a file is wrong."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


class MqttClient:
    """paho-mqtt with one version of the protocol; connects once for every `start`."""

    def __init__(
        self, broker: Broker, version: str, tell: Callable[[int, Happening], None]
    ) -> None:
        """Prepare; ``tell(epoch, happening)`` is called on the thread."""
        self.version = version
        self._broker = broker
        self._tell = tell
        self._epoch = 0
        self._client = self._make()

    # -- from any thread ------------------------------------------------------------------------

    def start(self, epoch: int) -> None:
        """Begin a connection; its number comes with everything that happens on it."""
        self._epoch = epoch
        threading.Thread(target=self._drive, name=f"mqtt-{epoch}", daemon=True).start()

    def publish(
        self, topic: str, payload: bytes, qos: int, retain: bool, correlation: bytes | None
    ) -> int:
        """Queue a message; return its packet identifier."""
        properties = None
        if correlation is not None and self.version == V5:
            properties = _properties(PacketTypes.PUBLISH, CorrelationData=correlation)
        return self._client.publish(topic, payload, qos, retain, properties).mid

    def acknowledge(self, mid: int) -> None:
        """Queue the acknowledgement of a delivery at QoS 1."""
        self._client.ack(mid, 1)

    def disconnect(self) -> None:
        """Queue a DISCONNECT; the broker then does not send the will."""
        self._client.disconnect()

    # -- setting up -----------------------------------------------------------------------------

    def _make(self) -> paho.Client:
        broker, is_v5 = self._broker, self.version == V5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=broker.client_id,
            clean_session=None if is_v5 else False,
            protocol=_PAHO_VERSIONS[self.version],
            reconnect_on_failure=False,
            manual_ack=True,
        )
        if broker.username:
            client.username_pw_set(broker.username, broker.password)
        if broker.tls is not None:
            client.tls_set_context(broker.tls)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(MAX_SENT_UNCONFIRMED)
        will = connect = None
        if is_v5:
            will = _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=WILL_DELAY_S)
            connect = _properties(
                PacketTypes.CONNECT,
                SessionExpiryInterval=broker.session_expiry_s,
                ReceiveMaximum=broker.max_unacknowledged,
                MaximumPacketSize=MAX_PACKET_BYTES,
            )
        client.will_set(broker.will_topic, broker.will_payload, 1, True, will)
        client.on_socket_open = self._on_open
        client.on_socket_register_write = _ignore  # or publish() would write on its own thread
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        arguments: dict[str, Any] = {"clean_start": False, "properties": connect} if is_v5 else {}
        client.connect_async(broker.host, broker.port, broker.keepalive_s, **arguments)
        return client

    def _filters(self) -> list[Any]:
        if self.version != V5:
            return [(s.topic, s.qos) for s in self._broker.subscriptions]
        # Retain handling 2: never send what is retained on a topic of requests.
        return [
            (s.topic, SubscribeOptions(s.qos, retainHandling=0 if s.wants_retained else 2))
            for s in self._broker.subscriptions
        ]

    # -- on the thread --------------------------------------------------------------------------

    def _drive(self) -> None:
        """Connect and turn paho's loop until the connection ends."""
        epoch, reason = self._epoch, "ended"
        try:
            self._client.reconnect()
            code = paho.MQTT_ERR_SUCCESS
            while code == paho.MQTT_ERR_SUCCESS:
                code = self._client.loop(self._broker.turn_s)
                self._tell(epoch, Turned())
            reason = paho.error_string(code)
        except (OSError, ValueError) as err:
            reason = str(err)
        except (MQTTException, struct.error, IndexError) as err:
            reason = f"malformed packet from the broker: {err}"
        finally:
            self._tell(epoch, Ended(reason))

    def _on_open(self, _client: paho.Client, _data: object, sock: Any) -> None:
        # Without it a small packet waits for the acknowledgement of the one before: 40 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tell(self._epoch, Opened())

    def _on_connect(
        self,
        client: paho.Client,
        _data: object,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            refusal = Refused(str(reason), reason.value == UNSUPPORTED_VERSION)
            self._tell(self._epoch, refusal)
            return
        limit = getattr(properties, "MaximumPacketSize", None)
        self._tell(self._epoch, Accepted(flags.session_present, limit))
        client.subscribe(self._filters())

    def _on_subscribe(
        self, _client: paho.Client, _data: object, _mid: int, reasons: list[ReasonCode], _p: object
    ) -> None:
        pairs = zip(self._broker.subscriptions, reasons, strict=False)
        failures = tuple((s.topic, str(reason)) for s, reason in pairs if reason.is_failure)
        self._tell(self._epoch, Subscribed(failures))

    def _on_message(self, _client: paho.Client, _data: object, m: paho.MQTTMessage) -> None:
        size, properties = len(m.payload), m.properties
        incoming = Incoming(
            topic=m.topic,
            payload=bytes(m.payload) if size <= self._broker.max_payload_bytes else b"",
            size=size,
            is_retained=m.retain,
            is_redelivered=m.dup,
            response_topic=getattr(properties, "ResponseTopic", None),
            correlation=getattr(properties, "CorrelationData", None),
            expiry_s=getattr(properties, "MessageExpiryInterval", None),
            delivery=(self._epoch, m.mid) if m.qos > 0 else None,
        )
        self._tell(self._epoch, incoming)

    def _on_publish(
        self, _client: paho.Client, _data: object, mid: int, reason: ReasonCode, _p: object
    ) -> None:
        self._tell(self._epoch, Confirmed(mid, str(reason) if reason.is_failure else None))


def _properties(packet: int, **values: Any) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def _ignore(*_args: object) -> None:
    """Do nothing."""
