"""TOML -> one frozen `Config`; every default, unit and bound of the agent is here.

A key that does not exist is an error, never ignored: a misspelt limit would otherwise be no limit.
The environment is read for two things only, both set by systemd: the credential
``$CREDENTIALS_DIRECTORY/mqtt-password`` and ``$STATE_DIRECTORY``.

``python -m edgeagent.config`` writes ``docs/configuration.md``.
"""

# ruff: noqa: RUF009  (`_opt` is `dataclasses.field` with our metadata)

from __future__ import annotations

import os
import platform
import re
import socket
import sys
import tomllib
import types
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from edgeagent.cpus import parse_cpus
from edgeagent.errors import ConfigError, ProtocolError
from edgeagent.hours import parse_window
from edgeagent.paths import bundled_model
from edgeagent.protocol.topics import NODE_PATTERN, PREFIX, REPLY_PREFIXES, check_topic_name

SYSTEM_STATE = Path("/var/lib/edgeagent")
SYSTEM_FILE = Path("/etc/edgeagent/edgeagent.toml")
CREDENTIAL = "mqtt-password"


BROKER = "mqtt"  # of ``update.source``


def _opt(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str | int, ...] = (),
    shown: str | None = None,
) -> Any:
    meta = {"doc": doc, "unit": unit, "low": low, "high": high, "choices": choices, "shown": shown}
    if callable(default):
        return field(default_factory=default, metadata=meta)
    return field(default=default, metadata=meta)


def _hostname() -> str:
    """Return this machine's name as a topic level."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().split(".")[0]).strip("-_")[:63]
    return name if NODE_PATTERN.fullmatch(name) and name != "reply" else "edge"


def _cores() -> int:
    """Return 4 threads at most: more only compete for one memory bus."""
    return min(4, len(os.sched_getaffinity(0)))


def _state_dir() -> Path:
    return Path(os.environ.get("STATE_DIRECTORY", str(SYSTEM_STATE)).split(":")[0])


def _credential() -> Path | None:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    path = Path(directory, CREDENTIAL)
    try:
        return path if path.exists() else None
    except OSError as err:
        raise ConfigError(f"$CREDENTIALS_DIRECTORY: cannot look into {path.parent}: {err}") from err


@dataclass(frozen=True, slots=True)
class Node:
    """Who this device is."""

    name: str = _opt(_hostname, "topic level and client id of this device", shown="the host name")


@dataclass(frozen=True, slots=True)
class Mqtt:
    """The broker, and where answers may go."""

    host: str = _opt("localhost", "the broker")
    port: int = _opt(1883, "8883 is usual with TLS", low=1, high=65535)
    username: str = _opt("", "empty: anonymous")
    password_file: Path | None = _opt(
        _credential,
        "file with the password; trailing newline ignored",
        shown="`$CREDENTIALS_DIRECTORY/mqtt-password` if it exists",
    )
    tls: bool = _opt(False, "encrypt; on by itself when `tls_ca_file` or `tls_cert_file` is set")
    tls_ca_file: Path | None = _opt(None, "authorities; the system's when absent")
    tls_cert_file: Path | None = _opt(None, "this device's certificate")
    tls_key_file: Path | None = _opt(None, "this device's private key")
    protocol: str = _opt(
        "auto", "`auto` is 5, then 3.1.1 when refused", choices=("auto", "5", "3.1.1")
    )
    prefix: str = _opt(PREFIX, "root of all topics")
    # Brokers drop a silent client after 1.5 of it; NAT entries live 60 s and more.
    keepalive_s: int = _opt(30, "longest silence on the connection", unit="s", low=5, high=3600)
    # Longer than a reboot, and bounded: a device that is gone must not fill the broker for ever.
    session_expiry_s: int = _opt(
        3600, "how long the broker keeps our queries while we are away", unit="s", low=0, high=86400
    )
    reply_prefixes: tuple[str, ...] = _opt(
        REPLY_PREFIXES,
        "where answers may go besides `<prefix>/<node>/query/reply/`; each ends with `/`",
    )


@dataclass(frozen=True, slots=True)
class Model:
    """Which model runs until an update installs another."""

    path: Path = _opt(bundled_model, "model directory", shown="the bundled model")


@dataclass(frozen=True, slots=True)
class Engine:
    """The engine process."""

    threads: int = _opt(_cores, "compute threads", low=1, high=64, shown="cores, at most 4")
    kernel: str = _opt("", "kernel variant by name; empty: the best this CPU has")
    zero_skip: bool = _opt(True, "skip zeros; the answers are the same either way")
    # Its error is lost in the rounding of int8 activations (docs/adr/0011-kv-cache.md).
    kv_bits: int = _opt(
        16, "bits of a number in the KV cache; fewer hold a longer context", choices=(4, 8, 16, 32)
    )
    kv_group_size: int = _opt(
        64, "numbers that share a scale when `kv_bits` is 8 or 4", choices=(32, 64, 128, 256)
    )
    # A board with cores of two kinds is as slow as the slowest core that takes part.
    cpus: str = _opt("", "CPUs of the engine's threads, as `0-3,6`; empty: all")
    # A 2 G-parameter model on a slow SD card reads 600 MB at 20 MB/s.
    start_timeout_s: float = _opt(60.0, "from start to ready", unit="s", low=1, high=3600)
    # Longer than any pause of a working engine: a block of prefill on the slowest board.
    hang_timeout_s: float = _opt(
        60.0, "silence after which it is killed", unit="s", low=1, high=3600
    )


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What is accepted; the protocol's own bounds hold besides."""

    max_queue: int = _opt(32, "queries that wait; more are answered `busy`", low=1, high=1024)
    # Longer than any context; an answer about it fits the same buffers.
    max_bytes: int = _opt(65536, "largest request", unit="bytes", low=64, high=1 << 20)
    default_deadline_s: float = _opt(
        120.0, "when the query names none", unit="s", low=0.1, high=3600
    )
    max_deadline_s: float = _opt(3600.0, "later ones are lowered", unit="s", low=0.1, high=3600)
    default_max_tokens: int = _opt(128, "when the query names none", low=1, high=4096)


