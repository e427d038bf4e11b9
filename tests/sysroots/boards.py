"""Boards to play: each function writes the part of /sys, /proc and /etc that the agent reads.

Constructed from documentation (kernel ABI documents, driver sources, vendors' pages), not recorded
on hardware.  Values are plausible, the names and units are the point.  Each board takes an empty
directory and returns it.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgeagent.adapters.sensors import Sysfs


class PlayedSysfs(Sysfs):
    """A board of which some files fail: path -> errno.  Works for root too, who may read all."""

    def __init__(self, sysroot: Path, errors: dict[str, int]) -> None:
        super().__init__(sysroot)
        self.errors = errors

    def text(self, path: str) -> str:
        if path in self.errors:
            raise OSError(self.errors[path], os.strerror(self.errors[path]), path)
        return super().text(path)


def put(root: Path, files: dict[str, object]) -> Path:
    """Write ``files`` (path on the board -> content) below ``root``."""
    for path, content in files.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return root


def meminfo(total_kib: int, available_kib: int) -> str:
    """Return the head of a /proc/meminfo."""
    rows = {"MemTotal": total_kib, "MemFree": available_kib, "MemAvailable": available_kib}
    return "\n".join(f"{name}:  {kib} kB" for name, kib in rows.items())


def cpufreq_cooler(
    number: int, *, state: int = 0, slowed_ms: int | None = None
) -> dict[str, object]:
    """Return a CPU frequency cooling device; ``slowed_ms`` needs statistics in the kernel."""
    device = f"/sys/class/thermal/cooling_device{number}"
    files: dict[str, object] = {
        f"{device}/type": f"cpufreq-cpu{number}",
        f"{device}/cur_state": state,
        f"{device}/max_state": 3,
    }
    if slowed_ms is not None:
        files[f"{device}/stats/time_in_state_ms"] = (
            f"state0\t900000\nstate1\t{slowed_ms}\nstate2\t0"
        )
    return files


def raspberry_pi_4(root: Path) -> Path:
    """A Pi 4: a thermal zone, the firmware's under-voltage alarm, and no power sensor at all."""
    return put(
        root,
        {
            "/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5\0",
            "/proc/sys/kernel/osrelease": "6.12.34+rpt-rpi-v8",
            "/proc/meminfo": meminfo(3_884_120, 3_100_400),
            "/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n",
            "/sys/devices/system/cpu/online": "0-3",
            "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids",  # no memory: Pi OS default
            "/sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "/sys/class/thermal/thermal_zone0/temp": 48212,
            "/sys/class/hwmon/hwmon0/name": "cpu_thermal",
            "/sys/class/hwmon/hwmon0/temp1_input": 48212,
            "/sys/class/hwmon/hwmon1/name": "rpi_volt",
            "/sys/class/hwmon/hwmon1/in0_lcrit_alarm": 0,
            **cpufreq_cooler(0),
        },
    )


def raspberry_pi_5(root: Path) -> Path:
    """A Pi 5: as a Pi 4, with a fan; its PMIC is behind the firmware, not in sysfs."""
    return put(
        root,
        {
            "/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "/proc/sys/kernel/osrelease": "6.12.34+rpt-rpi-2712",
            "/proc/meminfo": meminfo(8_255_568, 7_001_000),
            "/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd aes asimdhp cpuid asimddp\n",
            "/sys/devices/system/cpu/online": "0-3",
            "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids",
            "/sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "/sys/class/thermal/thermal_zone0/temp": 61750,
            "/sys/class/hwmon/hwmon0/name": "cpu_thermal",
            "/sys/class/hwmon/hwmon0/temp1_input": 61750,
            "/sys/class/hwmon/hwmon1/name": "rp1_adc",
            "/sys/class/hwmon/hwmon1/temp1_input": 52000,
            "/sys/class/hwmon/hwmon2/name": "pwmfan",
            "/sys/class/hwmon/hwmon2/fan1_input": 2900,
            "/sys/class/hwmon/hwmon2/pwm1": 75,
            "/sys/class/hwmon/hwmon3/name": "rpi_volt",
            "/sys/class/hwmon/hwmon3/in0_lcrit_alarm": 1,
            "/sys/class/thermal/cooling_device0/type": "pwm-fan",
            "/sys/class/thermal/cooling_device0/cur_state": 2,
            **cpufreq_cooler(1),
        },
    )


