"""The other end of the query topics: ask a running agent over MQTT and wait for the answer.

Used by `edgeagent ask`, `edgeagent status` and the demo.  Synchronous on purpose: a command has one
thing to wait for.  MQTT 5 first, 3.1.1 when the broker refuses it, as the agent does.
"""

from __future__ import annotations

import json
import queue
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeagent.errors import AdapterError
from edgeagent.protocol.topics import PREFIX, Topics

#: Below the reply prefix that every agent allows by default.
REPLY_PREFIX = "edge/v1/reply/"
CONNECT_TIMEOUT_S = 5.0
#: Retained messages arrive right after SUBACK; silence of this length means there is no more.
RETAINED_QUIET_S = 0.3

_V5, _V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
_PROTOCOLS = {"5": (_V5,), "3.1.1": (_V311,), "auto": (_V5, _V311)}


def _publish_properties() -> Properties:
    return Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]


def _no_delay(_client: mqtt.Client, _data: object, sock: Any) -> None:
    # Without it the first token comes 40 ms later: Nagle waits for a delayed acknowledgement.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _answer(message: mqtt.MQTTMessage) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(message.payload)
    # An agent that refused a query unread does not know its id, but echoes the Correlation Data.
    correlation = getattr(message.properties, "CorrelationData", None)
    return answer if correlation is None else answer | {"id": correlation.decode()}


