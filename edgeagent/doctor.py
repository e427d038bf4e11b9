"""`edgeagent doctor`: what is right, what is wrong, and what to do about it.

Each check looks at one thing and answers with one `Check`.  A check that itself breaks is a failed
check: it never hides the others.  Nothing here changes the machine, but for one empty file that is
made and removed to see whether the state directory can be written.

What is seen depends on who looks: the service runs as ``edgeagent`` behind the locks of its unit.
docs/operations.md has the command that comes closest.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeagent import __version__
from edgeagent.errors import AdapterError, ConfigError, ModelError

if TYPE_CHECKING:
    from edgeagent.adapters.sensors import Sensors
    from edgeagent.config import Config
    from edgeagent.power.samples import Sample

Status = Literal["ok", "warn", "fail"]

OLDEST_PYTHON = (3, 11)

# Loaded when needed; a venv that was copied or half installed lacks some of them.
LIBRARIES = ("jinja2", "paho", "tokenizers", "tuf", "zstandard")

# Beside the weights: two Python processes (about 30 MiB each), the KV cache, buffers.
BESIDE_WEIGHTS_BYTES = 160 << 20

# An update holds the new model beside the old one, and leaves a reserve of 16 MiB.
DISK_RESERVE_BYTES = 64 << 20

# Sockets, pipes to two engines and the mapped shards of two models of sixty layers.
FEWEST_FILES = 256

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; ``advice`` says what to do when it is not ``ok``."""

    name: str
    status: Status
    detail: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """What the checks take from this process instead of asking for it; a test gives its own."""

    now_s: float
    uid: int
    installed_s: float  # when this file was installed: no clock is right that says earlier

    @classmethod
    def here(cls) -> Host:
        """Return the truth."""
        return cls(time.time(), os.geteuid(), Path(__file__).stat().st_mtime)


@dataclass(frozen=True, slots=True)
class Patient:
    """Everything a check may look at."""

    config: Config
    host: Host
    sensors: Sensors | None = None  # a test's; else those below ``sysroot``

    @property
    def sysroot(self) -> Path:
        """Where ``/sys`` and ``/proc`` are."""
        return self.config.power.sysroot

    @property
    def model_dir(self) -> Path:
        """The model that the agent would load."""
        from edgeagent.model_store import ModelStore

        config = self.config
        store = ModelStore(config.paths.state_dir, config.model.path, config.update.soak_s)
        return store.active()


def checks(config: Config, host: Host | None = None) -> list[Check]:
    """Run every check and return the findings, in the order in which one would mend them."""
    patient = Patient(config, host or Host.here())
    return [_run(name, check, patient) for name, check in CHECKS.items()]


def as_dict(check: Check) -> dict[str, str]:
    """Return a finding for JSON."""
    return asdict(check)


def format_table(results: Sequence[Check]) -> str:
    """Return the findings as text: a line each, the advice below, a summary at the end."""
    width = max((len(check.name) for check in results), default=0)
    lines = []
    for check in results:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.detail}".rstrip())
        if check.advice:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.advice}")
    warnings = sum(check.status == "warn" for check in results)
    failures = sum(check.status == "fail" for check in results)
    good = len(results) - warnings - failures
    lines.append(f"{good} ok, {warnings} to look at, {failures} broken")
    return "\n".join(lines)


def _run(name: str, check: Callable[[str, Patient], Check], patient: Patient) -> Check:
    try:
        return check(name, patient)
    # The doctor is called when something unknown is wrong; any surprise is a finding of its own.
    except Exception as err:  # noqa: BLE001
        return Check(name, "fail", f"the check itself failed: {type(err).__name__}: {err}")


# --- the program


def _python(name: str, _patient: Patient) -> Check:
    version, here = platform.python_version(), f"edgeagent {__version__} in {sys.prefix}"
    if sys.version_info < OLDEST_PYTHON:
        return Check(name, "fail", f"{version}: expected 3.11 or newer", "make a venv with it")
    return Check(name, "ok", f"{version}, {here}")


def _libraries(name: str, _patient: Patient) -> Check:
    missing = [library for library in LIBRARIES if importlib.util.find_spec(library) is None]
    if missing:
        return Check(
            name, "fail", f"missing: {', '.join(missing)}", "install edgeagent with pip again"
        )
    return Check(name, "ok", ", ".join(LIBRARIES))


def _core(name: str, patient: Patient) -> Check:
    """Look for the compiled core, and for a variant that this CPU can run."""
    try:
        from edgeagent import _core
    except ImportError as err:
        advice = "install with a C compiler and python3-dev present"
        return Check(name, "fail", f"the compiled core does not load: {err}", advice)
    runnable, compiled = _core.supported_variants(), _core.variants()
    wanted = patient.config.engine.kernel or os.environ.get("EDGEAGENT_KERNEL", "")
    if wanted and wanted not in runnable:
        detail = f"{wanted!r} cannot run here; this CPU can run {', '.join(runnable)}"
        return Check(name, "fail", detail, "remove engine.kernel and EDGEAGENT_KERNEL")
    others = [variant for variant in compiled if variant not in runnable]
    beside = f"; compiled but not for this CPU: {', '.join(others)}" if others else ""
    chosen = wanted or runnable[0]
    if chosen == "scalar":
        advice = "correct but slow: is this a CPU without AVX2 or NEON?"
        return Check(name, "warn", f"scalar{beside}", advice)
    return Check(name, "ok", f"{chosen} of {', '.join(runnable)}{beside}")


