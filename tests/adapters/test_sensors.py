"""The boards are built by tests/sysroots/boards.py from documentation, not recorded on hardware."""

import errno
import time
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeagent.adapters.sensors import REPROBE_S, Sensors, Sysfs
from edgeagent.adapters.sensors.cooling import slowed_ms
from edgeagent.power.meter import EnergyMeter
from edgeagent.power.samples import QUANTITIES
from tests.sysroots import boards

PACKAGE = "/sys/class/powercap/intel-rapl:0/energy_uj"


def reasons(sensors, quantity):
    """Return source -> why it is not used (None for the one that is)."""
    return {r["source"]: r["reason"] for r in sensors.describe() if r["quantity"] == quantity}


# --- boards


def test_a_pi_4_has_a_temperature_and_an_alarm_but_no_power_sensor(tmp_path):
    sample = Sensors(boards.raspberry_pi_4(tmp_path)).read(1.0)
    assert sample.temperature_c == pytest.approx(48.212)
    assert sample.sources["temperature_c"] == "measured: thermal cpu-thermal"
    assert sample.undervoltage is False
    assert sample.throttled is False
    assert sample.power_w is None
    assert sample.absent["power_w"] == "no power sensor found: no hwmon meter, no RAPL, no battery"


def test_a_pi_5_says_that_its_voltage_is_low_and_ignores_the_other_chips_temperature(tmp_path):
    sensors = Sensors(boards.raspberry_pi_5(tmp_path))
    sample = sensors.read(1.0)
    assert sample.temperature_c == pytest.approx(61.75)
    assert sample.undervoltage is True
    assert reasons(sensors, "temperature_c") == {
        "thermal cpu-thermal": None,
        "hwmon cpu_thermal": "thermal cpu-thermal is preferred",
        "hwmon rp1_adc": "is not the processor's temperature",
    }


def test_an_orin_nano_takes_the_rail_that_carries_everything(tmp_path):
    sensors = Sensors(boards.jetson_orin_nano(tmp_path))
    sample = sensors.read(1.0)
    assert sample.power_w == pytest.approx(5.032 * 1.216)
    assert sample.sources["power_w"] == "measured: hwmon ina3221 VDD_IN"
    assert sample.temperature_c == pytest.approx(47.0)
    assert sample.throttled is True
    assert sample.throttled_s == pytest.approx(1.25)
    assert reasons(sensors, "power_w")["hwmon ina3221 VDD_SOC"] == "is part of VDD_IN"


def test_an_agx_orin_sums_its_connected_rails_over_both_chips(tmp_path):
    sample = Sensors(boards.jetson_agx_orin(tmp_path)).read(1.0)
    assert sample.power_w == pytest.approx(4.0 + 2.0 + 4.0 + 1.0)
    assert sample.sources["power_w"] == (
        "rail: hwmon ina3221 VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0+VDDQ_VDD2_1V8AO"
    )


def test_an_intel_laptop_counts_joules_and_derives_its_power_from_them(tmp_path):
    root = boards.intel_laptop(tmp_path)
    sensors = Sensors(root)
    first = sensors.read(10.0)
    boards.put(root, {PACKAGE: 13_000_000})
    second = sensors.read(11.0)
    assert second.energy_j - first.energy_j == pytest.approx(12.0)
    assert second.power_w == pytest.approx(12.0)
    assert second.sources["energy_j"] == second.sources["power_w"] == "rail: rapl package-0"
    assert second.temperature_c == pytest.approx(56.0)
    assert second.sources["temperature_c"] == "measured: thermal x86_pkg_temp"
    assert reasons(sensors, "energy_j") == {
        "rapl package-0": None,
        "rapl psys": "is not a CPU package; what it includes differs between machines",
        "hwmon i915": "is not known to measure the board or its processor",
    }


def test_until_the_counter_was_read_twice_a_discharging_battery_tells_the_power(tmp_path):
    sample = Sensors(boards.intel_laptop(tmp_path)).read(10.0)
    assert sample.power_w == pytest.approx(7.6)
    assert sample.sources["power_w"] == "battery: power_supply BAT0"


