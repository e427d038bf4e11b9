"""Fuzz what an update reads from outside: metadata and messages of the wire.

    python -m tests.ota.fuzz {metadata,wire} [--seconds N] [--seed N] [--out FILE]

Metadata is damaged as bytes, or as values that are signed again, so that what lies behind the
signatures is reached too.  The wire has requests and responses, releases, the custom fields of
targets, and what the fleet and Home Assistant may say to a node.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata
from tuf.api.serialization import DeserializationError, SerializationError

from ota import trust
from ota.device.high_water import HighWater
from ota.device.tuf_client import TufClient
from ota.errors import UpdateError
from ota.release import FileEntry, Health, make_release, parse_release, root_of
from ota.storage import Disk
from ota.wire import (
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from tests import fuzzing
from tests.fuzzing import Case, Target
from tests.mutations import change_bytes, change_json, dump
from tests.ota.fakes import MemorySource
from tests.ota.simulator import Simulator

CLIENTS = 50  # directories of trusted metadata that go on from case to case
#: python-tuf reads 5 MB of targets at the most, and makes objects of them.
METADATA_SPARE_BYTES = 8 << 20
METADATA_BYTES_A_BYTE = 120
WIRE_SPARE_BYTES = 1 << 20
WIRE_BYTES_A_BYTE = 80
ODD = ("targets", "../root", "a/*", "ed25519", "rsa", "sha256", "2099-01-01T00:00:00Z", "0" * 64)
SHA256 = "ab" * 32


class Repository:
    """A signed repository; damaged objects of it, signed again by the right keys or not."""

    def __init__(self) -> None:
        simulator = Simulator()
        simulator.add_target("file", b"data")
        simulator.delegate("targets", "role", ["a/*"])
        simulator.bump()
        simulator.rotate("timestamp")
        simulator.publish_timestamp()
        self.whole = dict(simulator.served)
        self.names = sorted(name for name in self.whole if name.startswith("metadata/"))
        self._simulator = simulator

    def damaged(self, rng: random.Random, name: str) -> bytes:
        sound = self.whole[name]
        if rng.random() < 0.4:
            return change_bytes(rng, sound)
        value = json.loads(sound)
        if rng.random() < 0.3:
            return dump(rng, change_json(rng, value, ODD))
        return self._signed_again(change_json(rng, value["signed"], ODD), name)

    def _signed_again(self, signed: Any, name: str) -> bytes:
        """Sign any JSON as python-tuf would sign it if it were metadata."""
        role = name.removeprefix("metadata/").removesuffix(".json").split(".")[-1]
        payload = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
        whole = json.dumps({"signed": signed, "signatures": []}).encode()
        with suppress(DeserializationError, SerializationError):  # it will not get to a signature
            payload = Metadata.from_bytes(whole).signed_bytes
        signatures = [signer.sign(payload) for signer in self._simulator.signers[role]]
        rows = [{"keyid": s.keyid, "sig": s.signature} for s in signatures]
        return json.dumps({"signed": signed, "signatures": rows}).encode()


def metadata(folder: Path) -> Target:
    """A client of a repository of which one object is damaged."""
    repo, n_cases = Repository(), 0

    def read(name: str, data: bytes, record: bytes | None, client_number: int) -> None:
        directory = folder / f"client-{client_number}"
        source = MemorySource(repo.whole | {name: data})
        root = source.objects["metadata/1.root.json"]
        if record is not None:
            directory.mkdir(exist_ok=True)
            (directory / "tuf.highwater").write_bytes(record)
            HighWater(Disk(), directory / "tuf.highwater")
        client = TufClient(source, Disk(), directory / "tuf", root)
        client.refresh()
        client.target("a/x")
        client.target("file")

    def make(rng: random.Random) -> Case:
        nonlocal n_cases
        n_cases += 1
        name = rng.choice(repo.names)
        data = repo.damaged(rng, name)
        number = n_cases % CLIENTS
        if rng.random() < 0.6:  # one that trusts nothing yet asks for every object
            shutil.rmtree(folder / f"client-{number}", ignore_errors=True)
        mark = folder / f"client-{number}" / "tuf.highwater"
        record = None
        if mark.exists() and rng.random() < 0.3:
            record = change_bytes(rng, mark.read_bytes())
        return Case(data, lambda: read(name, data, record, number))

    return Target(make, UpdateError, METADATA_SPARE_BYTES, METADATA_BYTES_A_BYTE, trace_every=4)


def _release() -> bytes:
    files = {f"model-{i}.safetensors": FileEntry(1000 + i, SHA256) for i in range(4)}
    return make_release("tiny", "1.0.0", 3, files, Health(((1, 2, 3),), (SHA256,))).text


def _custom(parse: Callable[[Any], object]) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):  # python-tuf has parsed it by then
            return None
        return parse(value)

    return read


Reader = Callable[[bytes], object]


def _readers() -> list[tuple[bytes, Reader]]:
    offer = {
        "name": "tiny", "version": "1.0.0", "counter": 3, "root": SHA256, "bytes": 4000,
        "full_bytes": 3000, "hardware": ["raspberry-pi"], "min_agent": "0.2",
    }  # fmt: skip
    payload = {
        "base": SHA256, "root": SHA256, "chunk_bytes": 65536, "chunks_sha256": SHA256,
        "written_bytes": 5000,
    }  # fmt: skip
    request = Request("a-1", "targets/models/x.etd", 65536, 65536, "ota/v1/r/d")
    return [
        (encode_request(request), decode_request),
        (encode_response(Response("a-1", 200, 0, 1 << 20, bytes(2000))), decode_response),
        (_release(), parse_release),
        (b'{"version": "1.0.0"}', _custom(lambda v: trust.parse_channel(v, "tiny"))),
        (json.dumps(offer).encode(), _custom(lambda v: trust.parse_offer(v, "tiny", "1.0.0"))),
        (json.dumps(payload).encode(),
         _custom(lambda v: trust.parse_payload(v, "models/tiny/1.0.0/full.etd", 3000, SHA256))),
    ]  # fmt: skip


def _damaged(rng: random.Random, sound: bytes) -> bytes:
    header, newline, body = sound.partition(b"\n")
    is_object = header.startswith(b"{") and not body.startswith(b" ")
    if not is_object or rng.random() < 0.4:
        return change_bytes(rng, sound, len(sound) if rng.random() < 0.3 else 400)
    return dump(rng, change_json(rng, json.loads(header))) + newline + body


def _release_again(rng: random.Random, sound: bytes) -> bytes:
    """Damage a release below its root, which is made to agree."""
    fields = json.loads(sound)
    changed = change_json(rng, fields)
    if isinstance(changed, dict) and isinstance(changed.get("files"), dict):
        with suppress(TypeError, KeyError, UnicodeEncodeError):
            entries = {
                path: FileEntry(entry["bytes"], entry["sha256"])
                for path, entry in changed["files"].items()
            }
            changed["root"] = root_of(entries)
    return dump(rng, changed)


def wire(_folder: Path) -> Target:
    """Messages and small files, each to its parser."""
    readers = _readers()

    def make(rng: random.Random) -> Case:
        sound, parse = rng.choice(readers)
        damage = _release_again if parse is parse_release and rng.random() < 0.7 else _damaged
        data = damage(rng, sound)
        return Case(data, lambda: parse(data))

    return Target(make, UpdateError, WIRE_SPARE_BYTES, WIRE_BYTES_A_BYTE, trace_every=10)


TARGETS = {"metadata": metadata, "wire": wire}

if __name__ == "__main__":
    sys.exit(fuzzing.main(__doc__, TARGETS))
