"""The Raspberry Pi's firmware, asked through ``/dev/vcio_gencmd``.

This node passes one kind of message, the text command of ``vcgencmd``, and nothing else.  Its
sibling ``/dev/vcio`` passes every message, writing one-time-programmable memory included: it is
never opened here.

A message is 32-bit words: [total bytes, 0, tag, buffer bytes, 0, error, text padded to the buffer,
0].  The firmware overwrites the error and the text.

Not run on hardware: the layout of the message and the forms of the replies are from the kernel's
vcio driver and from vcgencmd; the tests play the device.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
from pathlib import Path
from typing import Protocol

from edgeagent.adapters.sensors.candidate import Candidate, plausible_w
from edgeagent.adapters.sensors.sysfs import Sysfs
from edgeagent.errors import AdapterError
from edgeagent.power.samples import MEASURED, RAIL

NODE = "/dev/vcio_gencmd"
RANK_PMIC = 30

_TAG_GENCMD = 0x00030080
_TEXT_BYTES = 4096
_HEAD = struct.Struct("=6I")
_TAIL = struct.Struct("=I")
_MESSAGE_BYTES = _HEAD.size + _TEXT_BYTES + _TAIL.size

# _IOWR(100, 0, char *): direction read and write, size of a pointer, type 100, number 0.
_REQUEST = (3 << 30) | (struct.calcsize("P") << 16) | (100 << 8)

# Bits of get_throttled that say "now"; the same ones shifted by 16 say "since boot", but the
# kernel's own driver clears those.
_UNDERVOLTAGE = 1 << 0
_SLOWED = 1 << 1 | 1 << 2 | 1 << 3  # frequency capped, throttled, soft temperature limit

_RAIL_LINE = re.compile(r"\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([0-9.]+)[AV]\s*")


class Firmware(Protocol):
    """Something that answers the firmware's text commands."""

    def ask(self, command: str) -> str:
        """Return the reply to ``command``; raises OSError or AdapterError."""


class Gencmd:
    """The firmware behind a device node, opened at the first question."""

    def __init__(self, node: Path) -> None:
        self._node = node
        self._fd = -1

    def ask(self, command: str) -> str:
        """Return the firmware's reply to ``command``."""
        if self._fd < 0:
            self._fd = os.open(self._node, os.O_RDWR | os.O_CLOEXEC)
        message = bytearray(pack(command))
        fcntl.ioctl(self._fd, _REQUEST, message, True)
        return unpack(message)

    def close(self) -> None:
        """Close the node; a later question opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def pack(command: str) -> bytes:
    """Return the message that carries ``command``."""
    text = command.encode("ascii")
    if len(text) >= _TEXT_BYTES:
        raise ValueError(f"command: expected fewer than {_TEXT_BYTES} bytes, got {len(text)}")
    head = _HEAD.pack(_MESSAGE_BYTES, 0, _TAG_GENCMD, _TEXT_BYTES, 0, 0)
    return head + text.ljust(_TEXT_BYTES, b"\0") + _TAIL.pack(0)


def unpack(message: bytes | bytearray) -> str:
    """Return the text of an answered message."""
    error = _HEAD.unpack_from(message)[5]
    text = bytes(message[_HEAD.size : _HEAD.size + _TEXT_BYTES]).split(b"\0", 1)[0]
    if error:
        raise AdapterError(f"firmware: error {error} for a text command")
    return text.decode("ascii", "replace").strip()


def parse_throttled(reply: str) -> int:
    """Return the bits of a ``get_throttled`` reply, ``throttled=0x50005``."""
    name, _, bits = reply.partition("=")
    if name != "throttled":
        raise ValueError(f"get_throttled: expected 'throttled=0x...', got {reply!r}")
    return int(bits, 16)


def parse_pmic_w(reply: str) -> float:
    """Return the sum over the rails of a ``pmic_read_adc`` reply of volts times amperes.

    Rails with a voltage but no current (the 5 V input, the clock's battery) do not count: what the
    5 V pins, USB and the PCIe connector take is not in the sum.
    """
    rails: dict[str, dict[str, float]] = {}
    for line in reply.splitlines():
        match = _RAIL_LINE.fullmatch(line)
        if match:
            rails.setdefault(match[1], {})[match[2]] = float(match[3])
    complete = [rail for rail in rails.values() if len(rail) == 2]
    if not complete:
        raise ValueError(f"pmic_read_adc: expected pairs of _A and _V lines, got {reply[:40]!r}")
    return sum(rail["A"] * rail["V"] for rail in complete)


def probe(fs: Sysfs, firmware: Firmware | None) -> list[Candidate]:
    """Return what the firmware answers; nothing when there is no node."""
    if firmware is None:
        node = fs.real(NODE)
        if not _is_device(node):
            return []
        firmware = Gencmd(node)
    return _candidates(firmware)


def _is_device(node: Path) -> bool:
    try:
        return stat.S_ISCHR(node.stat().st_mode)
    except OSError:
        return False


def _candidates(firmware: Firmware) -> list[Candidate]:
    def bits() -> int:
        return parse_throttled(firmware.ask("get_throttled"))

    def watts(_now_s: float) -> float:
        return plausible_w("the PMIC", parse_pmic_w(firmware.ask("pmic_read_adc")))

    name = "firmware get_throttled"
    found = [
        Candidate("throttled", name, NODE, MEASURED, 0, lambda _now_s: bool(bits() & _SLOWED)),
        Candidate(
            "undervoltage", name, NODE, MEASURED, 1, lambda _now_s: bool(bits() & _UNDERVOLTAGE)
        ),
    ]
    problem = ""
    try:
        bits()
    except PermissionError:
        problem = f"permission denied: add the agent's user to the group of {NODE} (video)"
    except (OSError, ValueError, AdapterError) as err:
        problem = str(err)
    for candidate in found:
        candidate.problem = problem
    if not problem and _has_pmic(firmware):  # Pi 5; older boards answer with an error
        name = "firmware PMIC rails"
        found.append(Candidate("power_w", name, NODE, RAIL, RANK_PMIC, watts))
    return found


def _has_pmic(firmware: Firmware) -> bool:
    try:
        parse_pmic_w(firmware.ask("pmic_read_adc"))
    except (OSError, ValueError, AdapterError):
        return False
    return True