def test_a_register_that_wraps_keeps_counting(tmp_path):
    root = boards.intel_laptop(tmp_path)
    range_uj = 262_143_328_850
    boards.put(root, {PACKAGE: range_uj - 1_000_000})
    sensors, meter = Sensors(root), EnergyMeter()
    meter.add(sensors.read(0.0))
    boards.put(root, {PACKAGE: 2_000_000})
    meter.add(sensors.read(1.0))
    assert meter.energy_between(0.0, 1.0).joules == pytest.approx(3.0)


def test_a_probe_in_between_does_not_lose_joules(tmp_path):
    root = boards.intel_laptop(tmp_path)
    sensors = Sensors(root)
    first = sensors.read(0.0)
    sensors.probe()
    boards.put(root, {PACKAGE: 4_000_000})
    assert sensors.read(1.0).energy_j - first.energy_j == pytest.approx(3.0)


def test_two_sockets_are_one_sum_and_the_true_die_temperature_is_taken(tmp_path):
    sample = Sensors(boards.amd_server(tmp_path)).read(1.0)
    assert sample.energy_j == pytest.approx(20.0)
    assert sample.sources["energy_j"] == "rail: rapl package-0+package-1"
    assert sample.temperature_c == pytest.approx(52.5)


def test_a_virtual_machine_has_nothing_and_says_why_for_every_quantity(tmp_path):
    sensors = Sensors(boards.virtual_machine(tmp_path))
    sample = sensors.read(1.0)
    assert all(getattr(sample, quantity) is None for quantity in QUANTITIES)
    assert set(sample.absent) == set(QUANTITIES)
    assert sample.sources == {}
    assert sensors.describe() == []


@pytest.mark.parametrize(
    "board",
    [
        boards.raspberry_pi_4,
        boards.raspberry_pi_5,
        boards.jetson_orin_nano,
        boards.jetson_agx_orin,
        boards.intel_laptop,
        boards.amd_server,
        boards.virtual_machine,
    ],
)
def test_every_quantity_has_either_a_source_or_a_reason_in_one_line(board, tmp_path):
    sample = Sensors(board(tmp_path)).read(1.0)
    assert set(sample.sources) | set(sample.absent) == set(QUANTITIES)
    for quantity in QUANTITIES:
        assert (getattr(sample, quantity) is None) == (quantity in sample.absent)
        assert (quantity in sample.sources) != (quantity in sample.absent)
    assert all(reason and "\n" not in reason for reason in sample.absent.values())


def test_this_machine_can_be_read_whatever_it_is():
    sample = Sensors().read(1.0)
    assert set(sample.sources) | set(sample.absent) == set(QUANTITIES)


# --- what goes wrong


def test_rapl_that_only_root_may_read_is_absent_with_advice(tmp_path):
    root = boards.intel_laptop(tmp_path)
    sensors = Sensors(sysfs=boards.PlayedSysfs(root, {PACKAGE: errno.EACCES}))
    sample = sensors.read(1.0)
    assert sample.energy_j is None
    assert "permission denied" in sample.absent["energy_j"]
    assert "70-edgeagent.rules" in sample.absent["energy_j"]
    assert sample.sources["power_w"] == "battery: power_supply BAT0"


def test_a_gated_zone_is_passed_over_and_comes_back(tmp_path):
    root = boards.jetson_orin_nano(tmp_path)
    fs = boards.PlayedSysfs(root, {"/sys/class/thermal/thermal_zone0/temp": errno.EAGAIN})
    sensors = Sensors(sysfs=fs)
    assert sensors.read(1.0).sources["temperature_c"] == "measured: thermal soc0-thermal"
    fs.errors.clear()
    assert sensors.read(2.0).sources["temperature_c"] == "measured: thermal cpu-thermal"