@dataclass(frozen=True, slots=True)
class Telemetry:
    """How often the node speaks about itself."""

    interval_s: float = _opt(10.0, "between telemetry messages", unit="s", low=1, high=3600)
    health_interval_s: float = _opt(60.0, "between health messages", unit="s", low=1, high=3600)


@dataclass(frozen=True, slots=True)
class HomeAssistant:
    """Whether Home Assistant finds this node by itself."""

    discovery: bool = _opt(False, "announce the node; off again removes the announcement")
    prefix: str = _opt("homeassistant", "root of its discovery topics")
    status_topic: str = _opt("homeassistant/status", "where it says that it has started")


@dataclass(frozen=True, slots=True)
class Power:
    """Where sensors are looked for."""

    sysroot: Path = _opt(Path("/"), "root of the tree with `sys` and `dev`; tests use another")


@dataclass(frozen=True, slots=True)
class Update:
    """Model updates."""

    enabled: bool = _opt(True, "follow the repository below; needs `root_file`")
    repo: str = _opt("main", "name of the repository on the broker")
    source: str = _opt(
        BROKER, "where releases come from: `mqtt`, a directory, or a web server's `https://…`"
    )
    source_ca_file: Path | None = _opt(None, "authorities of that web server; the system's else")
    root_file: Path | None = _opt(None, "the repository's root of trust; absent: no updates")
    hardware: str = _opt(
        platform.machine, "hardware id that releases are made for", shown="the machine type"
    )
    poll_interval_s: float = _opt(
        21600.0, "between looks without a notice", unit="s", low=10, high=604800
    )
    # Loading and a handful of prompts; twice the engine's own limit.
    trial_timeout_s: float = _opt(
        120.0, "from staged to the verdict of the trial engine", unit="s", low=1, high=3600
    )
    # Most crashes of a bad model come with its first queries.
    soak_s: float = _opt(600.0, "how long a new model is on probation", unit="s", low=0, high=86400)
    # One crash may be chance (memory), three in ten minutes are the model.
    soak_crashes: int = _opt(
        3, "engine crashes during probation that bring the old model back", low=1, high=100
    )
    # As long as its slot is there the way back is a rename.
    previous_slot_s: float = _opt(
        0.0,
        "at the first look so long after a commit the model before becomes a delta that leads "
        "back to it; 0: only when its room is needed",
        unit="s",
        low=0,
        high=31536000,
    )
    # A flat battery in the middle of an update costs nothing but the time to charge it.
    min_battery_percent: int = _opt(
        30, "below it no stage begins, unless the battery charges", unit="%", low=0, high=100
    )
    # What small boards throttle at; an update is no reason to get there.
    max_temperature_c: float = _opt(80.0, "above it no stage begins", unit="°C", low=0, high=125)
    when_throttled: bool = _opt(True, "whether a stage may begin while the board is throttled")
    when_metered: bool = _opt(True, "whether models are fetched over a metered link")
    when_busy: bool = _opt(True, "whether a stage may begin while somebody waits for an answer")
    window: str = _opt("", "hours of the local day in which stages begin, as `22:00-05:30`")
    metered: str = _opt(
        "auto",
        "whether the link is metered; `auto`: as `metered_file` or NetworkManager says",
        choices=("auto", "yes", "no"),
    )
    metered_file: Path | None = _opt(None, "a file that says `yes` or `no`, for `auto`")
    flash_budget_mib: int = _opt(
        0, "what updates may write a day; 0: no limit", unit="MiB", low=0, high=1 << 20
    )


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the agent may write."""

    state_dir: Path = _opt(
        _state_dir,
        "models and the state of updates",
        shown="`$STATE_DIRECTORY`, else `/var/lib/edgeagent`",
    )
    control_socket: Path | None = _opt(
        None,
        "where `edgeagent update` finds the agent",
        shown="`/run/edgeagent/control.sock`, with another `state_dir` below that",
    )


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; one attribute a section."""

    node: Node = field(default_factory=Node)
    mqtt: Mqtt = field(default_factory=Mqtt)
    model: Model = field(default_factory=Model)
    engine: Engine = field(default_factory=Engine)
    query: QueryLimits = field(default_factory=QueryLimits)
    telemetry: Telemetry = field(default_factory=Telemetry)
    home_assistant: HomeAssistant = field(default_factory=HomeAssistant)
    power: Power = field(default_factory=Power)
    update: Update = field(default_factory=Update)
    paths: Paths = field(default_factory=Paths)


