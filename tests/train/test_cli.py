"""The command line."""

from __future__ import annotations

import importlib.util

import pytest

from edgeagent.train import cli


def test_minutes_and_steps_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--data", "d", "--out", "o", "--minutes", "1", "--steps", "1"])
    assert "not allowed with" in capsys.readouterr().err


def test_a_missing_library_is_one_clear_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else 1)
    assert cli.main(["--data", "d", "--out", "o"]) == 78
    message = capsys.readouterr().err
    assert message == "edgeagent train: needs torch; install the extra edgeagent[train]\n"
