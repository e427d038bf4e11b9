import dataclasses
import threading
from contextlib import contextmanager

import pytest

from bench.slow_link import Link as LinkShape
from bench.slow_link import SlowLink
from ota import window
from ota.device import mqtt_source
from ota.device.mqtt_source import MAX_WAITING_ANSWERS, MqttSource
from ota.errors import Cancelled, ObjectMissing, TransportError
from ota.fleet.responder import Responder
from ota.mqtt import Broker, Link
from ota.wire import CHUNK_BYTES, OK, Response, encode_response, ranges, reply_topic
from tests.brokers import Amqtt, Mosquitto, free_port, mosquitto_path

pytestmark = pytest.mark.system

FAST = LinkShape(1e9, 0.0, 0.0)
DATA = bytes(range(251)) * 4000  # 251 is prime: no two chunks are the same


@pytest.fixture(params=["mosquitto", "amqtt"])
def broker(request):
    if request.param == "mosquitto" and mosquitto_path() is None:
        pytest.skip("mosquitto is not installed")
    with {"mosquitto": Mosquitto, "amqtt": Amqtt}[request.param]() as running:
        yield running


@pytest.fixture
def repo(tmp_path):
    (tmp_path / "repo" / "targets").mkdir(parents=True)
    (tmp_path / "repo" / "targets" / "data").write_bytes(DATA)
    (tmp_path / "repo" / "secret").write_bytes(b"secret")
    return tmp_path / "repo"


@contextmanager
def responding(broker, repo):
    responder = Responder(Broker(broker.host, broker.port), "tests", repo)
    responder.open()
    try:
        yield responder
    finally:
        responder.close()


@pytest.fixture
def responder(broker, repo):
    with responding(broker, repo) as running:
        yield running


def source(broker, **options):
    return MqttSource(Broker(broker.host, broker.port), "tests", "dev1", **options)


def test_an_object_comes_in_pieces_over_both_protocols(broker, responder):
    with source(broker) as pulling:
        cut = ranges(len(DATA), CHUNK_BYTES)
        pieces = sorted(pulling.pull("targets/data", cut), key=lambda piece: piece.offset)
    assert b"".join(piece.data for piece in pieces) == DATA
    assert {piece.total for piece in pieces} == {len(DATA)}
    assert pulling._link.is_v5 is isinstance(broker, Mosquitto)


def test_what_is_not_there_is_missing_and_the_end_is_short(broker, responder):
    with source(broker) as pulling:
        with pytest.raises(ObjectMissing):
            pulling.fetch("targets/nothing", 0, 10)
        with pytest.raises(ObjectMissing):
            pulling.fetch("targets/data/x", 0, 10)
        assert pulling.fetch("targets/data", len(DATA) - 3, 10).data == DATA[-3:]


def test_answers_that_nobody_asked_for_are_ignored(broker, responder):
    noise = Link(Broker(broker.host, broker.port), "noise", [], lambda _: None)
    noise.open()
    with source(broker) as pulling:
        pulling.fetch("targets/data", 0, 1)
        for payload in (b"", b"\xff" * 10, encode_response(Response("x", OK, 0, 1, b"z"))):
            noise.publish(reply_topic("tests", "dev1"), payload, qos=1).wait_for_publish(5)
        assert pulling.fetch("targets/data", 5, 3).data == DATA[5:8]
    noise.close()


def test_a_flood_of_answers_is_dropped_and_the_pull_goes_on(mosquitto, repo):
    noise = Link(Broker(mosquitto.host, mosquitto.port), "noise", [], lambda _: None)
    noise.open()
    with responding(mosquitto, repo), source(mosquitto) as pulling:
        pulling.fetch("targets/data", 0, 1)
        for _ in range(20 * MAX_WAITING_ANSWERS):
            sent = noise.publish(reply_topic("tests", "dev1"), bytes(1000), qos=1)
        sent.wait_for_publish(10)
        assert pulling.fetch("targets/data", 5, 3).data == DATA[5:8]
        assert pulling._inbox.qsize() <= MAX_WAITING_ANSWERS
    noise.close()


