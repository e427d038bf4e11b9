import dataclasses
import errno
import os
import socket
import threading

from edgeagent import _core, config, doctor
from edgeagent.adapters.sensors import Sensors
from edgeagent.doctor import CHECKS, Check, Host, Patient, checks, format_table
from tests.sysroots import boards

HOST = Host(now_s=2_000_000_000.0, uid=990, installed_s=1_900_000_000.0)


def configuration(tmp_path, text="", board=boards.virtual_machine):
    root, state = board(tmp_path / "root"), tmp_path / "state"
    state.mkdir(parents=True)
    whole = f'[power]\nsysroot = "{root}"\n[paths]\nstate_dir = "{state}"\n{text}'
    return config.parse(whole, "test")


def run(name, patient_config, host=HOST):
    return CHECKS[name](name, Patient(patient_config, host))


# --- as a whole


def test_every_check_gives_one_finding_under_its_name(tmp_path):
    results = checks(configuration(tmp_path, "[mqtt]\nport = 1\n"), HOST)
    assert [check.name for check in results] == list(CHECKS)
    assert all(check.detail and "\n" not in check.detail for check in results)
    assert all(check.advice for check in results if check.status != "ok")


def test_a_check_that_breaks_is_a_finding_and_hides_nothing(tmp_path):
    broken = dataclasses.replace(configuration(tmp_path), power=None)
    results = {check.name: check for check in checks(broken, HOST)}
    assert results["temperature"].status == "fail"
    assert "AttributeError" in results["temperature"].detail
    assert results["python"].status == "ok"
    assert len(results) == len(CHECKS)


def test_the_table_puts_advice_below_its_finding_and_counts():
    table = format_table(
        [
            Check("python", "ok", "3.11"),
            Check("broker", "fail", "refused", "start it"),
            Check("user", "warn", "root", "never"),
        ]
    )
    assert table.splitlines() == [
        "ok    python  3.11",
        "fail  broker  refused",
        "              -> start it",
        "warn  user    root",
        "              -> never",
        "1 ok, 1 to look at, 1 broken",
    ]


def test_an_empty_table_is_only_a_summary():
    assert format_table([]) == "0 ok, 0 to look at, 0 broken"


def test_a_finding_goes_to_json_by_its_fields():
    assert doctor.as_dict(Check("a", "ok", "b")) == {
        "name": "a",
        "status": "ok",
        "detail": "b",
        "advice": "",
    }


# --- the program


def test_this_python_and_its_libraries_are_good(tmp_path):
    patient = configuration(tmp_path)
    assert run("python", patient).status == "ok"
    assert run("libraries", patient).status == "ok"


def test_a_variant_that_this_cpu_cannot_run_is_a_failure(tmp_path):
    found = run("core", configuration(tmp_path, '[engine]\nkernel = "mmx"\n'))
    assert found.status == "fail"
    assert "'mmx' cannot run here; this CPU can run" in found.detail


def test_the_chosen_variant_is_named(tmp_path):
    assert _core.supported_variants()[0] in run("core", configuration(tmp_path)).detail


# --- what the operator wrote


def test_a_password_over_plain_mqtt_to_another_machine_is_a_warning(tmp_path):
    text = '[mqtt]\nhost = "broker.lan"\nusername = "u"\n'
    found = run("configuration", configuration(tmp_path, text))
    assert (found.status, "unencrypted" in found.detail) == ("warn", True)


def test_updates_without_a_root_of_trust_are_a_warning(tmp_path):
    assert "no updates" in run("configuration", configuration(tmp_path)).detail


def test_a_complete_configuration_is_good(tmp_path):
    text = '[mqtt]\nhost = "h"\nusername = "u"\ntls = true\n[update]\nenabled = false\n'
    assert run("configuration", configuration(tmp_path, text)).status == "ok"


