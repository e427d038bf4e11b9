import re
import tomllib
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from edgeagent import config
from edgeagent.config import SECTIONS, Config, Mqtt, load, markdown, parse, password
from edgeagent.errors import EX_CONFIG, ConfigError
from edgeagent.paths import bundled_model
from edgeagent.protocol.topics import NODE_PATTERN

ROOT = Path(__file__).parents[1]


def refused(text):
    with pytest.raises(ConfigError) as error:
        parse(text, "agent.toml")
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith("agent.toml: ")
    assert error.value.exit_code == EX_CONFIG
    return line.removeprefix("agent.toml: ")


def test_nothing_has_to_be_written():
    settings = parse("", "agent.toml")
    assert settings == Config()
    assert settings.model.path == bundled_model()
    assert 1 <= settings.engine.threads <= 4
    assert NODE_PATTERN.fullmatch(settings.node.name)
    assert settings.query.max_queue == 32
    assert settings.mqtt.reply_prefixes == ("edge/v1/reply/", "reply/")


def test_every_default_is_within_its_own_bounds():
    for name, kind in SECTIONS.items():
        section = kind()
        for spec in fields(kind):
            value = getattr(section, spec.name)
            low, high = spec.metadata["low"], spec.metadata["high"]
            assert low is None or low <= value <= high, f"{name}.{spec.name}"
            assert spec.metadata["doc"]


def test_values_are_read_in_their_types():
    settings = parse(
        '[node]\nname = "kitchen"\n[mqtt]\nport = 8883\ntls = true\nreply_prefixes = ["a/"]\n'
        '[telemetry]\ninterval_s = 2\n[power]\nsysroot = "/tmp"\n',
        "agent.toml",
    )
    assert settings.node.name == "kitchen"
    assert (settings.mqtt.port, settings.mqtt.tls) == (8883, True)
    assert settings.mqtt.reply_prefixes == ("a/",)
    assert isinstance(settings.telemetry.interval_s, float)
    assert settings.power.sysroot == Path("/tmp")


def test_a_configuration_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Config().node.name = "x"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x", "not TOML: "),
        ("[mqqt]\n", "section 'mqqt' does not exist; known are engine, home_assistant, model"),
        ("[mqtt]\nprot = 1\n", "[mqtt] key 'prot' does not exist; known are host, keepalive_s,"),
        ("node = 1\n", "[node] must be a section"),
        ("[mqtt]\nport = 0\n", "mqtt.port: expected 1 to 65535, got 0"),
        ("[mqtt]\nport = true\n", "mqtt.port: expected an integer, got True"),
        ('[mqtt]\nport = "1883"\n', "mqtt.port: expected an integer, got '1883'"),
        ("[mqtt]\nhost = 1\n", "mqtt.host: expected a string, got 1"),
        ("[mqtt]\ntls = 1\n", "mqtt.tls: expected true or false, got 1"),
        ('[mqtt]\nprotocol = "4"\n', "mqtt.protocol: expected one of auto, 5, 3.1.1, got '4'"),
        ('[mqtt]\nreply_prefixes = "a/"\n', "mqtt.reply_prefixes: expected a list of strings"),
        ('[mqtt]\nreply_prefixes = ["a"]\n', "mqtt.reply_prefixes: each must end with '/'"),
        ('[mqtt]\nreply_prefixes = ["#/"]\n', "mqtt.prefix or mqtt.reply_prefixes: has a wildcard"),
        ('[mqtt]\nprefix = "$x"\n', "mqtt.prefix or mqtt.reply_prefixes: starts with '$'"),
        ('[mqtt]\ntls_cert_file = "x"\n', "mqtt.tls_cert_file and mqtt.tls_key_file go together"),
        ("[telemetry]\ninterval_s = 0.1\n", "telemetry.interval_s: expected 1 to 3600 s, got 0.1"),
        ("[telemetry]\ninterval_s = nan\n", "telemetry.interval_s: expected 1 to 3600 s, got nan"),
        ("[model]\npath = 1\n", "model.path: expected a path, got 1"),
        ('[model]\npath = ""\n', "model.path: expected a path, got ''"),
        ('[node]\nname = "a/b"\n', "node.name: expected up to 63 of"),
        ('[node]\nname = "reply"\n', "node.name: 'reply' is taken by the reply topics"),
        ('[update]\nrepo = "a/b"\n', "update.repo: expected 1 to 64 of"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(text, line):
    assert refused(text).startswith(line)


def test_a_file_is_named_when_it_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/none.toml: cannot be read")):
        load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "latin.toml")


def test_without_a_file_the_systems_is_read_if_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "edgeagent.toml")
    assert load() == Config()
    (tmp_path / "edgeagent.toml").write_text('[node]\nname = "here"\n')
    assert load().node.name == "here"


def test_systemd_brings_the_credential_and_the_state_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")
    assert Config().mqtt.password_file is None
    (tmp_path / "mqtt-password").write_text("secret\n")
    settings = parse("", "agent.toml")
    assert settings.paths.state_dir == Path("/var/lib/a")
    assert password(settings.mqtt) == "secret"


def test_a_password_file_that_cannot_be_read_is_an_error_of_the_operator(tmp_path):
    assert password(Mqtt(password_file=None)) is None
    with pytest.raises(ConfigError, match=r"mqtt.password_file: cannot be read"):
        password(Mqtt(password_file=tmp_path / "none"))


@pytest.mark.parametrize(
    ("host", "node"),
    [
        ("Kitchen-Pi.local", "Kitchen-Pi"),
        ("küche", "k-che"),
        ("reply", "edge"),
        ("---", "edge"),
        ("", "edge"),
        ("x" * 80, "x" * 63),
    ],
)
def test_the_host_name_becomes_a_topic_level(host, node, monkeypatch):
    monkeypatch.setattr(config.socket, "gethostname", lambda: host)
    assert Config().node.name == node


def test_the_page_about_the_configuration_is_what_the_code_says():
    assert (ROOT / "docs" / "configuration.md").read_text() == markdown()


def test_the_page_can_be_typed_in_as_it_stands():
    lines, section = [], ""
    for line in markdown().splitlines():
        if match := re.fullmatch(r"## \[(\w+)\]", line):
            section = match[1]
            lines.append(f"[{section}]")
        elif match := re.match(r"\| `(\w+)` \| `([^`$][^`]*)` \|", line):
            lines.append(f"{match[1]} = {match[2]}")
    text = "\n".join(lines)
    assert tomllib.loads(text)
    parse(text, "docs/configuration.md")
