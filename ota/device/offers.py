"""What is signed about the release that this device should have, read from the metadata."""

from __future__ import annotations

from collections.abc import Collection

from ota.device.tuf_client import Target, TufClient
from ota.errors import ReleaseRefused
from ota.trust import (
    Offer,
    Payload,
    channel_target,
    delta_target,
    full_target,
    parse_channel,
    parse_offer,
    parse_payload,
    release_target,
)


def read_offer(tuf: TufClient, name: str) -> tuple[Offer, str]:
    """Return the current release of a model, and the hash of its ``release.json``.

    Raises:
        ReleaseRefused: the repository has none.
        UntrustedMetadata: what is signed makes no sense.
    """
    channel = _required(tuf, channel_target(name))
    version = parse_channel(channel.custom, name)
    target = _required(tuf, release_target(name, version))
    return parse_offer(target.custom, name, version), target.sha256


def read_payloads(
    tuf: TufClient, offer: Offer, base_root: str, refused: Collection[str]
) -> list[Payload]:
    """Return the delta from ``base_root`` and the full image, less what was refused by hash."""
    names = (
        delta_target(offer.name, base_root, offer.root),
        full_target(offer.name, offer.version),
    )
    found = [(name, target) for name in names if (target := tuf.target(name)) is not None]
    payloads = [
        parse_payload(target.custom, name, target.length, target.sha256) for name, target in found
    ]
    return [payload for payload in payloads if payload.sha256 not in refused]


def _required(tuf: TufClient, name: str) -> Target:
    target = tuf.target(name)
    if target is None:
        raise ReleaseRefused(f"{name}: the repository has no such target; release it there")
    return target
