"""Does a broker answer?  One MQTT 3.1.1 CONNECT over a fresh connection, and what came back.

For `edgeagent doctor`: it blocks, keeps nothing, and says in words what an operator can mend.  The
agent's own connection is `edgeagent.adapters.mqtt`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator

from edgeagent.errors import AdapterError

TIMEOUT_S = 3.0  # a broker on the same network answers within milliseconds

_CONNACK_BYTES = 4
_REFUSALS = {
    2: "it does not accept our client id",
    3: "it is not ready (return code 3)",
    4: "it does not know this user name or password: check mqtt.username and the credential",
    5: "it does not authorise us: check mqtt.username, and the broker's access list",
}
# What a broker that speaks only MQTT 5 answers to 3.1.1: in the old form, and in the new one.
_VERSION_REFUSED = {0x01, 0x84}


def probe_broker(
    host: str,
    port: int,
    *,
    username: str = "",
    password: str | None = None,
    tls: ssl.SSLContext | None = None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """Connect, say who we are, leave, and return what the broker is, in a few words.

    Raises:
        AdapterError: there is no broker, or it refuses us; the message says what to look at.
    """
    try:
        with _connection(host, port, tls, timeout_s) as sock:
            sock.sendall(connect_packet(f"edgeagent-doctor-{os.getpid()}", username, password))
            reply = _receive(sock, _CONNACK_BYTES)
            with contextlib.suppress(OSError):
                sock.sendall(b"\xe0\x00")  # DISCONNECT
    except ssl.SSLError as err:
        raise AdapterError(f"{host}:{port}: TLS failed: {err.reason or err}") from err
    except OSError as err:
        raise AdapterError(f"{host}:{port}: {err.strerror or err}") from err
    return _verdict(f"{host}:{port}", reply)


def connect_packet(client_id: str, username: str = "", password: str | None = None) -> bytes:
    """Return an MQTT 3.1.1 CONNECT with a clean session and no will."""
    flags, payload = 0x02, _text(client_id)
    if username:
        flags |= 0x80
        payload += _text(username)
        if password is not None:
            flags |= 0x40
            payload += _text(password)
    body = _text("MQTT") + bytes([4, flags, 0, 10]) + payload  # level 4, keep alive 10 s
    return b"\x10" + _length(len(body)) + body


def _text(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(2, "big") + encoded


def _length(length: int) -> bytes:
    """Return MQTT's variable length: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while True:
        length, low = divmod(length, 128)
        encoded.append(low | (0x80 if length else 0))
        if not length:
            return bytes(encoded)


@contextlib.contextmanager
def _connection(
    host: str, port: int, tls: ssl.SSLContext | None, timeout_s: float
) -> Iterator[socket.socket]:
    with socket.create_connection((host, port), timeout_s) as plain:
        if tls is None:
            yield plain
            return
        with tls.wrap_socket(plain, server_hostname=host) as encrypted:
            yield encrypted


def _receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            break
        data += piece
    return data


def _verdict(where: str, reply: bytes) -> str:
    if len(reply) < _CONNACK_BYTES or reply[0] != 0x20:
        raise AdapterError(
            f"{where}: something listens there, but it is no MQTT broker that accepts us"
            " (TLS expected, or another service?)"
        )
    code = reply[3]
    if code == 0:
        return f"{where} accepts us"
    if code in _VERSION_REFUSED:
        return f"{where} answers (it wants MQTT 5)"
    raise AdapterError(f"{where}: {_REFUSALS.get(code, f'it refuses us, return code {code}')}")
