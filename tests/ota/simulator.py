"""A TUF repository in memory that can be made to misbehave, and a web server in front of it."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

from securesystemslib.signer._crypto_signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

TOP = ("root", "timestamp", "snapshot", "targets")


def in_days(days: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


class Simulator:
    """A repository; change the objects, then ``publish_*``; ``served`` is what a client may get."""

    def __init__(self) -> None:
        self.signers = {role: [CryptoSigner.generate_ed25519()] for role in TOP}
        self.root = Root(expires=in_days(30), consistent_snapshot=True)
        for role in TOP:
            self.root.add_key(self.signers[role][0].public_key, role)
        self.targets = Targets(expires=in_days(30))
        self.delegated: dict[str, Targets] = {}
        self.snapshot = Snapshot(expires=in_days(30))
        self.timestamp = Timestamp(expires=in_days(30))
        self.served: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.publish_root()
        self.publish()

    @property
    def first_root(self) -> bytes:
        return self.served["metadata/1.root.json"]

    def publish_root(self, signers=None) -> None:
        name = f"metadata/{self.root.version}.root.json"
        self.served[name] = self.sign(self.root, signers or self.signers["root"])

    def rotate(self, role: str, signer=None) -> None:
        """Replace the keys of ``role`` by a new one, in a new root signed by old and new."""
        old = list(self.signers["root"])
        for key in list(self.root.roles[role].keyids):
            self.root.revoke_key(key, role)
        self.signers[role] = [signer or CryptoSigner.generate_ed25519()]
        self.root.add_key(self.signers[role][0].public_key, role)
        self.root.version += 1
        self.publish_root([*old, *self.signers["root"]] if role == "root" else None)

    def publish(self) -> None:
        """Sign targets, snapshot and timestamp as they are, with new versions above them."""
        meta = {"targets.json": MetaFile(self.targets.version)}
        self._serve("targets", self.targets)
        for name, role in self.delegated.items():
            meta[f"{name}.json"] = MetaFile(role.version)
            self._serve(name, role)
        self.snapshot.meta = meta
        self.publish_snapshot()

    def publish_snapshot(self) -> None:
        self._serve("snapshot", self.snapshot)
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version)
        self.publish_timestamp()

    def publish_timestamp(self) -> None:
        self._serve("timestamp", self.timestamp)

    def bump(self) -> None:
        """New versions of everything below the root."""
        for signed in (self.targets, self.snapshot, self.timestamp, *self.delegated.values()):
            signed.version += 1
        self.publish()

    def add_target(self, path: str, data: bytes, role: str = "targets", algorithms=None) -> None:
        info = TargetFile.from_data(path, data, algorithms)
        owner = self.targets if role == "targets" else self.delegated[role]
        owner.targets[path] = info
        directory, slash, base = path.rpartition("/")
        for digest in info.hashes.values():
            self.served[f"targets/{directory}{slash}{digest}.{base}"] = data

    def delegate(self, parent: str, name: str, paths, *, terminating: bool = False) -> None:
        self.delegated[name] = Targets(expires=in_days(30))
        self.signers[name] = [CryptoSigner.generate_ed25519()]
        owner = self.targets if parent == "targets" else self.delegated[parent]
        if owner.delegations is None:
            owner.delegations = Delegations({}, {})
        role = DelegatedRole(name, [], 1, terminating, paths)
        owner.delegations.roles[name] = role
        owner.add_key(self.signers[name][0].public_key, name)

    def sign(self, signed, signers) -> bytes:
        metadata = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def _serve(self, role: str, signed) -> None:
        prefix = "" if role == "timestamp" else f"{signed.version}."
        name = f"metadata/{prefix}{quote(role, '')}.json"
        self.served[name] = self.sign(signed, self.signers[role])


@contextmanager
def web_server(served: dict[str, bytes], requests: list[str], handler=None):
    """Serve ``served`` with ranges; ``requests`` gets each path asked for.  Yields the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            requests.append(name)
            if handler is not None and handler(self, name):
                return
            data = served.get(name, served.get(unquote(name)))
            if data is None:
                self.send_error(404)
                return
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if match is None:
                self._answer(200, data)
                return
            first, last = int(match[1]), min(int(match[2]), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self._body(data[first : last + 1])

        def _answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self._body(data)

        def _body(self, data: bytes) -> None:
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