# --- what the operator wrote


def _configuration(name: str, patient: Patient) -> Check:
    config = patient.config
    detail = f"node {config.node.name}, broker {config.mqtt.host}:{config.mqtt.port}"
    is_encrypted = _is_encrypted(config)
    is_local = config.mqtt.host in ("localhost", "127.0.0.1", "::1")
    if config.mqtt.username and not is_encrypted and not is_local:
        advice = "set mqtt.tls (or mqtt.tls_ca_file) and the broker's TLS port, usually 8883"
        return Check(name, "warn", f"{detail}: the password travels unencrypted", advice)
    if config.update.enabled and config.update.root_file is None:
        advice = "set update.root_file to the root.json of your fleet, or update.enabled = false"
        return Check(name, "warn", f"{detail}: no root of trust, so no updates", advice)
    return Check(name, "ok", detail)


def _is_encrypted(config: Config) -> bool:
    mqtt = config.mqtt
    return mqtt.tls or mqtt.tls_ca_file is not None or mqtt.tls_cert_file is not None


def _broker(name: str, patient: Patient) -> Check:
    from edgeagent.adapters.mqtt_client import tls_context
    from edgeagent.adapters.mqtt_probe import probe_broker
    from edgeagent.config import password

    mqtt = patient.config.mqtt
    advice = "start the broker, or correct [mqtt]; the agent itself keeps trying"
    try:
        secret = password(mqtt)
        if mqtt.username and secret is None:
            advice = "the password is the service's credential: see docs/operations.md, Doctor"
        tls = None
        if _is_encrypted(patient.config):
            tls = tls_context(mqtt.tls_ca_file, mqtt.tls_cert_file, mqtt.tls_key_file)
        answer = probe_broker(
            mqtt.host, mqtt.port, username=mqtt.username, password=secret, tls=tls
        )
    except ConfigError as err:
        return Check(name, "fail", str(err), "run as root or as edgeagent to read the password")
    except AdapterError as err:
        return Check(name, "fail", str(err), advice)
    except OSError as err:
        return Check(name, "fail", f"TLS files: {err}", "correct mqtt.tls_ca_file and its siblings")
    return Check(name, "ok", answer)


# --- the model, and room for it


def _model(name: str, patient: Patient) -> Check:
    """Check every hash of the model that the agent would load: an update's, else the configured."""
    from edgeagent.model.files import verify

    path = patient.model_dir
    try:
        manifest = verify(path)
    except ModelError as err:
        return Check(name, "fail", str(err), "install the model again, or correct model.path")
    came = "configured" if path == patient.config.model.path else "by an update"
    size = _mib(_model_bytes(path))
    detail = f"{manifest.name} {manifest.version} ({came}), {size}, every hash is right"
    return Check(name, "ok", detail)


def _state(name: str, patient: Patient) -> Check:
    """See whether models and the state of updates can be written."""
    path = patient.config.paths.state_dir
    if not path.exists():
        advice = "systemd makes it when the service starts; by hand: set paths.state_dir"
        return Check(name, "warn", f"{path} does not exist yet", advice)
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix=".doctor-"):
            pass
    except OSError as err:
        advice = "run the doctor as the service's user: sudo -u edgeagent"
        return Check(name, "fail", f"{path} cannot be written: {err.strerror}", advice)
    return Check(name, "ok", f"{path} can be written")


def _disk(name: str, patient: Patient) -> Check:
    path = patient.config.paths.state_dir
    place = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    needed = _model_bytes(patient.model_dir) + DISK_RESERVE_BYTES
    detail = f"{_mib(free)} free at {place}, a new model needs up to {_mib(needed)}"
    if free < needed:
        advice = "free some space; updates are refused until then, answers go on"
        return Check(name, "warn", detail, advice)
    return Check(name, "ok", detail)


def _memory(name: str, patient: Patient) -> Check:
    from edgeagent.adapters.machine import memory

    found = memory(patient.sysroot)
    needed = _model_bytes(patient.model_dir) + BESIDE_WEIGHTS_BYTES
    if found.total_bytes is None or found.available_bytes is None:
        return Check(
            name, "warn", "/proc/meminfo cannot be read", "look for ProcSubset= in drop-ins"
        )
    total = min(found.total_bytes, found.limit_bytes or found.total_bytes)
    detail = (
        f"{_mib(found.available_bytes)} available of {_mib(total)}, needed about {_mib(needed)}"
    )
    if total < needed:
        return Check(name, "fail", detail, "this model is too large for this board")
    if found.available_bytes < needed:
        return Check(
            name, "warn", detail, "stop other services; weights may be read again and again"
        )
    return Check(name, "ok", detail)


