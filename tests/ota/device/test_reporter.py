"""The device's reports: numbers that are never used twice, and no end without its report."""

import json
import os
import stat
import subprocess
import sys

import pytest

from ota.device import reporter
from ota.device.reporter import MAX_REPORTS, device_signer, report_all
from ota.errors import ConfigError
from ota.reports import is_signed_by, parse_report
from ota.storage import Disk

FACTS = {"agent_version": "1", "model": {"name": "tiny", "version": "1.0.0", "root": "ab"}}


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "ota").mkdir()
    return tmp_path / "ota"


def end(directory, name, **fields):
    with (directory / "history.jsonl").open("a") as file:
        file.write(json.dumps({"id": name, "type": "update_committed", **fields}) + "\n")


def ring(directory):
    lines = (directory / "reports.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def bodies(directory):
    return [parse_report(json.dumps(line["envelope"]).encode())[1].body for line in ring(directory)]


def test_each_end_has_one_report_in_its_order(directory):
    for name in "abc":
        end(directory, name)
    assert report_all(directory, "n1", FACTS) == 3
    assert report_all(directory, "n1", FACTS) == 0
    end(directory, "d", code="x")
    assert report_all(directory, "n1", FACTS) == 1
    found = bodies(directory)
    assert [(body["seq"], body["previous"], body["end"]["id"]) for body in found] == [
        (1, 0, "a"), (2, 1, "b"), (3, 2, "c"), (4, 3, "d")
    ]  # fmt: skip
    assert found[0]["model"] == FACTS["model"] and found[0]["node"] == "n1"
    public = (directory / "device.pub").read_text().strip()
    for line in ring(directory):
        assert is_signed_by(parse_report(json.dumps(line["envelope"]).encode())[0], public)


def test_the_key_is_the_owners_alone_and_stays(directory):
    first = device_signer(directory).public_key.keyid
    assert stat.S_IMODE((directory / "device.key").stat().st_mode) == 0o600
    assert device_signer(directory).public_key.keyid == first


def test_a_key_that_is_none_is_said(directory):
    (directory / "device.key").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"device\.key: expected an Ed25519 key"):
        device_signer(directory)


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("cut_at", range(1, 5))
def test_a_power_cut_burns_a_number_at_most_and_loses_no_end(directory, monkeypatch, cut_at):
    """Cut at each replacement of a file; the number is on the disk before its report."""
    end(directory, "a")
    report_all(directory, "n1", FACTS)
    end(directory, "b")
    end(directory, "c")
    calls, replace = [0], Disk.replace

    def cut(self, path, data):
        calls[0] += 1
        if calls[0] == cut_at:
            raise PowerCut
        replace(self, path, data)

    monkeypatch.setattr(Disk, "replace", cut)
    with pytest.raises(PowerCut):
        report_all(directory, "n1", FACTS)
    monkeypatch.undo()
    before = {body["seq"]: body["end"]["id"] for body in bodies(directory)}
    report_all(directory, "n1", FACTS)
    found = bodies(directory)
    assert [body["end"]["id"] for body in found] == ["a", "b", "c"]
    assert before.items() <= {body["seq"]: body["end"]["id"] for body in found}.items()
    assert [body["previous"] for body in found] == [0, *(body["seq"] for body in found[:-1])]


def test_a_torn_line_and_a_lost_ring_cost_no_number_twice(directory):
    end(directory, "a")
    report_all(directory, "n1", FACTS)
    with (directory / "history.jsonl").open("a") as file:
        file.write('{"id": "torn", "ty\n')
    (directory / "reports.jsonl").unlink()
    end(directory, "b")
    assert report_all(directory, "n1", FACTS) == 2
    assert [body["seq"] for body in bodies(directory)] == [2, 3]


def test_the_ring_is_bounded(directory):
    for number in range(MAX_REPORTS + 5):
        end(directory, f"e{number}")
        report_all(directory, "n1", FACTS)
    found = bodies(directory)
    assert len(found) == MAX_REPORTS
    assert found[-1]["seq"] == MAX_REPORTS + 5
    assert report_all(directory, "n1", FACTS) == 0


def test_the_process_takes_facts_and_answers(directory):
    end(directory, "a")
    command = [sys.executable, "-m", "ota.device.reporter", "--state-dir", str(directory.parent)]
    done = subprocess.run(
        [*command, "--node", "n1"], input=json.dumps(FACTS), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"signed": 1}
    (directory / "device.key").write_text("nonsense")
    end(directory, "b")
    failed = subprocess.run(
        [*command, "--node", "n1"], input="{}", capture_output=True, text=True, check=False
    )
    assert failed.returncode == os.EX_CONFIG
    assert failed.stderr.count("\n") == 1 and "device.key" in failed.stderr


def test_the_agent_knows_the_same_files():
    from edgeagent import device_reports

    assert device_reports.RING == reporter.RING
