import socket
import threading

import pytest

from edgeagent.adapters.mqtt_probe import connect_packet, probe_broker
from edgeagent.errors import AdapterError


@pytest.fixture
def broker():
    """Return a function that starts a broker of one answer, and gives its port and what it got."""
    sockets, threads = [], []

    def start(answer):
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(5)
        got = []

        def serve():
            client, _ = server.accept()
            with client:
                client.settimeout(5)
                got.append(client.recv(512))
                client.sendall(answer)
                while piece := client.recv(512):
                    got.append(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        sockets.append(server)
        threads.append(thread)
        return server.getsockname()[1], got

    yield start
    for thread in threads:
        thread.join()
    for server in sockets:
        server.close()


def test_a_connect_packet_is_what_the_standard_says():
    assert connect_packet("me") == b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x0a\x00\x02me"
    with_login = connect_packet("me", "u", "pw")
    assert with_login[9] == 0x02 | 0x80 | 0x40
    assert with_login.endswith(b"\x00\x02me\x00\x01u\x00\x02pw")


def test_a_long_packet_has_a_length_of_two_bytes():
    packet = connect_packet("x" * 200)
    assert (packet[1] & 0x7F) + (packet[2] << 7) == len(packet) - 3


def test_a_broker_that_accepts_is_left_politely(broker):
    port, got = broker(b"\x20\x02\x00\x00")
    assert probe_broker("127.0.0.1", port, username="u", password="p").endswith("accepts us")
    assert got[0].startswith(b"\x10")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\x20\x02\x00\x04", "user name or password"),
        (b"\x20\x02\x00\x05", "authorise"),
        (b"\x20\x02\x00\x63", "return code 99"),
        (b"HTTP/1.1 400 Bad Request", "no MQTT broker"),
        (b"", "no MQTT broker"),
    ],
)
def test_a_refusal_says_what_to_look_at(broker, answer, words):
    port, _ = broker(answer[:4])
    if not answer:
        with pytest.raises(AdapterError):
            probe_broker("127.0.0.1", port, timeout_s=0.2)
        return
    with pytest.raises(AdapterError, match=words):
        probe_broker("127.0.0.1", port)


@pytest.mark.parametrize("code", [0x01, 0x84])
def test_a_broker_of_mqtt_5_alone_is_reachable(broker, code):
    port, _ = broker(bytes([0x20, 3, 0, code]))
    assert "MQTT 5" in probe_broker("127.0.0.1", port)


def test_nobody_listening_is_one_line_with_the_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(AdapterError, match=f"127.0.0.1:{port}: Connection refused"):
        probe_broker("127.0.0.1", port)
