#!/usr/bin/env python3
"""The client contract of tuf-conformance, on the product's own fetchers, store and trust.

tuf-conformance (github.com/theupdateframework/tuf-conformance) is the public suite that judges TUF
clients.  It drives one executable; this is it, and ``EDGEOTA_CONFORMANCE_MQTT=host:port`` carries
every byte over that broker by the product's own wire format::

    ota-conformance --metadata-dir D init TRUSTED_ROOT
    ota-conformance --metadata-url U --metadata-dir D refresh
    ota-conformance --metadata-url U --metadata-dir D --target-name T [--target-name T2 ...]
                    --target-dir X --target-base-url B download

Exit code 0, or 1 for any failure.  ``init`` keeps the root as the *embedded* one (``D.bootstrap``);
every later call verifies from it.  Expiry is judged by the bare clock here: the suite sets it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from tuf.api.exceptions import LengthOrHashMismatchError

from ota.clock import Reference
from ota.device.http_source import HttpSource
from ota.device.mqtt_source import MqttSource
from ota.device.source import Source
from ota.device.tuf_client import TufClient
from ota.errors import ConfigError, ObjectMissing, PayloadMismatch, TransportError, UpdateError
from ota.fleet.responder import Responder
from ota.mqtt import Broker
from ota.storage import Disk
from ota.wire import NOT_FOUND, OK, UNAVAILABLE, Request, Response

MQTT_VARIABLE = "EDGEOTA_CONFORMANCE_MQTT"
REPO = "conformance"
MAX_TARGET_BYTES = 64 << 20  # a target is held in memory here; the product never does


class HttpBridge(Responder):
    """Answers devices over MQTT from a web server: one GET an object, however many pieces."""

    def __init__(self, broker: Broker, source: HttpSource) -> None:
        super().__init__(broker, f"{REPO}-{os.getpid()}", Path())
        self._source = source
        self._name = ""
        self._data = b""

    def _answer(self, request: Request) -> Response:
        try:
            if request.offset == 0 or request.object != self._name:
                self._data = b"".join(_bounded(self._source.stream(request.object)))
                self._name = request.object
        except ObjectMissing:
            return Response(request.id, NOT_FOUND, request.offset, 0, b"")
        except TransportError:
            return Response(request.id, UNAVAILABLE, request.offset, 0, b"")
        data = self._data[request.offset : request.offset + request.length]
        return Response(request.id, OK, request.offset, len(self._data), data)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of the contract; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "init":
            _init(args)
        else:
            _run(args)
    except (UpdateError, OSError) as err:
        sys.stderr.write(f"ota-conformance: {err}\n")
        return 1
    return 0


def _init(args: argparse.Namespace) -> None:
    disk = Disk()
    root = args.trusted_root.read_bytes()
    disk.make_directory(args.metadata_dir)
    disk.replace(_bootstrap(args), root)
    disk.replace(args.metadata_dir / "root.json", root)


def _run(args: argparse.Namespace) -> None:
    disk = Disk()
    with _source(args) as source:
        client = TufClient(
            source,
            disk,
            args.metadata_dir,
            _bootstrap(args).read_bytes(),
            judge=lambda now, _passed: Reference(now, True),
        )
        client.refresh()
        if args.command == "download":
            for name in args.target_name:
                _download(args, client, source, name)


def _download(args: argparse.Namespace, client: TufClient, source: Source, name: str) -> None:
    """Fetch one target unless it is there already."""
    info = client.target_file(name)
    if info is None:
        raise ObjectMissing(f"{name}: no such target is signed")
    path = args.target_dir / quote(name, "")
    if path.exists():
        with suppress(LengthOrHashMismatchError):  # an old version of it is fetched again
            info.verify_length_and_hashes(path.read_bytes())
            return
    data = b"".join(_bounded(source.stream(client.object_name(info)), info.length))
    try:
        info.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as err:
        raise PayloadMismatch(f"{name}: {err}") from err
    Disk().make_directory(args.target_dir)
    Disk().replace(path, data)


@contextmanager
def _source(args: argparse.Namespace) -> Iterator[Source]:
    """Give the source of the chosen mode."""
    roots = {"metadata": args.metadata_url.rstrip("/") + "/"}
    if args.target_base_url is not None:
        roots["targets"] = args.target_base_url.rstrip("/") + "/"
    web = HttpSource("", roots=roots)
    where = os.environ.get(MQTT_VARIABLE)
    if where is None:
        with web:
            yield web
        return
    host, _, port = where.rpartition(":")
    if not port.isdigit():
        raise ConfigError(f"{MQTT_VARIABLE}: expected host:port, got {where!r}")
    broker = Broker(host, int(port))
    bridge = HttpBridge(broker, web)
    bridge.open()
    try:
        with MqttSource(broker, f"{REPO}-{os.getpid()}", f"client-{os.getpid()}") as source:
            yield source
    finally:
        bridge.close()
        web.close()


def _bounded(blocks: Iterator[bytes], limit: int = MAX_TARGET_BYTES) -> Iterator[bytes]:
    """Pass blocks on until they are more than ``limit`` bytes."""
    n_bytes = 0
    for block in blocks:
        n_bytes += len(block)
        if n_bytes > limit:
            raise PayloadMismatch(f"expected at most {limit} bytes, got more")
        yield block


def _bootstrap(args: argparse.Namespace) -> Path:
    directory: Path = args.metadata_dir
    return directory.with_name(f"{directory.name}.bootstrap")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ota-conformance", description=__doc__)
    parser.add_argument("--metadata-url")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init")
    init.add_argument("trusted_root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser


if __name__ == "__main__":
    sys.exit(main())
