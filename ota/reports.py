"""Signed reports of what became of an update: bytes, signature, and what they say.  No I/O.

A report is a DSSE envelope (github.com/secure-systems-lab/dsse, protocol version 1), so what is
signed are bytes and nothing has to be brought into a canonical form.  Its payload is JSON; the
fields are in ``docs/protocol.md`` section 6.  ``seq`` grows by one with each report of a device and
is never used twice; ``previous`` names the report before, so that a number lost to a power cut is
no gap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer._crypto_signer import CryptoSigner
from securesystemslib.signer._key import SSlibKey

PAYLOAD_TYPE = "application/vnd.edgeagent.report+json"
VERSION = 1
MAX_REPORT_BYTES = 1 << 14  # ten times the largest that a device makes
MAX_SEQ = (1 << 53) - 1  # what every JSON reader keeps exactly
PUBLIC_HEX_CHARS = 64


class NotAReport(Exception):
    """These bytes are no report; the line says why."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a device says.

    Attributes:
        node: its name.
        seq: of this report, from 1.
        previous: ``seq`` of the one before; 0 for the first.
        public: the key in hex that it says it signs with.
        body: all fields.
    """

    node: str
    seq: int
    previous: int
    public: str
    body: dict[str, Any]


def public_key(public: str) -> SSlibKey:
    """Return the key of 64 hex digits.

    Raises:
        ValueError: it is something else.
    """
    data = bytes.fromhex(public)
    if len(public) != PUBLIC_HEX_CHARS or len(data) != PUBLIC_HEX_CHARS // 2:
        raise ValueError(f"expected an Ed25519 key in {PUBLIC_HEX_CHARS} hex digits")
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(data))


def sign_report(fields: Mapping[str, Any], signer: CryptoSigner) -> dict[str, Any]:
    """Return the envelope of a report, JSON-ready; the key is added to its fields."""
    body = {"v": VERSION, **fields, "key": signer.public_key.keyval["public"]}
    envelope = Envelope(json.dumps(body, ensure_ascii=False).encode(), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return envelope.to_dict()


def parse_report(data: bytes) -> tuple[Envelope, Report]:
    """Read an envelope and its payload; nothing is verified yet.

    Raises:
        NotAReport: it is none, or one of a version that we do not know.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise NotAReport(f"expected up to {MAX_REPORT_BYTES} bytes, got {len(data)}")
    try:
        envelope = Envelope.from_dict(json.loads(data))
        body = json.loads(envelope.payload)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise NotAReport(f"no envelope: {type(err).__name__}") from err
    if envelope.payload_type != PAYLOAD_TYPE or not isinstance(body, dict):
        raise NotAReport(f"expected a payload of {PAYLOAD_TYPE}")
    if body.get("v") != VERSION:
        raise NotAReport(f"expected version {VERSION}, got {str(body.get('v'))[:20]}")
    node, public = body.get("node"), body.get("key")
    seq, previous = body.get("seq"), body.get("previous")
    if not isinstance(node, str) or not isinstance(public, str):
        raise NotAReport("expected node and key to be texts")
    if type(seq) is not int or type(previous) is not int or not 0 <= previous < seq <= MAX_SEQ:
        raise NotAReport("expected 0 <= previous < seq")
    return envelope, Report(node, seq, previous, public, body)


def is_signed_by(envelope: Envelope, public: str) -> bool:
    """Say whether the key of ``public`` (hex) signed it."""
    try:
        envelope.verify([public_key(public)], 1)
    except (VerificationError, ValueError):
        return False
    return True