SECTIONS: dict[str, type[Any]] = {
    name: hint for name, hint in get_type_hints(Config).items() if isinstance(hint, type)
}


def load(path: Path | None = None) -> Config:
    """Read the configuration.

    Args:
        path: The file; when None, the system's file if it exists, else all defaults.

    Raises:
        ConfigError: The file cannot be read, or names something that does not exist or is out of
            bounds; the message names file, key and what exists.
    """
    if path is None:
        if not SYSTEM_FILE.exists():
            return parse("", "defaults")
        path = SYSTEM_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: cannot be read: {err}") from err
    return parse(text, str(path))


def parse(text: str, source: str) -> Config:
    """Build a configuration from TOML; ``source`` is named in errors."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"{source}: not TOML: {err}") from err
    _check_names(source, "section", document, SECTIONS)
    sections = {name: _section(source, name, document.get(name, {})) for name in SECTIONS}
    config = Config(**sections)
    _check_whole(config, source)
    return config


def control_socket(paths: Paths) -> Path:
    """Return where the agent listens: the same for the service and for a command beside it."""
    if paths.control_socket is not None:
        return paths.control_socket
    if paths.state_dir == SYSTEM_STATE:
        return Path("/run/edgeagent/control.sock")
    return paths.state_dir / "control.sock"


def password(config: Mqtt) -> str | None:
    """Return the broker password, read now so that it is never kept in a configuration.

    Raises:
        ConfigError: The file cannot be read.
    """
    if config.password_file is None:
        return None
    try:
        return config.password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"mqtt.password_file: cannot be read: {err}") from err


def _section(source: str, name: str, table: Any) -> Any:
    if not isinstance(table, dict):
        raise ConfigError(f"{source}: [{name}] must be a section")
    kind = SECTIONS[name]
    known = {f.name: f for f in fields(kind)}
    _check_names(source, f"[{name}] key", table, known)
    hints = get_type_hints(kind)
    values = {
        key: _value(f"{source}: {name}.{key}", value, hints[key], known[key])
        for key, value in table.items()
    }
    return kind(**values)


def _check_names(
    source: str, what: str, found: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
    for name in found:
        if name not in known:
            raise ConfigError(
                f"{source}: {what} {name!r} does not exist; known are {', '.join(sorted(known))}"
            )


def _value(where: str, value: Any, hint: Any, spec: Field[Any]) -> Any:
    """Convert and check one value."""
    if get_origin(hint) is types.UnionType:  # X | None
        hint = get_args(hint)[0]
    if hint is Path:
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{where}: expected a path, got {value!r}")
        return Path(value)
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where}: expected a list of strings, got {value!r}")
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: expected {_TYPE_NAMES[hint]}, got {value!r}")
    return _bounded(where, value, spec)


def _bounded(where: str, value: Any, spec: Field[Any]) -> Any:
    low, high, choices = (spec.metadata[k] for k in ("low", "high", "choices"))
    if low is not None and not low <= value <= high:
        unit = f" {spec.metadata['unit']}" if spec.metadata["unit"] else ""
        raise ConfigError(f"{where}: expected {low:g} to {high:g}{unit}, got {value!r}")
    if choices and value not in choices:
        raise ConfigError(f"{where}: expected one of {', '.join(map(str, choices))}, got {value!r}")
    return value


def _check_whole(config: Config, source: str) -> None:
    """Check what one value alone does not show."""
    name = config.node.name
    if not NODE_PATTERN.fullmatch(name):
        raise ConfigError(
            f"{source}: node.name: expected up to 63 of A-Z a-z 0-9 . _ -, got {name!r}"
        )
    if name == "reply":
        raise ConfigError(f"{source}: node.name: 'reply' is taken by the reply topics")
    _check_topics(config, source)
    place = config.update.source
    if place != BROKER and not place.startswith(("/", "http://", "https://")):
        raise ConfigError(
            f"{source}: update.source: expected mqtt, a full path or a URL, got {place!r}"
        )
    if any(not prefix.endswith("/") for prefix in config.mqtt.reply_prefixes):
        raise ConfigError(f"{source}: mqtt.reply_prefixes: each must end with '/'")
    if (config.mqtt.tls_cert_file is None) != (config.mqtt.tls_key_file is None):
        raise ConfigError(f"{source}: mqtt.tls_cert_file and mqtt.tls_key_file go together")
    try:
        parse_cpus(config.engine.cpus)
    except ConfigError as err:
        raise ConfigError(f"{source}: engine.{err}") from err
    try:
        parse_window(config.update.window)
    except ConfigError as err:
        raise ConfigError(f"{source}: update.window: {err}") from err
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", config.update.repo):
        raise ConfigError(f"{source}: update.repo: expected 1 to 64 of A-Z a-z 0-9 . _ -")


def _check_topics(config: Config, source: str) -> None:
    try:
        check_topic_name(config.mqtt.prefix)
        for prefix in config.mqtt.reply_prefixes:
            check_topic_name(prefix.removesuffix("/"))
    except ProtocolError as err:
        detail = str(err).removeprefix("reply topic ")
        raise ConfigError(f"{source}: mqtt.prefix or mqtt.reply_prefixes: {detail}") from err
    for key in ("prefix", "status_topic"):
        try:
            check_topic_name(getattr(config.home_assistant, key))
        except ProtocolError as err:
            detail = str(err).removeprefix("reply topic ")
            raise ConfigError(f"{source}: home_assistant.{key}: {detail}") from err


_TYPE_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}

_HEADER = """# Configuration

