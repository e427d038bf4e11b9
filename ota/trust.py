"""Which release may be installed, and through which payload.  Pure.

TUF says that metadata is genuine and fresh; this says whether a genuine release is for *this*
device *now*.  The custom fields that it reads are signed with the targets key, and are checked like
any other bytes from outside.

Names of targets, one place for both ends::

    models/<name>/stable.json                     custom: Channel
    models/<name>/<version>/release.json          custom: Offer
    models/<name>/<version>/full.etd              custom: Payload, base null
    models/<name>/deltas/<from>-<to>.etd          custom: Payload; 16 hex digits of each root
    <payload>.chunks                              no target: its hash is in the payload's custom
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ota.errors import (
    AgentTooOld,
    Downgrade,
    NoPayload,
    NoRoom,
    Quarantined,
    UntrustedMetadata,
    WrongHardware,
)
from ota.quarantine import Quarantine
from ota.release import MAX_FILE_BYTES, is_name, is_sha256, is_version, short_root
from ota.wire import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES

CHANNEL = "stable"
MAX_PAYLOAD_BYTES = 1 << 36  # 64 GiB: a 2-bit image of a model far beyond any small board
_AGENT_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}")


@dataclass(frozen=True, slots=True)
class Offer:
    """A release as its target describes it."""

    name: str
    version: str
    counter: int
    root: str
    n_bytes: int
    full_bytes: int
    hardware: tuple[str, ...]
    """Boards it is for; empty: all."""
    min_agent: str


@dataclass(frozen=True, slots=True)
class Payload:
    """A container that leads to a release."""

    target: str
    length: int
    sha256: str
    base: str | None
    root: str
    chunk_bytes: int
    chunks_sha256: str
    written_bytes: int
    """What the device will write for it besides the payload itself."""


@dataclass(frozen=True, slots=True)
class Device:
    """What decides about a release on this side."""

    hardware: str
    agent_version: str
    active_root: str
    counter: int
    """The highest counter ever committed here."""
    quarantine: Quarantine
    """What was given up here."""
    newest: str | None = None
    """The root of the release that ``counter`` was committed for, if it is known: that very release
    is no step back."""


def model_prefix(name: str) -> str:
    """Return what every target of ``name`` begins with."""
    return f"models/{name}/"


def model_patterns(name: str) -> list[str]:
    """Return the path patterns of all targets of ``name``: a ``*`` does not cross a slash."""
    return [f"models/{name}/*", f"models/{name}/*/*"]


def channel_target(name: str) -> str:
    """Return the target that says which version of ``name`` is current."""
    return f"models/{name}/{CHANNEL}.json"


def release_target(name: str, version: str) -> str:
    """Return the target of a release's ``release.json``."""
    return f"models/{name}/{version}/release.json"


def full_target(name: str, version: str) -> str:
    """Return the target of a release's full image."""
    return f"models/{name}/{version}/full.etd"


def delta_target(name: str, from_root: str, to_root: str) -> str:
    """Return the target of the delta between two models."""
    return f"models/{name}/deltas/{short_root(from_root)}-{short_root(to_root)}.etd"


def chunks_object(target: str) -> str:
    """Return the name of the list of chunk hashes of a payload."""
    return f"{target}.chunks"


def parse_channel(custom: Any, name: str) -> str:
    """Return the version that a channel points to.

    Raises:
        UntrustedMetadata: the custom fields are not what ``edgeota release`` writes.
    """
    version = _fields(custom, channel_target(name)).get("version")
    if not is_version(version):
        raise UntrustedMetadata(f"{channel_target(name)}: expected a version, got {version!r}")
    return str(version)


def parse_offer(custom: Any, name: str, version: str) -> Offer:
    """Read the custom fields of a release.

    Raises:
        UntrustedMetadata: they are incomplete, or belong to another release.
    """
    target = release_target(name, version)
    fields = _fields(custom, target)
    if not is_name(name) or (fields.get("name"), fields.get("version")) != (name, version):
        raise UntrustedMetadata(
            f"{target}: expected {name} {version}, it describes {fields.get('name')!r} "
            f"{fields.get('version')!r}"
        )
    hardware, min_agent = fields.get("hardware", []), fields.get("min_agent", "0")
    if not (isinstance(hardware, list) and all(isinstance(item, str) for item in hardware)):
        raise UntrustedMetadata(f"{target}: expected a list of boards, got {hardware!r}")
    if not isinstance(min_agent, str) or not _AGENT_VERSION.fullmatch(min_agent):
        raise UntrustedMetadata(f"{target}: expected an agent version, got {min_agent!r}")
    return Offer(
        name,
        version,
        _number(fields, target, "counter", 2**53),
        _root(fields, target, "root"),
        _number(fields, target, "bytes", MAX_FILE_BYTES),
        _number(fields, target, "full_bytes", MAX_PAYLOAD_BYTES),
        tuple(hardware),
        min_agent,
    )