def test_no_broker_is_a_failure_with_its_address(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = run("broker", configuration(tmp_path, f'[mqtt]\nhost="127.0.0.1"\nport = {port}\n'))
    assert found.status == "fail"
    assert f"127.0.0.1:{port}" in found.detail


def test_a_password_that_only_the_service_has_is_said_to_be_missing_here(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    text = f'[mqtt]\nhost="127.0.0.1"\nport = {port}\nusername = "u"\n'
    assert "credential" in run("broker", configuration(tmp_path, text)).advice


def test_a_broker_that_accepts_is_good(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)

        def serve():
            client, _ = server.accept()
            with client:
                client.recv(512)
                client.sendall(b"\x20\x02\x00\x00")
                while client.recv(512):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        text = f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\n'
        found = run("broker", configuration(tmp_path, text))
        thread.join()
    assert (found.status, found.detail) == ("ok", f"127.0.0.1:{port} accepts us")


def test_a_password_file_that_cannot_be_read_is_a_failure(tmp_path):
    text = f'[mqtt]\npassword_file = "{tmp_path}/none"\n'
    assert "password_file" in run("broker", configuration(tmp_path, text)).detail


def test_certificates_that_are_not_there_are_a_failure(tmp_path):
    text = f'[mqtt]\ntls_ca_file = "{tmp_path}/none.pem"\n'
    assert run("broker", configuration(tmp_path, text)).detail.startswith("TLS files")


# --- the model, and room for it


def test_a_model_that_is_not_there_is_a_failure(tmp_path):
    found = run("model", configuration(tmp_path, f'[model]\npath = "{tmp_path}/none"\n'))
    assert (found.status, str(tmp_path) in found.detail) == ("fail", True)


def test_the_model_is_verified_by_its_hashes(tmp_path):
    found = run("model", configuration(tmp_path / "again"))
    assert found.status == "ok"
    assert "(configured)" in found.detail
    assert "every hash is right" in found.detail


def test_the_state_directory_is_tried_and_left_empty(tmp_path):
    patient = configuration(tmp_path)
    assert run("state", patient).status == "ok"
    assert list(patient.paths.state_dir.iterdir()) == []


def test_a_state_directory_that_systemd_will_make_is_only_a_warning(tmp_path):
    patient = configuration(tmp_path)
    patient.paths.state_dir.rmdir()
    assert run("state", patient).status == "warn"
    assert run("disk", patient).status == "ok"


def test_a_state_directory_that_cannot_be_written_is_a_failure(tmp_path):
    text = configuration(tmp_path)
    plain_file = tmp_path / "file"
    plain_file.write_text("")
    paths = dataclasses.replace(text.paths, state_dir=plain_file)
    found = run("state", dataclasses.replace(text, paths=paths))
    assert found.status == "fail"
    assert os.strerror(errno.ENOTDIR) in found.detail


def test_memory_is_compared_with_the_model(tmp_path):
    small = boards.put(tmp_path / "root", {"/proc/meminfo": boards.meminfo(100_000, 90_000)})
    assert run("memory", configuration(tmp_path, board=lambda _: small)).status == "fail"
    busy = boards.put(tmp_path / "root", {"/proc/meminfo": boards.meminfo(4_000_000, 90_000)})
    assert run("memory", configuration(tmp_path / "b", board=lambda _: busy)).status == "warn"
    free = boards.put(tmp_path / "root", {"/proc/meminfo": boards.meminfo(4_000_000, 3_000_000)})
    assert run("memory", configuration(tmp_path / "c", board=lambda _: free)).status == "ok"


def test_hidden_proc_files_are_recognised(tmp_path):
    patient = configuration(tmp_path, board=lambda root: root)
    assert "ProcSubset" in run("memory", patient).advice


# --- the machine


def test_a_pi_5_with_a_weak_supply_is_told_so(tmp_path):
    patient = configuration(tmp_path, board=boards.raspberry_pi_5)
    assert "Raspberry Pi 5" in run("machine", patient).detail
    assert run("temperature", patient).detail.startswith("61.8 °C (measured: thermal cpu-thermal)")
    assert run("supply", patient).status == "warn"


def test_a_board_that_is_slowed_down_is_a_warning(tmp_path):
    found = run("temperature", configuration(tmp_path, board=boards.jetson_orin_nano))
    assert (found.status, "slowed down" in found.detail) == ("warn", True)


def test_without_sensors_the_reasons_are_shown(tmp_path):
    patient = configuration(tmp_path)
    assert run("temperature", patient).detail.startswith("no processor zone")
    assert run("energy", patient).detail.startswith("no power sensor found")
    assert run("supply", patient).detail == "no under-voltage sensor and no battery"


def test_a_counter_and_a_battery_are_named(tmp_path):
    patient = configuration(tmp_path, board=boards.intel_laptop)
    assert run("energy", patient).detail == "counted (rail: rapl package-0)"
    assert run("supply", patient).detail == "battery 71 %, Discharging"


def test_sampled_power_is_named(tmp_path):
    found = run("energy", configuration(tmp_path, board=boards.jetson_orin_nano))
    assert found.detail == "from sampled power (measured: hwmon ina3221 VDD_IN)"


def test_a_counter_that_may_not_be_read_comes_with_advice(tmp_path):
    patient_config = configuration(tmp_path, board=boards.intel_laptop)
    register = "/sys/class/powercap/intel-rapl:0/energy_uj"
    fs = boards.PlayedSysfs(patient_config.power.sysroot, {register: errno.EACCES})
    found = CHECKS["energy"]("energy", Patient(patient_config, HOST, Sensors(sysfs=fs)))
    assert (found.status, "70-edgeagent.rules" in found.detail) == ("warn", True)


def test_a_clock_before_the_installation_is_wrong(tmp_path):
    patient = configuration(tmp_path)
    past = dataclasses.replace(HOST, now_s=0.0)
    assert run("clock", patient, past).detail == (
        "1970-01-01 00:00 UTC is before this program was installed"
    )
    assert run("clock", patient).status == "ok"


def test_a_kernel_without_memory_limits_is_told_how_to_get_them(tmp_path):
    found = run("control groups", configuration(tmp_path, board=boards.raspberry_pi_4))
    assert (found.status, "cgroup_enable=memory" in found.advice) == ("warn", True)
    other = configuration(tmp_path / "b", board=boards.raspberry_pi_5)
    assert run("control groups", other).status == "ok"


def test_running_as_root_is_a_warning(tmp_path):
    patient = configuration(tmp_path)
    assert run("user", patient, dataclasses.replace(HOST, uid=0)).status == "warn"
    assert run("user", patient).status == "ok"


def test_the_limits_of_this_process_are_judged(tmp_path):
    assert run("limits", configuration(tmp_path)).status in ("ok", "warn")


def test_the_host_is_this_machine():
    here = Host.here()
    assert here.uid == os.geteuid()
    assert here.now_s >= here.installed_s
