import os
import socket

import pytest

from edgeagent.adapters.sd_notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """Play systemd: return the address for the environment and the socket that hears."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        if request.param == "path":
            address = str(tmp_path / "notify")
            sock.bind(address)
        else:
            address = f"@edgeagent-test-{os.getpid()}"
            sock.bind("\0" + address[1:])
        yield address, sock


def test_assignments_arrive_as_one_datagram(manager):
    address, sock = manager
    Notifier({"NOTIFY_SOCKET": address}).send(READY="1", STATUS="fine")
    assert sock.recv(1000) == b"READY=1\nSTATUS=fine"


def test_without_systemd_nothing_happens():
    notifier = Notifier({})
    notifier.send(READY="1")
    assert notifier.watchdog_s is None


def test_a_manager_that_is_gone_is_no_error(tmp_path):
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).send(READY="1")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_watchdog_is_ours_only_when_it_names_us(environ, seconds):
    assert Notifier(environ).watchdog_s == seconds
