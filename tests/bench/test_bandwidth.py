"""The roofline is that of the better of two kinds of memory."""

import pytest

from edgeagent.bench import bandwidth


def test_the_probe_takes_the_better_of_buffer_and_files(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(bytes(3 << 16))
    rates = {1 << 16: 20e9, 3 << 16: 25e9}
    monkeypatch.setattr(bandwidth._core, "read_bandwidth", lambda data, _: (rates[len(data)], 0))
    alone, both = bandwidth.Probe(1 << 16), bandwidth.Probe(1 << 16, [path])
    assert (alone.read(1), both.read(1)) == (20, pytest.approx(25))
    rates[1 << 16] = 30e9
    assert both.median(1) == 30
    alone.close()
    both.close()


def test_several_files_are_bytes_over_seconds(tmp_path, monkeypatch):
    small, large = tmp_path / "a", tmp_path / "b"
    small.write_bytes(bytes(1 << 16))
    large.write_bytes(bytes(3 << 16))
    rates = {1 << 16: 10e9, 3 << 16: 30e9}
    monkeypatch.setattr(bandwidth._core, "read_bandwidth", lambda data, _: (rates[len(data)], 0))
    assert bandwidth.read_files([small, large], 1) == pytest.approx(20)
