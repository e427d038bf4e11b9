import pytest

from edgeagent.adapters.machine import _cores, has_memory_controller, machine, memory
from tests.sysroots import boards


def test_a_pi_is_named_by_its_device_tree(tmp_path):
    found = machine(boards.raspberry_pi_5(tmp_path))
    assert found.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.cores == 4
    assert found.kernel == "6.12.34+rpt-rpi-2712"
    assert found.features == ("asimd", "asimddp")
    assert found.memory.total_bytes == 8_255_568 * 1024


def test_a_pi_4_has_no_dot_product(tmp_path):
    assert machine(boards.raspberry_pi_4(tmp_path)).features == ("asimd",)


def test_a_laptop_is_named_as_people_know_it(tmp_path):
    found = machine(boards.intel_laptop(tmp_path))
    assert found.model == "LENOVO ThinkPad X1 Carbon Gen 10"
    assert found.processor == "12th Gen Intel(R) Core(TM) i7-1260P"
    assert found.features == ("avx2", "avx_vnni")
    assert found.cores == 16


def test_fields_that_a_maker_did_not_fill_in_are_left_out(tmp_path):
    dmi = "/sys/class/dmi/id"
    names = {f"{dmi}/sys_vendor": "ACME", f"{dmi}/product_name": "To Be Filled By O.E.M."}
    assert machine(boards.put(tmp_path, names)).model == "ACME"


def test_an_unknown_machine_is_empty_but_not_an_error(tmp_path):
    found = machine(tmp_path)
    assert (found.model, found.processor, found.kernel, found.system) == ("", "", "", "")
    assert (found.cores, found.memory.total_bytes, found.features) == (None, None, ())


def test_this_machine_has_a_kernel_and_memory():
    found = machine()
    assert found.kernel
    assert found.memory.total_bytes > 0
    assert found.as_dict()["architecture"] == found.architecture


def test_the_distribution_is_named(tmp_path):
    text = 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"'
    assert machine(boards.put(tmp_path, {"/etc/os-release": text})).system.endswith("(bookworm)")


@pytest.mark.parametrize(
    ("online", "count"),
    [("0", 1), ("0-3", 4), ("0-3,6", 5), ("0,2,4-5", 4), ("", None), ("x", None)],
)
def test_lists_of_cpus_are_counted(online, count):
    assert _cores(online) == count


def test_the_tightest_limit_of_the_groups_above_holds(tmp_path):
    group = "/sys/fs/cgroup/system.slice"
    files = {
        "/proc/self/cgroup": "0::/system.slice/edgeagent.service",
        f"{group}/memory.max": 500,
        f"{group}/edgeagent.service/memory.max": 900,
    }
    assert memory(boards.put(tmp_path, files)).limit_bytes == 500


def test_no_limit_is_none(tmp_path):
    files = {"/proc/self/cgroup": "0::/a", "/sys/fs/cgroup/a/memory.max": "max"}
    assert memory(boards.put(tmp_path, files)).limit_bytes is None


def test_pi_os_without_the_memory_controller_is_recognised(tmp_path):
    assert has_memory_controller(boards.raspberry_pi_4(tmp_path)) is False


def test_the_memory_controller_is_found_in_both_versions(tmp_path):
    assert has_memory_controller(boards.raspberry_pi_5(tmp_path / "v2")) is True
    table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t4\t100\t{}"
    v1 = boards.put(tmp_path / "v1", {"/proc/cgroups": table.format(1)})
    assert has_memory_controller(v1) is True
    off = boards.put(tmp_path / "off", {"/proc/cgroups": table.format(0)})
    assert has_memory_controller(off) is False
    assert has_memory_controller(tmp_path / "none") is None
