import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.cpus import MAX_CPU, parse_cpus
from edgeagent.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "cpus"), [("", ()), ("3", (3,)), ("0-3", (0, 1, 2, 3)), ("0-1,4,6-7", (0, 1, 4, 6, 7))]
)
def test_lists_as_the_kernel_writes_them(text, cpus):
    assert parse_cpus(text) == set(cpus)


@pytest.mark.parametrize("text", ["a", "-1", "1-", "3-1", "0 1", "1-2-3", "²", str(MAX_CPU + 1)])
def test_others_are_refused_in_one_line(text):
    with pytest.raises(ConfigError, match="cpus: ") as caught:
        parse_cpus(text)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="0123456789,- x", max_size=20))
def test_nothing_else_escapes(text):
    with contextlib.suppress(ConfigError):
        assert all(0 <= cpu <= MAX_CPU for cpu in parse_cpus(text))
