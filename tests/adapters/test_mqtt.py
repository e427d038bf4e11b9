"""The connection against real brokers: MQTT 5 (Mosquitto) and 3.1.1 (amqtt)."""

import asyncio
import socket
import threading
from contextlib import asynccontextmanager

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeagent.adapters.mqtt import Handlers, Mqtt
from edgeagent.adapters.mqtt_client import Broker, Subscription, tls_context
from edgeagent.errors import AdapterError
from edgeagent.protocol.reports import OFFLINE, ONLINE
from tests.brokers import Amqtt, Mosquitto
from tests.certificates import encrypt

pytestmark = pytest.mark.system

TIMEOUT_S = 15


@pytest.fixture(params=[Mosquitto, Amqtt], ids=["mqtt5", "mqtt311"])
def broker(request):
    with request.param() as running:
        yield running


@pytest.fixture
def mosquitto():
    with Mosquitto(persistence=True) as running:
        yield running


class Peer:
    """Another client, to ask and to listen."""

    def __init__(self, port, version=paho.MQTTv311):
        self.messages = []
        self.loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=version)
        self.client.on_message = self._on_message
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _on_message(self, _client, _data, message):
        self.loop.call_soon_threadsafe(self._add, message)

    def _add(self, message):
        self.messages.append(message)
        self.changed.set()

    async def subscribe(self, topic):
        done = asyncio.Event()
        self.client.on_subscribe = lambda *_: self.loop.call_soon_threadsafe(done.set)
        self.client.subscribe(topic, qos=1)
        await asyncio.wait_for(done.wait(), TIMEOUT_S)

    async def publish(self, topic, payload, qos=1, retain=False, **properties):
        packed = None
        if properties:
            packed = Properties(PacketTypes.PUBLISH)
            for name, value in properties.items():
                setattr(packed, name, value)
        info = self.client.publish(topic, payload, qos, retain, packed)
        await asyncio.to_thread(info.wait_for_publish, TIMEOUT_S)

    async def wait_for(self, count):
        while len(self.messages) < count:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), TIMEOUT_S)
        return [(m.topic, m.payload) for m in self.messages]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


class Owner:
    """The agent's side: a running connection and what it heard."""

    def __init__(self, port, *topics, **settings):
        self.heard = []
        self.changed = asyncio.Event()
        self.lost = 0
        subscriptions = tuple(topics) or (Subscription("in"),)
        self.mqtt = Mqtt(
            Broker(
                "127.0.0.1",
                port,
                "owner",
                "owner/state",
                OFFLINE,
                subscriptions,
                **settings,
            ),
            Handlers(self._on_message, self.changed.set, self._on_lost),
        )
        self.task = asyncio.create_task(self.mqtt.run())

    def _on_message(self, incoming):
        self.heard.append(incoming)
        self.changed.set()

    def _on_lost(self):
        self.lost += 1
        self.changed.set()

    async def until(self, condition):
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def connected(self):
        await self.until(lambda: self.mqtt.is_connected)

    async def hear(self, count):
        await self.until(lambda: len(self.heard) >= count)
        return self.heard

    async def stop(self):
        await self.mqtt.close("owner/state", OFFLINE)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@asynccontextmanager
async def owner(port, *topics, **settings):
    running = Owner(port, *topics, **settings)
    try:
        await running.connected()
        yield running
    finally:
        await running.stop()


@asynccontextmanager
async def peer(port, version=paho.MQTTv311):
    running = Peer(port, version)
    try:
        yield running
    finally:
        running.close()


def test_it_speaks_5_and_falls_back_to_3_1_1(broker):
    async def main():
        async with owner(broker.port) as us:
            assert us.mqtt.version == ("5" if isinstance(broker, Mosquitto) else "3.1.1")
            assert us.mqtt.counters.connects == 1

    asyncio.run(main())


def test_messages_come_in_and_go_out(broker):
    async def main():
        async with owner(broker.port) as us, peer(broker.port) as other:
            await other.subscribe("out/#")
            await other.publish("in", b"hello")
            heard = (await us.hear(1))[0]
            assert (heard.topic, heard.payload, heard.size) == ("in", b"hello", 5)
            assert not heard.is_retained
            us.mqtt.publish("out/0", b"now")
            await asyncio.wait_for(us.mqtt.publish("out/1", b"sure", qos=1), TIMEOUT_S)
            assert set(await other.wait_for(2)) == {("out/0", b"now"), ("out/1", b"sure")}
            us.mqtt.acknowledge(heard.delivery)
            assert us.mqtt.counters.acknowledged == 1

    asyncio.run(main())