def _model_bytes(path: Path) -> int:
    """Return the size of a model directory; 0 when it is not there, which `model` reports."""
    try:
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    except OSError:
        return 0


# --- the machine


def _machine(name: str, patient: Patient) -> Check:
    from edgeagent.adapters.machine import machine

    found = machine(patient.sysroot)
    cores = f"{found.cores or '?'} cores"
    parts = [found.model or "unknown model", cores, found.architecture, found.kernel, found.system]
    return Check(name, "ok", ", ".join(part for part in parts if part))


def _temperature(name: str, patient: Patient) -> Check:
    sample = _sample(patient)
    if sample.temperature_c is None:
        reason = sample.absent["temperature_c"]
        return Check(name, "warn", reason, "answers and telemetry will have no temperature")
    detail = f"{sample.temperature_c:.1f} °C ({sample.sources['temperature_c']})"
    if sample.throttled:
        return Check(name, "warn", f"{detail}, the processor is slowed down now", "cool the board")
    return Check(name, "ok", detail)


def _energy(name: str, patient: Patient) -> Check:
    """Report what joules will come from: a counter, else a power sensor, else nothing."""
    sample = _sample(patient)
    if "permission denied" in sample.absent.get("energy_j", ""):
        advice = "then: udevadm control --reload; udevadm trigger --subsystem-match=powercap"
        return Check(name, "warn", sample.absent["energy_j"], advice)
    for quantity, what in (("energy_j", "counted"), ("power_w", "from sampled power")):
        if quantity in sample.sources:
            return Check(name, "ok", f"{what} ({sample.sources[quantity]})")
    advice = "answers will say null joules with this reason"
    return Check(name, "warn", sample.absent["power_w"], advice)


def _supply(name: str, patient: Patient) -> Check:
    sample = _sample(patient)
    if sample.undervoltage:
        advice = "use the maker's power supply and a short cable"
        return Check(name, "warn", "the supply voltage is too low now", advice)
    if sample.battery_percent is not None:
        return Check(name, "ok", f"battery {sample.battery_percent:.0f} %, {sample.battery_status}")
    if sample.undervoltage is None:
        return Check(name, "ok", "no under-voltage sensor and no battery")
    return Check(name, "ok", "the voltage is fine")


def _clock(name: str, patient: Patient) -> Check:
    """A board without a clock of its own starts in the past, where signatures are not yet valid."""
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(patient.host.now_s))
    if patient.host.now_s < patient.host.installed_s:
        advice = "wait for time synchronisation (timedatectl); updates are refused until then"
        return Check(name, "warn", f"{now} is before this program was installed", advice)
    return Check(name, "ok", now)


def _cgroup(name: str, patient: Patient) -> Check:
    from edgeagent.adapters.machine import has_memory_controller

    found = has_memory_controller(patient.sysroot)
    if found:
        return Check(name, "ok", "memory limits of the unit work")
    detail = "the kernel has no memory controller, so the unit's memory limits do nothing"
    advice = "Pi OS: append cgroup_enable=memory to /boot/firmware/cmdline.txt and reboot"
    return Check(name, "warn", detail, advice)


def _limits(name: str, _patient: Patient) -> Check:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if files != resource.RLIM_INFINITY and files < FEWEST_FILES:
        return Check(name, "warn", f"{files} open files", f"ulimit -n {FEWEST_FILES}")
    if space != resource.RLIM_INFINITY:
        detail = f"address space is limited to {_mib(space)}; the weights are mapped into it"
        return Check(name, "warn", detail, "ulimit -v unlimited")
    return Check(name, "ok", f"{files} open files, address space not limited")


def _user(name: str, patient: Patient) -> Check:
    if patient.host.uid == 0:
        advice = "never run the agent as root; for the doctor it is fine, but sees more than it"
        return Check(name, "warn", "root", advice)
    return Check(name, "ok", f"uid {patient.host.uid}")


def _sample(patient: Patient) -> Sample:
    from edgeagent.adapters.sensors import Sensors

    return (patient.sensors or Sensors(patient.sysroot)).read(time.monotonic())


def _mib(count: float) -> str:
    return f"{count / MIB:.0f} MiB"


CHECKS: dict[str, Callable[[str, Patient], Check]] = {
    "python": _python,
    "libraries": _libraries,
    "core": _core,
    "configuration": _configuration,
    "broker": _broker,
    "model": _model,
    "state": _state,
    "disk": _disk,
    "memory": _memory,
    "machine": _machine,
    "temperature": _temperature,
    "energy": _energy,
    "supply": _supply,
    "clock": _clock,
    "control groups": _cgroup,
    "limits": _limits,
    "user": _user,
}
