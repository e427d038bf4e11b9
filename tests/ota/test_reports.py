"""Signed reports: what is signed is what is read, and nothing else is believed."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer._crypto_signer import CryptoSigner

from ota.reports import (
    MAX_REPORT_BYTES,
    NotAReport,
    is_signed_by,
    parse_report,
    public_key,
    sign_report,
)

SIGNER = CryptoSigner.generate_ed25519()
PUBLIC = SIGNER.public_key.keyval["public"]
FIELDS = {"node": "n1", "seq": 3, "previous": 2, "end": {"type": "update_committed"}}


def envelope(signer=SIGNER, **changes):
    return sign_report(FIELDS | changes, signer)


def data(fields):
    return json.dumps(fields).encode()


def test_a_report_says_what_was_signed():
    opened, report = parse_report(data(envelope()))
    assert (report.node, report.seq, report.previous, report.public) == ("n1", 3, 2, PUBLIC)
    assert report.body["end"] == {"type": "update_committed"}
    assert is_signed_by(opened, PUBLIC)
    other = CryptoSigner.generate_ed25519().public_key.keyval["public"]
    assert not is_signed_by(opened, other)
    assert not is_signed_by(opened, "zz")


def test_the_signature_is_that_of_dsse():
    """Verified with nothing of ours, by https://github.com/secure-systems-lab/dsse protocol.md."""
    fields = envelope()
    payload = base64.b64decode(fields["payload"])
    kind = fields["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    [signature] = fields["signatures"]
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(PUBLIC))
    key.verify(base64.b64decode(signature["sig"]), signed)


def test_a_changed_byte_is_not_signed():
    fields = envelope()
    body = json.loads(base64.b64decode(fields["payload"]))
    body["end"]["type"] = "rolled_back"
    fields["payload"] = base64.b64encode(data(body)).decode()
    opened, report = parse_report(data(fields))
    assert report.body["end"]["type"] == "rolled_back"
    assert not is_signed_by(opened, PUBLIC)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"v": 2}, "expected version 1"),
        ({"node": 1}, "node and key"),
        ({"seq": 2}, "previous < seq"),
        ({"seq": True, "previous": 0}, "previous < seq"),
        ({"previous": -1}, "previous < seq"),
        ({"seq": 1 << 60}, "previous < seq"),
        ({"note": "x" * MAX_REPORT_BYTES}, "expected up to"),
    ],
)
def test_what_is_no_report_is_refused_with_a_line(changes, line):
    with pytest.raises(NotAReport, match=line):
        parse_report(data(envelope(**changes)))


def test_another_payload_is_no_report():
    with pytest.raises(NotAReport, match="expected a payload"):
        parse_report(data(envelope() | {"payloadType": "text/plain"}))


@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(
        st.sampled_from(["payload", "payloadType", "signatures", "sig", "keyid"]), each, max_size=5
    ),
    max_leaves=12,
).map(data))  # fmt: skip
def test_bytes_from_outside_are_read_or_refused(text):
    with pytest.raises(NotAReport):
        parse_report(text)


def test_a_key_is_32_bytes_of_hex():
    assert public_key(PUBLIC).keyid == SIGNER.public_key.keyid
    for wrong in ("", "00", PUBLIC[:-1], PUBLIC + "00", "zz" * 32):
        with pytest.raises(ValueError):
            public_key(wrong)
