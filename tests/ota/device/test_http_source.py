import socket
import threading
from contextlib import suppress

import pytest

from ota.device import http_source
from ota.device.http_source import MAX_REDIRECTS, HttpSource
from ota.errors import Cancelled, ConfigError, ObjectMissing, TransportError
from ota.wire import ranges
from tests.ota.simulator import web_server

DATA = bytes(range(251)) * 1000
SERVED = {"targets/data": DATA, "metadata/x.json": b"{}"}


def test_stretches_and_whole_objects_come_over_one_connection():
    asked = []
    with web_server(SERVED, asked) as url, HttpSource(url) as source:
        pieces = list(source.pull("targets/data", ranges(len(DATA), 65536)))
        assert b"".join(piece.data for piece in pieces) == DATA
        assert {piece.total for piece in pieces} == {len(DATA)}
        assert source.fetch("targets/data", len(DATA) - 3, 10).data == DATA[-3:]
        assert b"".join(source.stream("targets/data")) == DATA
        with pytest.raises(ObjectMissing):
            source.fetch("targets/nothing", 0, 1)
        with pytest.raises(ObjectMissing):
            source.fetch("keys/root.pem", 0, 1)
        assert source.fetch("metadata/x.json", 0, 99).data == b"{}"
    assert "keys/root.pem" not in asked


def answering(change):
    """Serve ``DATA`` with one odd answer, written by ``change(handler)``; True: it has answered."""
    return web_server(SERVED, [], lambda handler, _name: change(handler))


def without_ranges(handler):
    handler._answer(200, DATA)
    return True


def test_a_server_without_ranges_serves_too():
    with answering(without_ranges) as url, HttpSource(url) as source:
        assert source.fetch("targets/data", 1000, 10).data == DATA[1000:1010]
        assert source.fetch("targets/data", 0, 10).data == DATA[:10]


def cut_off(handler):
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 0-999/{len(DATA)}")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(DATA[:10])
    handler.close_connection = True
    return True


def elsewhere(handler):
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 500-509/{len(DATA)}")
    handler._body(DATA[500:510])
    return True


def refused(handler):
    handler.send_error(503)
    return True


def no_range(handler):
    handler.send_response(206)
    handler._body(DATA[:10])
    return True


def round_and_round(handler):
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler._body(b"")
    return True


@pytest.mark.parametrize("fault", [cut_off, elsewhere, refused, no_range, round_and_round])
def test_an_odd_answer_is_a_transport_error(fault):
    with answering(fault) as url, HttpSource(url) as source, pytest.raises(TransportError):
        source.fetch("targets/data", 0, 1000)


def test_a_redirect_is_followed_a_few_times():
    hops = []

    def hop(handler):
        if len(hops) >= MAX_REDIRECTS:
            return False
        hops.append(handler.path)
        handler.send_response(307)
        handler.send_header("Location", handler.path)
        handler._body(b"")
        return True

    with answering(hop) as url, HttpSource(url) as source:
        assert source.fetch("targets/data", 5, 5).data == DATA[5:10]


def test_a_redirect_to_another_kind_of_address_is_refused():
    def to_file(handler):
        handler.send_response(302)
        handler.send_header("Location", "file:///etc/passwd")
        handler._body(b"")
        return True

    with answering(to_file) as url, HttpSource(url) as source, pytest.raises(ConfigError):
        source.fetch("targets/data", 0, 5)


def test_a_server_that_says_nothing_and_one_that_drips_are_given_up(monkeypatch):
    monkeypatch.setattr(http_source, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(http_source, "PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = HttpSource(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(TransportError):
            source.fetch("targets/data", 0, 5)
        source.close()
    stop = threading.Event()

    def drip(handler):
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-999/{len(DATA)}")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for byte in DATA[:1000]:
            if stop.wait(0.05):
                break
            handler.wfile.write(bytes([byte]))
        handler.close_connection = True
        return True

    with answering(drip) as url, HttpSource(url) as source:
        with pytest.raises(TransportError, match="not whole within"):
            source.fetch("targets/data", 0, 1000)
        stop.set()


def test_the_head_of_an_answer_may_not_drip_either(monkeypatch):
    monkeypatch.setattr(http_source, "PATIENCE_S", 0.3)
    stop = threading.Event()

    def serve(listening):
        while not stop.is_set():
            try:
                peer, _ = listening.accept()
            except OSError:
                return
            with peer, suppress(OSError):
                peer.sendall(b"HTTP/1.1 206 OK\r\nX: ")
                while not stop.wait(0.02):
                    peer.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        source = HttpSource(f"http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(TransportError):
            source.fetch("targets/data", 0, 5)
        stop.set()
        source.close()
        socket.create_connection(listening.getsockname()).close()  # wakes accept
        thread.join()


def test_a_cancel_ends_a_transfer():
    with web_server(SERVED, []) as url, pytest.raises(Cancelled):
        HttpSource(url, is_stopped=lambda: True).fetch("targets/data", 0, 1000)


@pytest.mark.parametrize("url", ["ftp://x/", "x", "http://user:secret@x/", "http:///x"])
def test_an_address_that_cannot_be_is_a_config_error(url):
    with pytest.raises(ConfigError):
        HttpSource(url)


def test_nobody_listening_is_a_transport_error():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(TransportError, match="is the server running"):
        HttpSource(f"http://127.0.0.1:{port}").fetch("targets/data", 0, 1)