def parse_payload(custom: Any, target: str, length: int, sha256: str) -> Payload:
    """Read the custom fields of a delta or a full image.

    Raises:
        UntrustedMetadata: they are incomplete or break a limit.
    """
    fields = _fields(custom, target)
    chunk_bytes = _number(fields, target, "chunk_bytes", MAX_CHUNK_BYTES)
    if chunk_bytes < MIN_CHUNK_BYTES or not 0 < length <= MAX_PAYLOAD_BYTES:
        raise UntrustedMetadata(
            f"{target}: {length} bytes in chunks of {chunk_bytes} break a limit"
        )
    return Payload(
        target,
        length,
        sha256,
        None if fields.get("base") is None else _root(fields, target, "base"),
        _root(fields, target, "root"),
        chunk_bytes,
        _root(fields, target, "chunks_sha256"),
        _number(fields, target, "written_bytes", MAX_FILE_BYTES),
    )


def accept(offer: Offer, device: Device) -> bool:
    """Say whether ``offer`` is to be installed; False: it is what is running.

    Raises:
        WrongHardware, AgentTooOld, Downgrade, Quarantined: it must not be installed here.
    """
    if offer.root == device.active_root:
        return False
    what = f"{offer.name} {offer.version}"
    given_up = device.quarantine.get(offer.root)
    if given_up is not None and given_up.refuses(offer.counter):
        raise Quarantined(
            f"{what}: it was rolled back here ({given_up.reason}); publish a newer release, or "
            f"lift it with `edgeagent update forgive {short_root(offer.root)}`"
        )
    if offer.hardware and device.hardware not in offer.hardware:
        raise WrongHardware(
            f"{what}: expected hardware {', '.join(offer.hardware)}, this is {device.hardware!r}"
        )
    if _version_key(device.agent_version) < _version_key(offer.min_agent):
        raise AgentTooOld(
            f"{what}: expected agent {offer.min_agent} or newer, this is {device.agent_version}; "
            "upgrade the agent"
        )
    is_newest = offer.counter == device.counter and offer.root == device.newest
    if offer.counter <= device.counter and not is_newest:
        raise Downgrade(
            f"{what}: expected a counter above {device.counter}, got {offer.counter}; "
            "release it again with a higher counter"
        )
    return True


def choose_payload(
    offer: Offer, payloads: Sequence[Payload], base_root: str, free_bytes: int
) -> Payload:
    """Return the smallest payload that starts from our base or from nothing, and fits.

    Args:
        offer: the release it must lead to
        payloads: what the repository has, less what was refused here
        base_root: the model that is active
        free_bytes: room for the payload and the slot

    Raises:
        NoPayload: none starts from here.
        NoRoom: none fits.
    """
    usable = [
        payload
        for payload in payloads
        if payload.root == offer.root and payload.base in (None, base_root)
    ]
    if not usable:
        raise NoPayload(
            f"{offer.name} {offer.version}: no usable delta from {short_root(base_root)} and no "
            "full image; make one with `edgeota delta`"
        )
    for payload in sorted(usable, key=lambda payload: payload.length):
        if payload.length + payload.written_bytes <= free_bytes:
            return payload
    need = min(payload.length + payload.written_bytes for payload in usable)
    raise NoRoom(
        f"{offer.name} {offer.version}: expected {need} bytes of free space above the reserve, "
        f"got {free_bytes}"
    )


def _fields(custom: Any, target: str) -> Mapping[str, Any]:
    if not isinstance(custom, Mapping):
        raise UntrustedMetadata(f"{target}: expected custom fields, got {custom!r}")
    return custom


def _number(fields: Mapping[str, Any], target: str, key: str, limit: int) -> int:
    value = fields.get(key)
    if type(value) is not int or not 0 <= value <= limit:
        raise UntrustedMetadata(f"{target}: expected {key} of 0 to {limit}, got {value!r}")
    return value


def _root(fields: Mapping[str, Any], target: str, key: str) -> str:
    value = fields.get(key)
    if not is_sha256(value):
        raise UntrustedMetadata(f"{target}: expected a SHA-256 as {key}, got {value!r}")
    return str(value)


def _version_key(version: str) -> tuple[int, ...]:
    """Order versions by their leading numbers; "0.2.0.dev1" counts as 0.2.0."""
    match = _AGENT_VERSION.match(version)
    numbers = [int(part) for part in match.group().split(".")] if match else []
    return tuple(numbers + [0] * (4 - len(numbers)))
