import pytest

from edgeagent.errors import ConfigError
from edgeagent.hours import DAY_MIN, parse_window


@pytest.mark.parametrize(
    ("text", "window"),
    [("", (0, DAY_MIN)), ("22:00-05:30", (1320, 330)), ("00:00-23:59", (0, 1439))],
)
def test_a_window_is_read(text, window):
    assert parse_window(text) == window


@pytest.mark.parametrize("text", ["22:00", "22-5", "24:00-01:00", "1:00-2:00", "03:00-03:00", " "])
def test_what_is_no_window_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match="expected two times of day") as caught:
        parse_window(text)
    assert "\n" not in str(caught.value)