def jetson_orin_nano(root: Path) -> Path:
    """An Orin Nano: nine thermal zones, some gated, and an INA3221 with the total on VDD_IN."""
    zones = ["cpu", "gpu", "cv0", "cv1", "cv2", "soc0", "soc1", "soc2", "tj"]
    files: dict[str, object] = {
        "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit Super\0",
        "/proc/sys/kernel/osrelease": "5.15.148-tegra",
        "/proc/meminfo": meminfo(7_802_816, 6_110_000),
        "/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd aes asimdhp asimddp uscat\n",
        "/sys/devices/system/cpu/online": "0-5",
        "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids",
        "/sys/class/hwmon/hwmon1/name": "ina3221",
        **cpufreq_cooler(0, state=0, slowed_ms=1250),
        **cpufreq_cooler(1, state=2, slowed_ms=400),
    }
    for number, zone in enumerate(zones):
        files[f"/sys/class/thermal/thermal_zone{number}/type"] = f"{zone}-thermal"
        gated = zone in {"cv0", "cv1", "cv2"}
        files[f"/sys/class/thermal/thermal_zone{number}/temp"] = (
            -256000 if gated else 47000 + number
        )
    rails = {1: ("VDD_IN", 5032, 1216), 2: ("VDD_CPU_GPU_CV", 5032, 288), 3: ("VDD_SOC", 5024, 296)}
    for channel, (label, millivolts, milliamperes) in rails.items():
        files[f"/sys/class/hwmon/hwmon1/in{channel}_label"] = label
        files[f"/sys/class/hwmon/hwmon1/in{channel}_input"] = millivolts
        files[f"/sys/class/hwmon/hwmon1/curr{channel}_input"] = milliamperes
    files["/sys/class/hwmon/hwmon1/in7_label"] = "sum of shunt voltages"
    files["/sys/class/hwmon/hwmon1/in7_input"] = 3
    return put(root, files)


def jetson_agx_orin(root: Path) -> Path:
    """An AGX Orin: two INA3221, no total rail, one channel not connected."""
    files: dict[str, object] = {
        "/proc/device-tree/model": "Jetson AGX Orin Developer Kit\0",
        "/sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "/sys/class/thermal/thermal_zone0/temp": 44500,
        "/sys/class/hwmon/hwmon3/name": "ina3221",
        "/sys/class/hwmon/hwmon4/name": "ina3221",
    }
    rails = {
        ("hwmon3", 1): ("VDD_GPU_SOC", 20000, 200),
        ("hwmon3", 2): ("VDD_CPU_CV", 20000, 100),
        ("hwmon3", 3): ("VIN_SYS_5V0", 5000, 800),
        ("hwmon4", 1): ("NC", 0, 0),
        ("hwmon4", 2): ("VDDQ_VDD2_1V8AO", 5000, 200),
    }
    for (chip, channel), (label, millivolts, milliamperes) in rails.items():
        files[f"/sys/class/hwmon/{chip}/in{channel}_label"] = label
        files[f"/sys/class/hwmon/{chip}/in{channel}_input"] = millivolts
        files[f"/sys/class/hwmon/{chip}/curr{channel}_input"] = milliamperes
    return put(root, files)