def test_a_pull_survives_a_restart_of_the_broker(mosquitto, repo):
    with responding(mosquitto, repo), source(mosquitto) as pulling:
        pieces = pulling.pull("targets/data", ranges(len(DATA), 4096))
        got = [next(pieces)]
        mosquitto.kill()
        mosquitto.start()
        got += list(pieces)
    assert b"".join(p.data for p in sorted(got, key=lambda p: p.offset)) == DATA


def test_a_request_that_got_lost_is_sent_again(mosquitto, repo):
    """Nobody answers the first try: the responder comes later."""
    with source(mosquitto) as pulling:
        late = Responder(Broker(mosquitto.host, mosquitto.port), "tests", repo)
        timer = threading.Timer(0.5, late.open)
        timer.start()
        assert pulling.fetch("targets/data", 0, 4).data == DATA[:4]
        timer.join()
        late.close()


def test_a_cancel_ends_a_pull_that_nobody_answers(mosquitto):
    with source(mosquitto, is_stopped=lambda: True) as pulling, pytest.raises(Cancelled):
        pulling.fetch("targets/data", 0, 4)


def test_no_broker_is_a_transport_error_that_names_it():
    port = free_port()
    pulling = MqttSource(Broker("127.0.0.1", port), "tests", "dev1")
    with pytest.raises(TransportError, match=f"127.0.0.1:{port}"):
        pulling.fetch("targets/data", 0, 4)
    pulling.close()


def test_pieces_fit_what_the_broker_says_it_takes(repo):
    if mosquitto_path() is None:
        pytest.skip("mosquitto is not installed")
    with (
        Mosquitto(extra="max_packet_size 10000") as small,
        responding(small, repo),
        source(small) as pulling,
    ):
        assert pulling.fetch("targets/data", 7, 50_000).data == DATA[7:50_007]
        pieces = sorted(pulling.pull("targets/data", ranges(len(DATA), CHUNK_BYTES)), key=by)
    assert b"".join(piece.data for piece in pieces) == DATA


def test_a_responder_that_gives_less_is_asked_for_the_rest(mosquitto, repo, monkeypatch):
    monkeypatch.setattr(Responder, "_limit", lambda _self: 3000)
    with responding(mosquitto, repo), source(mosquitto) as pulling:
        pieces = sorted(pulling.pull("targets/data", ranges(len(DATA), CHUNK_BYTES)), key=by)
    assert [(p.offset, len(p.data)) for p in pieces] == ranges(len(DATA), CHUNK_BYTES)
    assert b"".join(piece.data for piece in pieces) == DATA


def by(piece):
    return piece.offset


@pytest.mark.parametrize("fault", ["lost", "repeated", "late", "truncated", "unavailable"])
def test_a_responder_that_misbehaves_costs_time_and_nothing_else(
    mosquitto, repo, monkeypatch, fault
):
    """Every third answer is odd; what comes together is the object."""
    monkeypatch.setattr(window, "FIRST_WAIT_S", 0.2)
    publish, answer, count, held = Link.publish, Responder._answer, iter(range(10**9)), []

    def odd(self, request):
        response = answer(self, request)
        if next(count) % 3:
            return response
        if fault == "truncated":
            return dataclasses.replace(response, data=response.data[:5])
        if fault == "unavailable":
            return dataclasses.replace(response, status=503, data=b"")
        if fault == "lost":
            return dataclasses.replace(response, id="nobody")
        if fault == "repeated":
            publish(self._link, request.reply_to, encode_response(response))
        if fault == "late":
            held.append(response)
            return dataclasses.replace(held.pop(0), id="nobody") if len(held) > 3 else response
        return response

    monkeypatch.setattr(Responder, "_answer", odd)
    with responding(mosquitto, repo), source(mosquitto) as pulling:
        pieces = sorted(pulling.pull("targets/data", ranges(300_000, 16384)), key=by)
    assert b"".join(piece.data for piece in pieces) == DATA[:300_000]