def test_state_is_retained_and_offline_after_a_clean_goodbye(broker):
    async def main():
        running = Owner(broker.port)
        running.mqtt.publish_retained("owner/state", ONLINE)
        await running.connected()
        async with peer(broker.port) as other:
            await other.subscribe("owner/state")
            assert await other.wait_for(1) == [("owner/state", ONLINE)]
            await running.stop()
            assert (await other.wait_for(2))[1] == ("owner/state", OFFLINE)

    asyncio.run(main())


def test_request_properties_of_mqtt_5_arrive(mosquitto):
    async def main():
        async with owner(mosquitto.port) as us, peer(mosquitto.port, paho.MQTTv5) as other:
            await other.publish(
                "in",
                b"q",
                ResponseTopic="reply/a",
                CorrelationData=b"\x00\x01",
                MessageExpiryInterval=30,
            )
            heard = (await us.hear(1))[0]
            assert (heard.response_topic, heard.correlation) == ("reply/a", b"\x00\x01")
            assert 29 <= heard.expiry_s <= 30
            await other.subscribe("reply/a")
            us.mqtt.publish("reply/a", b"r", correlation=heard.correlation)
            await other.wait_for(1)
            assert other.messages[0].properties.CorrelationData == b"\x00\x01"

    asyncio.run(main())


def test_retained_requests_are_not_even_sent_by_a_5_broker(mosquitto):
    async def main():
        async with peer(mosquitto.port) as other:
            await other.publish("in", b"old", retain=True)
            await other.publish("notice", b"kept", retain=True)
            topics = (Subscription("in"), Subscription("notice", wants_retained=True))
            async with owner(mosquitto.port, *topics) as us:
                heard = await us.hear(1)
                assert [(m.payload, m.is_retained) for m in heard] == [(b"kept", True)]

    asyncio.run(main())


def test_a_10_mb_message_arrives_as_its_size_and_the_connection_stays(broker):
    async def main():
        async with owner(broker.port) as us, peer(broker.port) as other:
            await other.publish("in", b"x" * 10_000_000)
            heard = (await us.hear(1))[0]
            assert (heard.size, heard.payload) == (10_000_000, b"")
            us.mqtt.acknowledge(heard.delivery)
            await other.publish("in", b"small")
            assert (await us.hear(2))[1].payload == b"small"
            assert us.lost == 0

    asyncio.run(main())


def test_what_was_not_acknowledged_comes_again_after_an_outage(mosquitto):
    async def main():
        async with owner(mosquitto.port) as us, peer(mosquitto.port) as other:
            await other.publish("in", b"first")
            await other.publish("in", b"second")
            first, second = await us.hear(2)
            us.mqtt.acknowledge(first.delivery)
            await asyncio.wait_for(us.mqtt.publish("out", b"", qos=1), TIMEOUT_S)  # a round trip
            await asyncio.to_thread(mosquitto.restart)
            third = (await us.hear(3))[2]
            assert third.payload == b"second"
            assert third.is_redelivered
            assert us.mqtt.counters.redelivered == 1
            # The packet identifier of the first connection means nothing now.
            before = us.mqtt.counters.acknowledged
            us.mqtt.acknowledge(second.delivery)
            assert us.mqtt.counters.acknowledged == before
            us.mqtt.acknowledge(third.delivery)
            assert us.mqtt.counters.acknowledged == before + 1

    asyncio.run(main())


def test_qos_1_waits_through_an_outage_and_qos_0_is_dropped(mosquitto):
    async def main():
        async with owner(mosquitto.port) as us:
            us.mqtt.publish_retained("owner/info", b"info")
            await asyncio.to_thread(mosquitto.stop)
            await us.until(lambda: us.lost == 1)
            us.mqtt.publish("out", b"lost")
            waiting = us.mqtt.publish("out", b"kept", qos=1)
            await asyncio.to_thread(mosquitto.start)
            await asyncio.wait_for(waiting, TIMEOUT_S)
            assert us.mqtt.counters.dropped == 1
            assert us.mqtt.counters.connects == 2
            async with peer(mosquitto.port) as other:
                await other.subscribe("owner/info")
                assert await other.wait_for(1) == [("owner/info", b"info")]

    asyncio.run(main())


