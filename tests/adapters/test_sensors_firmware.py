"""The replies are in the forms that vcgencmd documents; none was recorded on hardware."""

import struct

import pytest

from edgeagent.adapters.sensors import Sensors, firmware
from edgeagent.errors import AdapterError
from tests.sysroots import boards

PMIC = """\
   3V7_WL_SW_A current(0)=0.09368544A
     3V3_SYS_A current(1)=0.08880704A
    VDD_CORE_A current(7)=2.50000000A
   3V7_WL_SW_V volt(8)=3.71265100V
     3V3_SYS_V volt(9)=3.31133000V
    VDD_CORE_V volt(15)=0.80000000V
       EXT5V_V volt(24)=5.14000000V
        BATT_V volt(25)=0.00000000V"""
PMIC_W = 0.09368544 * 3.712651 + 0.08880704 * 3.31133 + 2.5 * 0.8


class PlayedFirmware:
    """A firmware that knows some commands and refuses the others as a real one does."""

    def __init__(self, **replies):
        self.replies = replies
        self.asked = []

    def ask(self, command):
        self.asked.append(command)
        reply = self.replies.get(command, 'error=1 error_msg="Command not registered"')
        if isinstance(reply, Exception):
            raise reply
        return reply


def test_a_message_is_laid_out_as_the_driver_expects():
    message = firmware.pack("get_throttled")
    words = struct.unpack_from("=6I", message)
    assert words == (len(message), 0, 0x00030080, 4096, 0, 0)
    assert len(message) == 6 * 4 + 4096 + 4
    assert message[24:38] == b"get_throttled\0"


def test_the_reply_is_the_text_up_to_its_end():
    message = bytearray(firmware.pack("get_throttled"))
    message[24:] = b"throttled=0x0\0rubbish".ljust(len(message) - 24, b"\0")
    assert firmware.unpack(message) == "throttled=0x0"


def test_an_error_of_the_firmware_is_raised():
    message = bytearray(firmware.pack("x"))
    struct.pack_into("=I", message, 20, 7)
    with pytest.raises(AdapterError, match="error 7"):
        firmware.unpack(message)


def test_a_command_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="fewer than 4096"):
        firmware.pack("x" * 4096)


def test_throttled_bits_are_hexadecimal():
    assert firmware.parse_throttled("throttled=0x50005") == 0x50005


@pytest.mark.parametrize("reply", ["", "throttled=", "temp=48.2'C", 'error=1 error_msg="no"'])
def test_other_replies_are_not_throttled_bits(reply):
    with pytest.raises(ValueError):
        firmware.parse_throttled(reply)


def test_pmic_rails_need_volts_and_amperes():
    assert firmware.parse_pmic_w(PMIC) == pytest.approx(PMIC_W)


@pytest.mark.parametrize("reply", ["", "EXT5V_V volt(24)=5.14000000V", 'error=1 error_msg="no"'])
def test_a_reply_without_pairs_is_not_a_power(reply):
    with pytest.raises(ValueError, match="pairs"):
        firmware.parse_pmic_w(reply)


def test_a_pi_5_reports_its_pmic_as_rails_and_its_throttling(tmp_path):
    played = PlayedFirmware(get_throttled="throttled=0x50005", pmic_read_adc=PMIC)
    sample = Sensors(boards.raspberry_pi_5(tmp_path), firmware=played).read(1.0)
    assert sample.power_w == pytest.approx(PMIC_W)
    assert sample.sources["power_w"] == "rail: firmware PMIC rails"
    assert sample.throttled is True
    assert sample.sources["throttled"] == "measured: firmware get_throttled"
    assert sample.sources["undervoltage"] == "measured: hwmon rpi_volt"


def test_a_pi_4_has_no_pmic_and_is_not_asked_again(tmp_path):
    played = PlayedFirmware(get_throttled="throttled=0x50000")
    sensors = Sensors(boards.raspberry_pi_4(tmp_path), firmware=played)
    sample = sensors.read(1.0)
    assert sample.power_w is None
    assert sample.throttled is False  # only the bits of the past are set
    sensors.read(2.0)
    assert played.asked.count("pmic_read_adc") == 1


def test_without_hwmon_the_firmware_tells_the_under_voltage(tmp_path):
    played = PlayedFirmware(get_throttled="throttled=0x1")
    assert Sensors(tmp_path, firmware=played).read(1.0).undervoltage is True


def test_a_firmware_that_may_not_be_asked_is_absent_with_advice(tmp_path):
    played = PlayedFirmware(get_throttled=PermissionError())
    sample = Sensors(tmp_path, firmware=played).read(1.0)
    assert sample.throttled is None
    assert "video" in sample.absent["throttled"]


def test_a_plain_file_in_the_place_of_the_node_is_not_opened(tmp_path):
    boards.put(tmp_path, {firmware.NODE: "not a device"})
    assert Sensors(tmp_path).describe() == []


def test_the_node_that_can_write_the_boards_fuses_is_never_named():
    assert firmware.NODE == "/dev/vcio_gencmd"


def test_a_node_that_is_not_the_firmware_fails_as_an_os_error(tmp_path):
    gencmd = firmware.Gencmd(tmp_path / "nothing")
    with pytest.raises(OSError):
        gencmd.ask("get_throttled")
    gencmd.close()
    other = firmware.Gencmd("/dev/null")
    with pytest.raises(OSError, match="ioctl"):
        other.ask("get_throttled")
    other.close()