@pytest.mark.parametrize("millidegrees", [-256_000, 200_000, "garbage", ""])
def test_a_temperature_that_cannot_be_is_never_reported(tmp_path, millidegrees):
    root = boards.raspberry_pi_4(tmp_path)
    zone, chip = "/sys/class/thermal/thermal_zone0/temp", "/sys/class/hwmon/hwmon0/temp1_input"
    boards.put(root, {zone: millidegrees})
    sensors = Sensors(root)
    assert sensors.read(1.0).sources["temperature_c"] == "measured: hwmon cpu_thermal"
    boards.put(root, {chip: millidegrees})
    sample = sensors.read(2.0)
    assert sample.temperature_c is None
    assert "cpu-thermal" in sample.absent["temperature_c"]


def test_a_sensor_that_vanishes_is_replaced_and_found_again_by_a_later_probe(tmp_path):
    root = boards.raspberry_pi_4(tmp_path)
    sensors = Sensors(root)
    assert sensors.read(0.0).temperature_c == pytest.approx(48.212)
    zone, moved = root / "sys/class/thermal/thermal_zone0", root / "sys/class/thermal/thermal_zone7"
    zone.rename(moved)
    assert sensors.read(1.0).sources["temperature_c"] == "measured: hwmon cpu_thermal"
    assert sensors.read(2.0).sources["temperature_c"] == "measured: hwmon cpu_thermal"
    later = sensors.read(REPROBE_S + 1.0)
    assert later.sources["temperature_c"] == "measured: thermal cpu-thermal"


def test_a_counter_that_went_unread_for_too_long_is_absent_once(tmp_path):
    sensors = Sensors(boards.intel_laptop(tmp_path))
    sensors.read(0.0)
    assert "unread" in sensors.read(10_000.0).absent["energy_j"]
    assert sensors.read(10_001.0).energy_j is not None


class ScrambledSysfs(Sysfs):
    """A board whose files say anything; the names of chips and zones are left as they are."""

    def __init__(self, sysroot, contents):
        super().__init__(sysroot)
        self.contents = contents

    def text(self, path):
        said = super().text(path)
        if path.endswith(("/type", "/name", "_label")) or not self.contents:
            return said
        return self.contents[zlib.crc32(path.encode()) % len(self.contents)]


CONTENTS = st.one_of(
    st.integers().map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.just("9" * 4096),
    st.sampled_from(["", "0", "-1", "nan", "state0\t5\nstate1", "\u00b2", "1e400"]),
    st.text(max_size=20),
)


@pytest.mark.parametrize("board", [boards.jetson_orin_nano, boards.intel_laptop])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=12))
def test_whatever_the_files_say_there_is_a_sample_or_a_reason(board, tmp_path, contents):
    if not any(tmp_path.iterdir()):
        board(tmp_path)
    sensors = Sensors(sysfs=ScrambledSysfs(tmp_path, contents))
    meter = EnergyMeter()
    for now_s in (0.0, 1.0, 100.0):
        sample = sensors.read(now_s)
        meter.add(sample)
        assert set(sample.sources) | set(sample.absent) == set(QUANTITIES)
        assert sample.power_w is None or 0 <= sample.power_w <= 2000
        assert sample.temperature_c is None or -40 <= sample.temperature_c <= 150
    energy = meter.energy_between(0.0, 100.0)
    assert (energy.joules is None) != (energy.reason is None)


def test_a_power_that_cannot_be_is_never_reported(tmp_path):
    root = boards.jetson_orin_nano(tmp_path)
    boards.put(root, {"/sys/class/hwmon/hwmon1/curr1_input": -2_000_000})
    sample = Sensors(root).read(1.0)
    assert sample.power_w is None
    assert "which cannot be" in sample.absent["power_w"]


# --- battery


