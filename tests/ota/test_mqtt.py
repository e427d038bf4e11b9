import queue
import socket
import threading
from contextlib import contextmanager, suppress

import pytest

import ota.mqtt
from bench.slow_link import Cut, SlowLink
from bench.slow_link import Link as LinkShape
from ota.device.http_source import HttpSource
from ota.errors import BrokerRefused, ConfigError, NameUnknown, TlsFailed, TransportError
from ota.mqtt import Broker, Link, Tls
from tests.brokers import Amqtt, Mosquitto, free_port, mosquitto_path
from tests.certificates import encrypt


def link_to(broker, topics=("t",), protocol="auto"):
    inbox = queue.SimpleQueue()
    return Link(Broker(broker.host, broker.port, protocol=protocol), "x", topics, inbox.put), inbox


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"protocol": "4"}, "one of auto, 5, 3.1.1, got '4'"),
        ({"port": 0}, "1 to 65535, got 0"),
        ({"port": 65536}, "got 65536"),
    ],
)
def test_a_broker_that_cannot_be_is_a_config_error(fields, says):
    with pytest.raises(ConfigError, match=says):
        Broker("localhost", **fields)


def test_nobody_listening_is_a_transport_error():
    link = Link(Broker("127.0.0.1", free_port()), "x", [], lambda _: None)
    with pytest.raises(TransportError, match="is the broker running"):
        link.open()
    with pytest.raises(TransportError, match="before open"):
        link.publish("t", b"")
    link.close()


@pytest.mark.system
def test_mqtt_5_is_refused_by_an_old_broker_and_not_forced():
    with Amqtt() as broker:
        link, _ = link_to(broker, protocol="5")
        with pytest.raises(TransportError, match="neither MQTT 5 nor 3.1.1"):
            link.open()


@pytest.mark.system
@pytest.mark.parametrize("protocol", ["auto", "5", "3.1.1"])
def test_messages_come_and_properties_are_only_for_mqtt_5(mosquitto, protocol):
    link, inbox = link_to(mosquitto, protocol=protocol)
    link.open()
    assert link.is_v5 is (protocol != "3.1.1")
    link.publish("t", b"hello", reply_to="r", correlation=b"c", expiry_s=9)
    message = inbox.get(timeout=10)
    assert (message.topic, message.payload, message.is_retained) == ("t", b"hello", False)
    link.close()


@pytest.mark.system
def test_after_a_restart_of_the_broker_it_is_subscribed_again(mosquitto):
    link, inbox = link_to(mosquitto)
    link.open()
    mosquitto.restart()
    other = Link(Broker(mosquitto.host, mosquitto.port), "y", [], lambda _: None)
    other.open()
    other.publish("t", b"kept", qos=1, retain=True).wait_for_publish(5)
    assert inbox.get(timeout=30).payload == b"kept"
    link.close()
    other.close()


@pytest.mark.system
def test_a_broker_that_wants_a_password_says_so():
    if mosquitto_path() is None:
        pytest.skip("mosquitto is not installed")
    with Mosquitto(extra="allow_anonymous false") as broker:
        link, _ = link_to(broker)
        with pytest.raises(TransportError, match="check user and password"):
            link.open()


@pytest.mark.system
# paho leaves the socket to the garbage collector when a handshake fails.
@pytest.mark.filterwarnings("ignore:.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_tls_verifies_the_broker(mosquitto):
    authority = str(encrypt(mosquitto))
    link = Link(Broker("127.0.0.1", mosquitto.port, tls=Tls(authority)), "x", [], lambda _: None)
    link.open()
    link.close()
    stranger = Link(Broker("127.0.0.1", mosquitto.port, tls=Tls()), "x", [], lambda _: None)
    with pytest.raises(TransportError, match="certificate"):
        stranger.open()
    with pytest.raises(ConfigError, match="mqtt tls"):
        Tls("/nowhere/ca.pem").context()


@pytest.mark.system
@pytest.mark.parametrize("how", list(Cut))
def test_a_link_that_dies_comes_back_and_says_so(mosquitto, monkeypatch, how):
    """Reset, closed, or silently gone: it is up again, subscribed, within two keepalives."""
    monkeypatch.setattr(ota.mqtt, "KEEPALIVE_S", 1)
    inbox, again = queue.Queue(), threading.Semaphore(0)
    with SlowLink((mosquitto.host, mosquitto.port), LinkShape(1e9, 0.0, 0.0)) as proxy:
        link = Link(
            Broker("127.0.0.1", proxy.port), "x", ["t"], inbox.put, on_connected=again.release
        )
        link.open()
        assert again.acquire(timeout=10) and link.is_up
        proxy.cut(how)
        assert again.acquire(timeout=30) and link.is_up
        link.publish("t", b"after", qos=1).wait_for_publish(10)
        assert inbox.get(timeout=10).payload == b"after"
        link.close()
    assert not link.is_up


@contextmanager
def server(answer):
    """A server that sends ``answer`` to whatever it gets first."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)
                connection.settimeout(2)
                with suppress(OSError):
                    connection.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


def refusal_of(kind, broker):
    link = Link(broker, "x", ("t",), lambda _: None)
    with pytest.raises(kind) as caught:
        link.open()
    link.close()
    return caught.value.code


def test_who_must_act_decides_the_kind_of_refusal():
    with server(b"\x20\x02\x00\x05") as port:  # CONNACK: not authorised
        broker = Broker("127.0.0.1", port, protocol="3.1.1")
        assert refusal_of(BrokerRefused, broker) == "broker_refused"
    with server(b"this is no TLS record, whatever it is") as port:
        source = HttpSource(f"https://127.0.0.1:{port}")
        with pytest.raises(TlsFailed):
            source.fetch("metadata/timestamp.json", 0, 1)
    assert refusal_of(NameUnknown, Broker("nowhere.invalid", 1)) == "name_unknown"
