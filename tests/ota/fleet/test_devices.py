"""What an operator believes of what devices say."""

import json

import pytest
from securesystemslib.signer._crypto_signer import CryptoSigner

from ota.errors import ConfigError
from ota.fleet.devices import REMEMBERED, Devices, Kind
from ota.reports import sign_report

SIGNER, OTHER = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
PUBLIC = SIGNER.public_key.keyval["public"]


def report(seq, previous=None, signer=SIGNER, node="n1", **end):
    before = seq - 1 if previous is None else previous
    fields = {"node": node, "seq": seq, "previous": before, "end": end}
    return json.dumps(sign_report(fields, signer)).encode()


@pytest.fixture
def devices(tmp_path):
    devices = Devices(tmp_path)
    devices.enroll("n1", PUBLIC)
    return devices


def kinds(devices, *reports, node="n1"):
    return [devices.judge(node, each).kind for each in reports]


def test_reports_in_order_are_good(devices):
    assert kinds(devices, report(1), report(2), report(3)) == [Kind.GOOD] * 3
    assert devices.known["n1"].last_seq == 3


def test_a_number_lost_to_a_power_cut_is_no_gap_and_a_missing_report_is_one(devices):
    assert kinds(devices, report(1), report(3, 1)) == [Kind.GOOD] * 2
    judged = devices.judge("n1", report(6, 5))
    assert judged.kind is Kind.GAP and "after 3 up to 5" in judged.why
    assert kinds(devices, report(5), report(5)) == [Kind.LATE, Kind.AGAIN]


def test_one_number_for_two_reports_is_a_copied_disk(devices):
    kinds(devices, report(1), report(2, type="update_committed"))
    assert kinds(devices, report(2, type="rolled_back")) == [Kind.REPEATED]
    assert kinds(devices, report(2, type="update_committed")) == [Kind.AGAIN]


def test_only_the_enrolled_key_and_the_own_topic_are_believed(devices):
    assert kinds(devices, report(1, signer=OTHER)) == [Kind.FORGED]
    assert kinds(devices, report(1), node="n2") == [Kind.BROKEN]
    assert kinds(devices, report(1, node="n2"), node="n2") == [Kind.UNKNOWN]
    assert kinds(devices, b"nonsense") == [Kind.BROKEN]
    assert not any(kind.is_believed for kind in (Kind.FORGED, Kind.UNKNOWN, Kind.BROKEN))
    assert devices.known["n1"].last_seq == 0


def test_the_first_key_can_be_trusted_and_is_kept(devices):
    assert devices.judge("n2", report(1, node="n2"), trust_new=True).kind is Kind.GOOD
    forged = report(2, node="n2", signer=OTHER)
    assert devices.judge("n2", forged, trust_new=True).kind is Kind.FORGED


def test_the_list_is_kept_and_bounded(tmp_path, devices):
    for seq in range(1, REMEMBERED + 10):
        devices.judge("n1", report(seq))
    devices.save()
    again = Devices(tmp_path)
    assert len(again.known["n1"].seen) == REMEMBERED
    assert kinds(again, report(REMEMBERED + 9), report(REMEMBERED + 10)) == [Kind.AGAIN, Kind.GOOD]


def test_another_key_needs_a_word_first(devices):
    devices.enroll("n1", PUBLIC)
    with pytest.raises(ConfigError, match="device-forget"):
        devices.enroll("n1", OTHER.public_key.keyval["public"])
    devices.forget("n1")
    with pytest.raises(ConfigError, match="expected an enrolled device"):
        devices.forget("n1")
    with pytest.raises(ConfigError, match="64 hex digits"):
        devices.enroll("n1", "00")


def test_a_damaged_list_is_said(tmp_path):
    (tmp_path / "devices.json").write_text('{"devices": {"n1": 3}}')
    with pytest.raises(ConfigError, match=r"devices\.json: expected"):
        Devices(tmp_path)