@pytest.mark.parametrize("signed", [True, False])
def test_a_discharging_battery_feeds_the_board_whatever_sign_its_gauge_uses(tmp_path, signed):
    files = boards.battery("BAT0", status="Discharging", percent=40, signed=signed)
    sample = Sensors(boards.put(tmp_path, files)).read(1.0)
    assert sample.power_w == pytest.approx(7.6)
    assert sample.battery_w == pytest.approx(-7.6)
    assert (sample.battery_percent, sample.battery_status) == (40.0, "Discharging")


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_a_battery_that_does_not_discharge_says_nothing_about_the_board(tmp_path, status):
    files = boards.battery("BAT0", status=status, percent=99)
    sample = Sensors(boards.put(tmp_path, files)).read(1.0)
    assert sample.power_w is None
    assert status in sample.absent["power_w"]
    assert sample.battery_w == pytest.approx(7.6)


def test_a_gauge_in_microwatts_is_taken_as_it_is(tmp_path):
    files = boards.battery("BAT0", status="Discharging", percent=50)
    files["/sys/class/power_supply/BAT0/power_now"] = 9_100_000
    assert Sensors(boards.put(tmp_path, files)).read(1.0).power_w == pytest.approx(9.1)


def test_a_battery_without_a_gauge_still_says_how_full_it_is(tmp_path):
    supply = "/sys/class/power_supply/ups"
    files = {f"{supply}/type": "UPS", f"{supply}/capacity": 88, f"{supply}/status": "Full"}
    sample = Sensors(boards.put(tmp_path, files)).read(1.0)
    assert sample.battery_percent == 88.0
    assert "gauge" in sample.absent["battery_w"]


# --- other chips


def test_the_acpi_power_meter_is_the_whole_machine_and_averages_are_preferred(tmp_path):
    chip = "/sys/class/hwmon/hwmon0"
    files = {
        f"{chip}/name": "power_meter",
        f"{chip}/power1_average": 180_000_000,
        f"{chip}/power1_input": 1,
    }
    sample = Sensors(boards.put(tmp_path, files)).read(1.0)
    assert (sample.power_w, sample.sources["power_w"]) == (180.0, "measured: hwmon power_meter")


def test_a_rail_meter_is_used_and_a_graphics_card_is_not(tmp_path):
    files = {
        "/sys/class/hwmon/hwmon0/name": "amdgpu",
        "/sys/class/hwmon/hwmon0/power1_average": 9_000_000,
        "/sys/class/hwmon/hwmon1/name": "ina219",
        "/sys/class/hwmon/hwmon1/power1_input": 3_100_000,
    }
    sensors = Sensors(boards.put(tmp_path, files))
    sample = sensors.read(1.0)
    assert (sample.power_w, sample.sources["power_w"]) == (3.1, "rail: hwmon ina219")
    assert "not known to measure" in reasons(sensors, "power_w")["hwmon amdgpu"]


def test_amd_energy_counts_sockets_and_not_cores(tmp_path):
    chip = "/sys/class/hwmon/hwmon0"
    files = {
        f"{chip}/name": "amd_energy",
        f"{chip}/energy1_label": "Ecore000",
        f"{chip}/energy1_input": 1_000_000,
        f"{chip}/energy2_label": "Esocket0",
        f"{chip}/energy2_input": 7_000_000,
    }
    sample = Sensors(boards.put(tmp_path, files)).read(1.0)
    assert (sample.energy_j, sample.sources["energy_j"]) == (7.0, "rail: hwmon amd_energy sockets")


def test_time_in_states_counts_all_but_the_first():
    assert slowed_ms("state0\t500\nstate1\t20\nstate2\t3") == 23


def test_names_with_numbers_are_listed_in_order(tmp_path):
    boards.put(tmp_path, {f"/sys/x{n}": n for n in (10, 9, 1)})
    assert Sysfs(tmp_path).entries("/sys") == ["x1", "x9", "x10"]


def test_a_reading_takes_a_few_milliseconds_at_most(tmp_path):
    sensors = Sensors(boards.jetson_orin_nano(tmp_path))
    sensors.read(0.0)
    fastest_s = 1.0
    for n in range(20):
        start_s = time.perf_counter()
        sensors.read(float(n + 1))
        fastest_s = min(fastest_s, time.perf_counter() - start_s)
    assert fastest_s < 0.005
