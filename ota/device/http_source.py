"""A repository on a web server: plain GET for metadata, ranges for payloads.

Any static file server does.  One connection is kept open; a redirect is followed a few times and
never from ``https`` to ``http``.  A server without ranges sends the whole object each time: then
the wanted stretch is cut out of it, so a small payload still comes.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urljoin, urlsplit

from ota.device.source import Piece, Source
from ota.errors import (
    Cancelled,
    ConfigError,
    NameUnknown,
    ObjectMissing,
    TlsFailed,
    TransportError,
)

TIMEOUT_S = 15.0  # silence on the line; a slow cellular link answers in 5
PATIENCE_S = 120.0  # one response as a whole: 64 KiB at 5 kbit/s
MAX_REDIRECTS = 4
READ_BYTES = 1 << 14
MAX_SKIPPED_BYTES = 64 << 20  # what a server without ranges may make us read and drop

_MISSING = {403, 404, 410}  # object stores say 403 for what is not there
_REDIRECT = {301, 302, 303, 307, 308}
_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15})")


class HttpSource(Source):
    """Reads the repository below ``url``.

    Args:
        url: of the directory that holds ``metadata/`` and ``targets/``
        tls: for ``https``; None: the system's authorities
        is_stopped: asked between blocks; True ends a transfer with ``Cancelled``
        roots: where ``metadata/`` and ``targets/`` are, if not below ``url``

    Raises:
        ConfigError: ``url`` is not an http or https address.
    """

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
        roots: dict[str, str] | None = None,
    ) -> None:
        base = url.rstrip("/")
        self._roots = roots or {kind: f"{base}/{kind}/" for kind in ("metadata", "targets")}
        for root in self._roots.values():
            _check_url(root)
        self._tls = tls
        self.is_stopped = is_stopped
        self._connection: http.client.HTTPConnection | None = None
        self._peer: tuple[str, str] = ("", "")

    def fetch(self, name: str, offset: int, length: int) -> Piece:
        """Return up to ``length`` bytes of object ``name``; fewer only at its end."""
        if length == 0:
            return Piece(offset, b"", offset)
        with self._errors(name):
            response = self._get(name, {"Range": f"bytes={offset}-{offset + length - 1}"})
            start, total = _position(name, response)
            skip = offset - start
            if not 0 <= skip <= MAX_SKIPPED_BYTES:
                raise TransportError(f"{name}: expected bytes from {offset}, got from {start}")
            data = bytearray()
            for block in self._blocks(name, response):
                data += block
                if len(data) >= skip + length:
                    break
            self._finish(response)
        got = bytes(data[skip : skip + length])
        expected = max(0, min(length, total - offset))
        if len(got) != expected:
            raise TransportError(
                f"{name}: expected {expected} bytes at {offset}, got {len(got)}; cut off"
            )
        return Piece(offset, got, total)

    def stream(self, name: str) -> Iterator[bytes]:
        """Yield a whole object with one GET."""
        with self._errors(name):
            response = self._get(name, {})
            n_read = 0
            for block in self._blocks(name, response):
                n_read += len(block)
                yield block
            if response.length:
                raise TransportError(f"{name}: cut off after {n_read} bytes")
            self._finish(response)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _errors(self, name: str) -> _Errors:
        return _Errors(self, name)

    def _get(self, name: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Return the response to a GET, redirects followed."""
        kind, _, rest = name.partition("/")
        if kind not in self._roots:
            raise ObjectMissing(f"{name}: expected an object below metadata/ or targets/")
        url = self._roots[kind] + rest
        for _ in range(MAX_REDIRECTS + 1):
            response = self._request(url, headers)
            if response.status not in _REDIRECT:
                return self._checked(name, response)
            target = urljoin(url, response.getheader("Location", ""))
            self.close()
            _check_url(target)
            if urlsplit(url).scheme == "https" != urlsplit(target).scheme:
                raise TransportError(f"{name}: refused a redirect from https to {target}")
            url = target
        raise TransportError(f"{name}: more than {MAX_REDIRECTS} redirects")

    def _checked(self, name: str, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
        if response.status in (http.client.OK, http.client.PARTIAL_CONTENT):
            return response
        self.close()
        if response.status in _MISSING:
            raise ObjectMissing(f"{name}: no such object in the repository ({response.status})")
        raise TransportError(f"{name}: expected status 200, got {response.status}")

    def _request(self, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        if self._connection is None or self._peer != (parts.scheme, parts.netloc):
            self.close()
            self._connection = self._connect(parts.scheme, parts.netloc)
            self._peer = (parts.scheme, parts.netloc)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            return _answer(self._connection, path, headers)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # The server closed a connection that was idle: once more on a fresh one.
            self.close()
            self._connection = self._connect(parts.scheme, parts.netloc)
            return _answer(self._connection, path, headers)

    def _connect(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        if scheme == "http":
            return http.client.HTTPConnection(netloc, timeout=TIMEOUT_S)
        context = self._tls or ssl.create_default_context()
        return http.client.HTTPSConnection(netloc, timeout=TIMEOUT_S, context=context)

    def _blocks(self, name: str, response: http.client.HTTPResponse) -> Iterator[bytes]:
        until_s = time.monotonic() + PATIENCE_S
        while block := response.read1(READ_BYTES):
            if self.is_stopped():
                raise Cancelled("asked to stop while fetching; what came is kept")
            if time.monotonic() > until_s:
                raise TransportError(f"{name}: not whole within {PATIENCE_S:g} s")
            yield block

    def _finish(self, response: http.client.HTTPResponse) -> None:
        """Keep the connection if nothing is left on it."""
        if not response.isclosed():
            self.close()


class _Errors:
    """Turns what the network says into our errors, and drops the connection then."""

    def __init__(self, source: HttpSource, name: str) -> None:
        self._source = source
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: object
    ) -> None:
        if error is None:
            return
        self._source.close()
        if isinstance(error, (OSError, http.client.HTTPException, ValueError)):
            what = str(error) or type(error).__name__
            kind = TransportError
            if isinstance(error, socket.gaierror):
                kind = NameUnknown
            elif isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                kind = TlsFailed
            raise kind(f"{self._name}: {what}; is the server running?") from error


def _answer(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str]
) -> http.client.HTTPResponse:
    """Send a GET and read the head of its answer, which may not be fed to us byte by byte."""

    def give_up() -> None:
        if connection.sock is not None:
            with suppress(
                OSError
            ):  # only the TCP level: a TLS session must not be taken apart here
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    timer = threading.Timer(PATIENCE_S, give_up)
    timer.start()
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse()
    finally:
        timer.cancel()


def _position(name: str, response: http.client.HTTPResponse) -> tuple[int, int]:
    """Return the offset that the body begins at, and the length of the object."""
    if response.status == http.client.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
        if match is None:
            raise TransportError(f"{name}: expected a Content-Range with the object's length")
        return int(match[1]), int(match[2])
    if response.length is None:
        raise TransportError(f"{name}: expected a Content-Length or a range")
    return 0, response.length


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ConfigError(f"expected an http or https address without a user, got {url!r}")
