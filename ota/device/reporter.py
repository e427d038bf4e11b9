"""Signs what became of updates: ``python -m ota.device.reporter --state-dir DIR --node NAME``.

A child of a second or so, so that the agent never loads what signs.  It reads the agent's list of
ends (``ota/history.jsonl``), signs those that have no report yet, and leaves them in a ring that
survives reboots (``ota/reports.jsonl``); sending is the agent's matter.  It may be killed at any
moment: a number is on the disk before its report is, so none is used twice; an end without its
report is found again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer._crypto_signer import CryptoSigner

from ota.errors import ConfigError, UpdateError
from ota.reports import MAX_SEQ, sign_report
from ota.storage import Disk, typed_errors

KEY, PUBLIC = "device.key", "device.pub"
HISTORY, RING, NUMBER = "history.jsonl", "reports.jsonl", "reports.seq"
MAX_REPORTS = 64
"""Years of outcomes; the oldest go first.  Progress is not reported here, so nothing else does."""

MAX_FILE_BYTES = 1 << 20


def device_signer(directory: Path) -> CryptoSigner:
    """Return the device's key, made at the first call; it never leaves the device.

    Raises:
        ConfigError: the file is no Ed25519 key.
        StorageError: the disk refuses.
    """
    path = directory / KEY
    with typed_errors(path):
        if not path.exists():
            _make_key(path)
        pem = path.read_bytes()
    try:
        signer = CryptoSigner(load_pem_private_key(pem, None))
        if signer.public_key.keytype != "ed25519":
            raise ValueError(signer.public_key.keytype)
    except (ValueError, TypeError) as err:
        raise ConfigError(
            f"{path}: expected an Ed25519 key in PEM; remove it, and enrol the device again"
        ) from err
    public = directory / PUBLIC
    if not public.exists():
        Disk().replace(public, f"{signer.public_key.keyval['public']}\n".encode())
    return signer


def _make_key(path: Path) -> None:
    Disk().make_directory(path.parent)
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    pem = CryptoSigner.generate_ed25519().private_bytes
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    Disk().rename(beside, path)


def report_all(directory: Path, node: str, facts: Mapping[str, Any]) -> int:
    """Sign every end that has no report; returns how many.

    Args:
        directory: ``<state_dir>/ota``.
        node: the device's name.
        facts: what else each of these reports says: the model that runs, the agent's version.

    Raises:
        UpdateError: the disk refuses, or the key is none.
    """
    with _alone(directory):
        ends = _lines(directory / HISTORY)
        ring = [line for line in _lines(directory / RING) if type(line.get("seq")) is int]
        signed = {line.get("end") for line in ring}
        due = [end for end in ends[-MAX_REPORTS:] if "id" in end and end["id"] not in signed]
        if not due:
            return 0
        signer, disk = device_signer(directory), Disk()
        for end in due:
            previous = max((line["seq"] for line in ring), default=0)
            seq = max(previous, _number(directory / NUMBER)) + 1
            disk.replace(directory / NUMBER, b"%d\n" % seq)  # before the report: never twice
            fields = {"node": node, "seq": seq, "previous": previous, **facts, "end": end}
            envelope = sign_report(fields, signer)
            ring.append({"seq": seq, "end": end["id"], "envelope": envelope})
            kept = ring[-MAX_REPORTS:]
            disk.replace(directory / RING, b"".join(map(_line, kept)))
        return len(due)


def _number(path: Path) -> int:
    try:
        number = int(path.read_bytes()[:20])
    except (OSError, ValueError):
        return 0
    return number if 0 <= number < MAX_SEQ else 0


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file of lines; a torn one is passed over."""
    try:
        with path.open("rb") as file:
            lines = file.read(MAX_FILE_BYTES).splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(fields, dict):
            found.append(fields)
    return found


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    Disk().make_directory(directory)
    path = directory / "reports.lock"
    with typed_errors(path), path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """Sign what is due; facts come as JSON on standard input, an error leaves as one line."""
    parser = argparse.ArgumentParser(prog="ota.device.reporter", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--node", required=True)
    args = parser.parse_args(argv)
    try:
        facts = json.loads(sys.stdin.buffer.read(MAX_FILE_BYTES) or b"{}")
        n_signed = report_all(args.state_dir / "ota", args.node, facts)
    except UpdateError as err:
        sys.stderr.write(f"{err}\n")
        return err.exit_code
    sys.stdout.write(json.dumps({"signed": n_signed}) + "\n")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
