from pathlib import Path

import pytest

from edgeagent.config import Update
from edgeagent.errors import ConfigError
from edgeagent.update_source import UpdateSource, medium


@pytest.mark.parametrize(
    ("update", "fields"),
    [
        (Update(), {}),
        (Update(source="/srv/models"), {"directory": "/srv/models"}),
        (Update(source="https://a/b"), {"http": {"url": "https://a/b", "tls": None}}),
        (
            Update(source="https://a/b", source_ca_file=Path("/etc/ca.pem")),
            {"http": {"url": "https://a/b", "tls": {"ca_file": "/etc/ca.pem"}}},
        ),
    ],
)
def test_the_configured_place_is_told(update, fields):
    assert UpdateSource(update).fields("poll", "idle") == fields


def test_a_medium_is_for_one_run():
    source = UpdateSource(Update(source="/srv/models"))
    source.use(Path("/media/stick"))
    assert source.fields("install", "idle") == {"directory": "/media/stick"}
    assert source.fields("poll", "idle") == {"directory": "/srv/models"}


@pytest.mark.parametrize("phase", ["idle", "failed", "rolled_back"])
def test_what_ended_is_not_gone_on_with_from_the_medium(phase):
    source = UpdateSource(Update())
    source.use(Path("/media/stick"))
    source.fields("install", "idle")
    assert source.fields("poll", phase) == {}


def test_what_waits_for_a_condition_goes_on_from_the_medium_until_somebody_asks_anew():
    source = UpdateSource(Update())
    source.use(Path("/media/stick"))
    source.fields("install", "idle")
    assert source.fields("poll", "gated") == {"directory": "/media/stick"}
    assert source.fields("poll", "gated") == {"directory": "/media/stick"}
    assert source.fields("install", "gated") == {}
    assert source.fields("poll", "gated") == {}


def test_a_medium_must_hold_a_published_repository(tmp_path):
    with pytest.raises(ConfigError, match="found no metadata/timestamp.json; is the medium"):
        medium(str(tmp_path))
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "timestamp.json").write_text("{}")
    assert medium(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("value", [None, 3, "", "stick", ["/media"]])
def test_a_medium_is_named_by_its_full_path(value):
    with pytest.raises(ConfigError, match="expected the full path"):
        medium(value)