def test_a_half_open_connection_is_given_up(mosquitto, repo, monkeypatch):
    monkeypatch.setattr(mqtt_source, "PATIENCE_S", 6.0)
    with (
        responding(mosquitto, repo),
        SlowLink((mosquitto.host, mosquitto.port), FAST) as link,
        MqttSource(Broker("127.0.0.1", link.port), "tests", "dev1") as pulling,
    ):
        pieces = pulling.pull("targets/data", ranges(len(DATA), 4096))
        next(pieces)
        link.freeze()
        with pytest.raises(TransportError, match="nobody answered"):
            list(pieces)


def test_a_short_object_says_nothing_about_how_long_a_piece_may_be(mosquitto, repo):
    """Metadata of a few hundred bytes comes before every payload."""
    (repo / "targets" / "short").write_bytes(b"x" * 400)
    with responding(mosquitto, repo) as answering, source(mosquitto) as pulling:
        assert pulling.fetch("targets/short", 0, CHUNK_BYTES).data == b"x" * 400
        before = answering.n_answers
        list(pulling.pull("targets/data", ranges(len(DATA), CHUNK_BYTES)))
        assert answering.n_answers - before == len(ranges(len(DATA), CHUNK_BYTES))


def test_pieces_that_lie_behind_the_end_of_an_object_are_none(mosquitto, repo):
    """A path that took only small pieces before: most of a range is then behind the end."""
    (repo / "targets" / "short").write_bytes(b"x" * 400)
    with responding(mosquitto, repo), source(mosquitto) as pulling:
        pulling._learnt = window.Window(1024)
        for _ in range(2):
            piece = pulling.fetch("targets/short", 0, CHUNK_BYTES)
            assert (piece.data, piece.total) == (b"x" * 400, 400)
        assert pulling.fetch("targets/data", len(DATA) - 1024, 5000).data == DATA[-1024:]
        with pytest.raises(TransportError, match="416"):
            pulling.fetch("targets/short", 401, 10)


def test_an_answer_that_hides_the_middle_of_a_range_is_an_error(mosquitto, repo, monkeypatch):
    answer = Responder._answer

    def hiding(self, request):
        if request.offset == 2048:
            return Response(request.id, 416, request.offset, 0, b"")
        return answer(self, request)

    monkeypatch.setattr(Responder, "_answer", hiding)
    with responding(mosquitto, repo), source(mosquitto) as pulling:
        pulling._learnt = window.Window(1024)
        with pytest.raises(TransportError, match="a part is missing"):
            pulling.fetch("targets/data", 0, 4096)


def test_a_flood_of_strangers_does_not_hide_silence(mosquitto, monkeypatch):
    """Nobody answers, and somebody fills our topic without a pause."""
    monkeypatch.setattr(mqtt_source, "PATIENCE_S", 1.0)
    noise = Link(Broker(mosquitto.host, mosquitto.port), "noise", [], lambda _: None)
    noise.open()
    is_over = threading.Event()

    def flood():
        while not is_over.is_set():
            noise.publish(reply_topic("tests", "dev1"), bytes(100), qos=1).wait_for_publish(5)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        with source(mosquitto) as pulling, pytest.raises(TransportError, match="nobody answered"):
            pulling.fetch("targets/data", 0, 4)
    finally:
        is_over.set()
        flooding.join()
        noise.close()


def test_what_is_on_its_way_is_bounded_in_bytes(mosquitto, repo, monkeypatch):
    """A cut costs what was asked for; many long requests are not asked for at once."""
    monkeypatch.setattr(mqtt_source, "IN_FLIGHT_BYTES", 3 * CHUNK_BYTES)
    most = 0

    class Watching(MqttSource):
        def _next_response(self, waiting):
            nonlocal most
            most = max(most, sum(entry.request.length for entry in waiting.values()))
            return super()._next_response(waiting)

    with (
        responding(mosquitto, repo),
        Watching(Broker(mosquitto.host, mosquitto.port), "tests", "dev1") as pulling,
    ):
        pieces = list(pulling.pull("targets/data", ranges(len(DATA), CHUNK_BYTES)))
    assert b"".join(piece.data for piece in sorted(pieces, key=by)) == DATA
    assert most == 3 * CHUNK_BYTES