class Client:
    """One MQTT connection to a broker, used as a context manager."""

    def __init__(
        self,
        host: str,
        port: int = 1883,
        *,
        protocol: str = "auto",
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        prefix: str = PREFIX,
    ) -> None:
        """Connect and subscribe to an own reply topic.

        Raises:
            AdapterError: no broker there, or it refuses us.
        """
        self.prefix = prefix
        self._where = f"{host}:{port}"
        self._reply_topic = f"{REPLY_PREFIX}{uuid.uuid4().hex}"
        self._messages: queue.SimpleQueue[mqtt.MQTTMessage] = queue.SimpleQueue()
        failure = "no answer"
        for version in _PROTOCOLS[protocol]:
            self._client = self._make(version, username, password, tls)
            failure = self._connect(host, port)
            if not failure:
                self.is_v5 = version == _V5
                self._subscribe(self._reply_topic, qos=1)
                return
            self.close()
        raise AdapterError(
            f"broker {self._where}: {failure}: is it running, and reachable from here?"
        )

    def _make(
        self,
        version: MQTTProtocolVersion,
        username: str | None,
        password: str | None,
        tls: ssl.SSLContext | None,
    ) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=version)
        if username is not None:
            client.username_pw_set(username, password)
        if tls is not None:
            client.tls_set_context(tls)
        client.on_socket_open = _no_delay
        client.on_message = lambda _client, _data, message: self._messages.put(message)
        return client

    def _connect(self, host: str, port: int) -> str:
        """Return why it did not work; empty when connected."""
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._client.on_connect = lambda _c, _d, _f, reason, _p: answers.put(
            str(reason) if reason.is_failure else ""
        )
        try:
            self._client.connect(host, port, keepalive=30)
            self._client.loop_start()
            return answers.get(timeout=CONNECT_TIMEOUT_S)
        except OSError as err:
            return err.strerror or str(err)
        except queue.Empty:
            return f"no answer within {CONNECT_TIMEOUT_S:g} s"

    def _subscribe(self, topic: str, qos: int) -> None:
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._client.on_subscribe = lambda _c, _d, mid, _codes, _p: done.put(mid)
        self._client.subscribe(topic, qos=qos)
        try:
            done.get(timeout=CONNECT_TIMEOUT_S)
        except queue.Empty:
            raise AdapterError(f"broker {self._where}: no answer to SUBSCRIBE {topic}") from None

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, node: str, query: Mapping[str, Any]) -> str:
        """Publish `query` to `node`; return the id that its answers carry."""
        query_id = str(query.get("id") or uuid.uuid4().hex)
        payload = {**query, "id": query_id}
        properties = None
        if self.is_v5:
            properties = _publish_properties()
            properties.ResponseTopic = self._reply_topic
            properties.CorrelationData = query_id.encode()
        else:
            payload["reply_to"] = self._reply_topic
        topic = Topics(node, self.prefix).query_request
        text = json.dumps(payload, ensure_ascii=False).encode()
        self._client.publish(topic, text, qos=1, properties=properties)
        return query_id

    def answers(self, timeout_s: float) -> Iterable[dict[str, Any]]:
        """Yield reply messages as they arrive, of any query sent from here.

        Raises:
            AdapterError: nothing arrived for `timeout_s`.
        """
        while True:
            try:
                message = self._messages.get(timeout=timeout_s)
            except queue.Empty:
                raise AdapterError(
                    f"no answer over {self._where} within {timeout_s:g} s: does the agent run?"
                ) from None
            if message.topic == self._reply_topic:
                yield _answer(message)

    def ask(
        self,
        node: str,
        query: Mapping[str, Any],
        *,
        on_text: Callable[[str], None] | None = None,
        timeout_s: float = 130.0,
    ) -> dict[str, Any]:
        """Send one query and return its last message; `on_text` sees the text as it streams.

        Raises:
            AdapterError: no answer in time.
        """
        query_id = self.send(node, query)
        for answer in self.answers(timeout_s):
            if answer.get("id") != query_id:
                continue
            if answer.get("final"):
                return answer
            if on_text:
                on_text(answer.get("text", ""))
        raise AssertionError("answers() only ends by raising")

    def cancel(self, node: str, query_id: str) -> None:
        """Ask `node` to stop answering `query_id`."""
        topic = Topics(node, self.prefix).query_cancel
        properties = None
        if self.is_v5:
            properties = _publish_properties()
            properties.CorrelationData = query_id.encode()
            properties.ResponseTopic = self._reply_topic
        self._client.publish(topic, json.dumps({"id": query_id}), qos=1, properties=properties)

    def request(
        self, topic: str, answers: str, payload: Mapping[str, Any], *, timeout_s: float
    ) -> dict[str, Any]:
        """Publish a request and return the answer on `answers` that has its transaction.

        Raises:
            AdapterError: no answer in time.
        """
        transaction = uuid.uuid4().hex
        self._subscribe(answers, qos=1)
        self.publish(topic, {**payload, "transaction": transaction})
        end_s = time.monotonic() + timeout_s
        while (left_s := end_s - time.monotonic()) > 0:
            try:
                message = self._messages.get(timeout=left_s)
            except queue.Empty:
                break
            if message.topic != answers:
                continue
            answer: dict[str, Any] = json.loads(message.payload)
            if answer.get("transaction") == transaction:
                return answer
        raise AdapterError(
            f"no answer over {self._where} within {timeout_s:g} s: does the agent run?"
        )

    def publish(self, topic: str, payload: Mapping[str, Any]) -> None:
        """Publish a JSON object at QoS 1."""
        self._client.publish(topic, json.dumps(payload), qos=1).wait_for_publish(CONNECT_TIMEOUT_S)

    def retained(self, pattern: str, *, wait_s: float) -> dict[str, Any]:
        """Return the messages that match `pattern`, by topic, until it is quiet or time is up."""
        self._subscribe(pattern, qos=1)
        found: dict[str, Any] = {}
        end_s = time.monotonic() + wait_s
        while (left_s := end_s - time.monotonic()) > 0:
            try:
                message = self._messages.get(
                    timeout=min(left_s, RETAINED_QUIET_S) if found else left_s
                )
            except queue.Empty:
                break
            if not mqtt.topic_matches_sub(pattern, message.topic):
                continue
            if message.payload:
                found[message.topic] = json.loads(message.payload)
            else:
                found.pop(message.topic, None)  # it was removed while we looked
        self._client.unsubscribe(pattern)
        return found
