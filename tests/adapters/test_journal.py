import logging
import os
import socket

import pytest

from edgeagent.adapters.journal import JournalHandler, encode, event_of, is_our_stderr, message_id


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """A socket in the journal's place, at a path that is short enough for the kernel."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("j")
        sock.settimeout(5)
        yield sock


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def logger_to(path):
    fallback = Kept()
    log = logging.Logger("edgeagent.test")
    log.addHandler(JournalHandler(fallback, path))
    return log, fallback


def close(log):
    for handler in log.handlers:
        handler.close()


def test_an_event_arrives_with_its_id_and_priority(journal):
    log, fallback = logger_to("j")
    log.warning("mqtt.lost reason=%r retry_s=%.1f", "refused", 2)
    lines = journal.recv(4096).decode().splitlines()
    assert lines[:3] == [
        "MESSAGE=mqtt.lost reason='refused' retry_s=2.0",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=edgeagent",
    ]
    assert f"MESSAGE_ID={message_id('mqtt.lost')}" in lines
    assert "EDGEAGENT_EVENT=mqtt.lost" in lines
    assert fallback.messages == []
    close(log)


def test_a_line_that_is_no_event_has_no_id(journal):
    log, _ = logger_to("j")
    log.error("Something else")
    assert b"MESSAGE_ID" not in journal.recv(4096)
    close(log)


@pytest.mark.parametrize(("level", "priority"), [(10, 7), (20, 6), (30, 4), (40, 3), (50, 2)])
def test_levels_are_the_journals_priorities(journal, level, priority):
    log, _ = logger_to("j")
    log.log(level, "a.b")
    assert f"PRIORITY={priority}\n".encode() in journal.recv(4096)
    close(log)


def test_a_traceback_is_one_value_of_many_lines():
    assert encode({"MESSAGE": "a\nb"}) == b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n"


def test_what_cannot_be_sent_is_not_lost(tmp_path):
    log, fallback = logger_to(str(tmp_path / "nobody"))
    log.info("agent.ready version=1")
    assert fallback.messages == ["agent.ready version=1"]
    close(log)


def test_a_record_too_long_for_a_datagram_goes_to_the_fallback(journal):
    log, fallback = logger_to("j")
    log.info("x" * (8 << 20))
    assert len(fallback.messages) == 1
    close(log)


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("mqtt.lost reason=x", "mqtt.lost"),
        ("agent.stopping", "agent.stopping"),
        ("Hello there", None),
        ("1.2 x", None),
        ("", None),
    ],
)
def test_events_are_recognised_by_their_form(line, event):
    assert event_of(line) == event


def test_standard_error_is_the_journals_only_if_it_is_the_same_stream():
    status = os.fstat(2)
    assert is_our_stderr({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    assert not is_our_stderr({"JOURNAL_STREAM": "1:2"})
    assert not is_our_stderr({})