Written by `python -m edgeagent.config`; a test compares it with the code.

One TOML file, `/etc/edgeagent/edgeagent.toml`; without it every default holds. A key that does not
exist is an error (exit code 78, which systemd does not restart).
"""


def markdown() -> str:
    """Return ``docs/configuration.md``."""
    lines = [_HEADER]
    for name, kind in SECTIONS.items():
        lines += [f"## [{name}]", "", str(kind.__doc__), ""]
        lines += ["| key | default | unit, bounds | meaning |", "|---|---|---|---|"]
        lines += [_row(spec) for spec in fields(kind)]
        lines.append("")
    return "\n".join(lines)


def _row(spec: Field[Any]) -> str:
    meta = spec.metadata
    shown = meta["shown"]
    if shown is None:
        value = spec.default
        shown = "absent" if value is None else f"`{_toml(value)}`"
    bounds = ", ".join(map(str, meta["choices"]))
    if meta["low"] is not None:
        bounds = f"{meta['low']:g}–{meta['high']:.10g} {meta['unit']}".strip()  # noqa: RUF001
    return f"| `{spec.name}` | {shown} | {bounds} | {meta['doc']} |"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    return f'"{value}"' if isinstance(value, str | Path) else f"{value:g}"


if __name__ == "__main__":
    sys.stdout.write(markdown())
