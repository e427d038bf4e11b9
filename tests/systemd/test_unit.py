import fnmatch
import re
import subprocess

import pytest

from edgeagent.errors import EX_CONFIG, EX_USAGE
from tests.systemd.unitfile import SERVICE, SYSTEMD, parse

# What systemd-analyze 252 printed was 1.2; the promise is 1.5.  The tool takes tenths.
MAX_EXPOSURE_TENTHS = 15

UNIT = parse(SERVICE)
EXEC_START = "/opt/edgeagent/bin/edgeagent run"


@pytest.fixture
def startable(tmp_path):
    """The unit with one change: it starts /bin/true.  `verify` insists that the program exists."""
    text = SERVICE.read_text()
    assert text.count(f"ExecStart={EXEC_START}\n") == 1
    copy = tmp_path / SERVICE.name
    copy.write_text(text.replace(f"ExecStart={EXEC_START}", "ExecStart=/bin/true"))
    return copy


@pytest.mark.system
def test_systemd_finds_nothing_to_say_about_the_unit(startable, tool):
    command = [tool("systemd-analyze"), "verify", "--recursive-errors=no", str(startable)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.system
def test_the_exposure_is_at_most_what_we_promise(startable, tool):
    command = [tool("systemd-analyze"), "security", "--offline=yes", "--no-pager"]
    command += [f"--threshold={MAX_EXPOSURE_TENTHS}", str(startable)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure is not None
    assert float(exposure[1]) <= MAX_EXPOSURE_TENTHS / 10


# Keys that a later edit must not lose, with the value that matters.
REQUIRED = {
    "Type": "notify",
    "NotifyAccess": "main",
    "Restart": "on-failure",
    "User": "edgeagent",
    "KillMode": "mixed",
    "OOMPolicy": "continue",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "PrivateUsers": "yes",
    "PrivateTmp": "yes",
    "PrivateMounts": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHostname": "yes",
    "ProtectClock": "yes",
    "ProtectProc": "invisible",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "RemoveIPC": "yes",
    "KeyringMode": "private",
    "SystemCallArchitectures": "native",
    "SystemCallErrorNumber": "EPERM",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    "DevicePolicy": "closed",
    "IPAddressDeny": "any",
    "UMask": "0077",
    "LimitCORE": "0",
}


@pytest.mark.parametrize(("key", "value"), REQUIRED.items())
def test_a_lock_is_not_lost(key, value):
    assert UNIT["Service"][key] == [value]


@pytest.mark.parametrize("code", [EX_CONFIG, EX_USAGE])
def test_what_only_the_operator_can_mend_is_not_restarted(code):
    assert str(code) in UNIT["Service"]["RestartPreventExitStatus"][0].split()


def test_the_watchdog_is_on_and_a_slow_start_is_waited_for():
    assert UNIT["Service"]["WatchdogSec"] == ["30s"]
    assert UNIT["Service"]["TimeoutStartSec"] == ["180s"]


def test_a_missing_password_does_not_keep_the_service_from_starting():
    _, _, source = UNIT["Service"]["LoadCredential"][0].partition(":")
    assert source
    assert not source.startswith("/"), "an absolute path that is missing is fatal"


def test_the_system_calls_start_from_an_allow_list():
    first, *rest = UNIT["Service"]["SystemCallFilter"]
    assert first == "@system-service"
    assert rest == ["~@privileged @resources"]


def test_only_the_filtered_mailbox_of_the_firmware_is_open():
    assert UNIT["Service"]["DeviceAllow"] == ["/dev/vcio_gencmd rw"]


# Keys and values that systemd 249 or 252 would ignore, silently or with a warning.
TOO_NEW = {
    "OpenFile",
    "RestartSteps",
    "RestartMaxDelaySec",
    "ImportCredential",
    "MemoryPressureWatch",
    "FileDescriptorStorePreserve",
    "PrivatePIDs",
    "CoredumpReceive",
}


def test_every_key_is_known_to_the_oldest_systemd_we_run_on():
    assert not TOO_NEW & set(UNIT["Service"])
    assert UNIT["Service"]["ProtectControlGroups"] != ["strict"]


def test_every_group_that_is_named_is_made_where_it_is_missing():
    lines = (SYSTEMD / "edgeagent.sysusers.conf").read_text().splitlines()
    made = {line.split()[1] for line in lines if line and not line.startswith("#")}
    service = UNIT["Service"]
    assert {*service["User"], *service["Group"], *service["SupplementaryGroups"]} <= made


@pytest.mark.system
def test_sysusers_makes_the_user_below_a_root(tmp_path, tool):
    (tmp_path / "etc").mkdir()
    config = SYSTEMD / "edgeagent.sysusers.conf"
    command = [tool("systemd-sysusers"), f"--root={tmp_path}", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    passwd = (tmp_path / "etc/passwd").read_text()
    assert re.search(r"^edgeagent:.*:/var/lib/edgeagent:/usr/sbin/nologin$", passwd, re.M)


RULES = (SYSTEMD / "70-edgeagent.rules").read_text().replace("\\\n", "")


def test_the_udev_rule_opens_package_counters_to_the_group_only():
    (rule,) = [line for line in RULES.splitlines() if line and not line.startswith("#")]
    assert 'SUBSYSTEM=="powercap"' in rule
    assert 'RUN+="/bin/chgrp edgeagent /sys%p/energy_uj"' in rule
    assert 'RUN+="/bin/chmod 0440 /sys%p/energy_uj"' in rule


@pytest.mark.parametrize(
    ("zone", "is_opened"),
    [
        ("intel-rapl:0", True),
        ("intel-rapl:11", True),
        ("intel-rapl:0:0", False),
        ("intel-rapl", False),
        ("intel-rapl-mmio:0", False),
    ],
)
def test_the_udev_rule_matches_packages_and_not_their_parts(zone, is_opened):
    patterns = re.search(r'KERNEL=="([^"]+)"', RULES)[1].split("|")
    assert any(fnmatch.fnmatchcase(zone, pattern) for pattern in patterns) is is_opened