def test_no_broker_is_no_error_and_a_late_one_is_found():
    async def main():
        broker = Mosquitto()
        us = Owner(broker.port)
        try:
            await asyncio.wait_for(us.mqtt.tried.wait(), TIMEOUT_S)
            assert not us.mqtt.is_connected
            await asyncio.to_thread(broker.start)
            await us.connected()
        finally:
            await us.stop()
            await asyncio.to_thread(broker.__exit__)

    asyncio.run(main())


def test_the_broker_refuses_by_acl_and_the_sender_hears_of_it():
    with Mosquitto() as broker:
        (broker.directory / "acl").write_text("topic read in\ntopic write owner/#\n")
        conf = broker.directory / "mosquitto.conf"
        conf.write_text(conf.read_text() + f"acl_file {broker.directory}/acl\n")
        broker.restart()

        async def main():
            async with owner(broker.port) as us:
                with pytest.raises(AdapterError, match="the broker refuses it: Not authorized"):
                    await asyncio.wait_for(us.mqtt.publish("out", b"x", qos=1), TIMEOUT_S)
                assert us.mqtt.counters.refused == 1

        asyncio.run(main())


def test_a_message_beyond_the_brokers_limit_fails_instead_of_ending_the_connection():
    with Mosquitto(extra="max_packet_size 2000") as broker:

        async def main():
            async with owner(broker.port) as us:
                with pytest.raises(AdapterError, match="the broker takes 2000"):
                    await us.mqtt.publish("out", b"x" * 2000, qos=1)
                await asyncio.wait_for(us.mqtt.publish("out", b"x", qos=1), TIMEOUT_S)

        asyncio.run(main())


def test_a_wrong_password_is_tried_again_and_never_fatal():
    with Mosquitto() as broker:
        conf = broker.directory / "mosquitto.conf"
        conf.write_text(conf.read_text().replace("allow_anonymous true", "allow_anonymous false"))
        broker.restart()

        async def main():
            us = Owner(broker.port, username="me", password="wrong")
            try:
                await asyncio.wait_for(us.mqtt.tried.wait(), TIMEOUT_S)
                assert not us.mqtt.is_connected
                assert not us.task.done()
            finally:
                await us.stop()

        asyncio.run(main())


# paho leaves the socket to the garbage collector when a handshake fails.
@pytest.mark.filterwarnings("ignore:.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_tls_verifies_the_broker():
    with Mosquitto() as broker:
        authority = encrypt(broker)

        async def main():
            ours = tls_context(authority, None, None)
            async with owner(broker.port, tls=ours) as us:
                await asyncio.wait_for(us.mqtt.publish("out", b"x", qos=1), TIMEOUT_S)
            stranger = Owner(broker.port, tls=tls_context(None, None, None))
            try:
                await asyncio.wait_for(stranger.mqtt.tried.wait(), TIMEOUT_S)
                assert not stranger.mqtt.is_connected
                assert stranger.mqtt.counters.connects == 0
            finally:
                await stranger.stop()

        asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00" * 64,
        b"\x20\x03\x00\x00\x00\x30\xff\xff\xff\xff\xff",
        b"HTTP/1.1 400 no\r\n\r\n",
    ],
    ids=["closes", "zeros", "bad-length", "http"],
)
def test_a_peer_that_is_no_broker_is_survived(answer):
    server = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve():
        server.settimeout(0.1)
        while not stop.is_set():
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            with client:
                client.recv(1000)
                client.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()

    async def main():
        us = Owner(server.getsockname()[1])
        try:
            await asyncio.wait_for(us.mqtt.tried.wait(), TIMEOUT_S)
            await asyncio.sleep(0)
            assert not us.task.done()
            assert not us.mqtt.is_connected
        finally:
            await us.stop()

    try:
        asyncio.run(main())
    finally:
        stop.set()
        thread.join()
        server.close()