def intel_laptop(root: Path) -> Path:
    """An Intel laptop: RAPL with package, core and psys, a battery, acpitz and a mouse."""
    powercap = "/sys/class/powercap"
    return put(
        root,
        {
            "/sys/class/dmi/id/sys_vendor": "LENOVO",
            "/sys/class/dmi/id/product_name": "21CB",
            "/sys/class/dmi/id/product_version": "ThinkPad X1 Carbon Gen 10",
            "/proc/sys/kernel/osrelease": "6.1.0-31-amd64",
            "/proc/meminfo": meminfo(16_000_000, 9_000_000),
            "/proc/cpuinfo": "processor\t: 0\nmodel name\t: 12th Gen Intel(R) Core(TM) i7-1260P\n"
            "flags\t\t: fpu sse2 ssse3 sse4_1 avx avx2 fma avx_vnni\n",
            "/sys/devices/system/cpu/online": "0-15",
            "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc",
            "/sys/class/thermal/thermal_zone0/type": "acpitz",
            "/sys/class/thermal/thermal_zone0/temp": 27800,
            "/sys/class/thermal/thermal_zone1/type": "iwlwifi_1",
            "/sys/class/thermal/thermal_zone1/temp": 41000,
            "/sys/class/thermal/thermal_zone2/type": "x86_pkg_temp",
            "/sys/class/thermal/thermal_zone2/temp": 56000,
            "/sys/class/thermal/cooling_device0/type": "Processor",
            "/sys/class/thermal/cooling_device0/cur_state": 0,
            "/sys/class/hwmon/hwmon5/name": "coretemp",
            "/sys/class/hwmon/hwmon5/temp1_label": "Package id 0",
            "/sys/class/hwmon/hwmon5/temp1_input": 56000,
            "/sys/class/hwmon/hwmon5/temp2_label": "Core 0",
            "/sys/class/hwmon/hwmon5/temp2_input": 54000,
            "/sys/class/hwmon/hwmon6/name": "i915",
            "/sys/class/hwmon/hwmon6/energy1_input": 555,
            f"{powercap}/intel-rapl:0/name": "package-0",
            f"{powercap}/intel-rapl:0/energy_uj": 1_000_000,
            f"{powercap}/intel-rapl:0/max_energy_range_uj": 262_143_328_850,
            f"{powercap}/intel-rapl:0:0/name": "core",
            f"{powercap}/intel-rapl:0:0/energy_uj": 500_000,
            f"{powercap}/intel-rapl:0:0/max_energy_range_uj": 262_143_328_850,
            f"{powercap}/intel-rapl:1/name": "psys",
            f"{powercap}/intel-rapl:1/energy_uj": 3_000_000,
            f"{powercap}/intel-rapl-mmio:0/name": "package-0",
            f"{powercap}/intel-rapl-mmio:0/energy_uj": 1_000_000,
            **battery("BAT0", status="Discharging", percent=71),
            "/sys/class/power_supply/AC/type": "Mains",
            "/sys/class/power_supply/AC/online": 0,
            "/sys/class/power_supply/hidpp_battery_0/type": "Battery",
            "/sys/class/power_supply/hidpp_battery_0/scope": "Device",
            "/sys/class/power_supply/hidpp_battery_0/capacity": 5,
        },
    )


def battery(name: str, *, status: str, percent: int, signed: bool = False) -> dict[str, object]:
    """Return a battery of 15.2 V with 0.5 A flowing; ``signed`` gauges say -0.5 A to discharge."""
    supply = f"/sys/class/power_supply/{name}"
    current_ua = -500_000 if signed and status == "Discharging" else 500_000
    return {
        f"{supply}/type": "Battery",
        f"{supply}/present": 1,
        f"{supply}/status": status,
        f"{supply}/capacity": percent,
        f"{supply}/voltage_now": 15_200_000,
        f"{supply}/current_now": current_ua,
    }


def amd_server(root: Path) -> Path:
    """A two-socket AMD machine: RAPL packages, k10temp with both temperatures."""
    files: dict[str, object] = {
        "/sys/class/dmi/id/sys_vendor": "Supermicro",
        "/sys/class/dmi/id/product_name": "AS -2024US-TRT",
        "/sys/class/hwmon/hwmon1/name": "k10temp",
        "/sys/class/hwmon/hwmon1/temp1_label": "Tctl",
        "/sys/class/hwmon/hwmon1/temp1_input": 72500,
        "/sys/class/hwmon/hwmon1/temp2_label": "Tdie",
        "/sys/class/hwmon/hwmon1/temp2_input": 52500,
    }
    for package in (0, 1):
        zone = f"/sys/class/powercap/intel-rapl:{package}"
        files[f"{zone}/name"] = f"package-{package}"
        files[f"{zone}/energy_uj"] = 10_000_000
        files[f"{zone}/max_energy_range_uj"] = 65_532_610_987
    return put(root, files)


def virtual_machine(root: Path) -> Path:
    """A virtual machine: no thermal zone, no hwmon, no powercap, nothing."""
    return put(
        root,
        {
            "/sys/class/dmi/id/sys_vendor": "QEMU",
            "/sys/class/dmi/id/product_name": "Standard PC (Q35 + ICH9, 2009)",
            "/proc/sys/kernel/osrelease": "6.12.0",
            "/proc/meminfo": meminfo(2_000_000, 1_500_000),
            "/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu sse2 avx2\n",
            "/sys/devices/system/cpu/online": "0",
            "/sys/fs/cgroup/cgroup.controllers": "cpu memory pids",
        },
    )
