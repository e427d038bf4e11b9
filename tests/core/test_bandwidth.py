"""The probe of the memory: it must read every byte, with any number of threads."""

import numpy as np
import pytest

from edgeagent import _core


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n_bytes", [1, 7, 8, 255, 256, 257, 65536 + 13])
def test_every_byte_is_read(n_bytes, threads):
    data = np.random.default_rng(n_bytes).integers(0, 256, n_bytes, np.uint8)
    words = np.zeros(-(-n_bytes // 8) * 8, np.uint8)
    words[:n_bytes] = data
    rate, fold = _core.read_bandwidth(data, threads)
    assert fold == int(np.bitwise_xor.reduce(words.view(np.uint64)))
    assert rate > 0


def test_a_share_that_is_unaligned_is_read_too():
    data = np.arange(4099, dtype=np.uint8)
    whole, first = (_core.read_bandwidth(part)[1] for part in (data[3:], data[3:11]))
    assert whole == first ^ _core.read_bandwidth(data[11:])[1]


def test_no_bytes_and_no_threads_are_refused():
    with pytest.raises(ValueError, match="at least one byte"):
        _core.read_bandwidth(b"")
    with pytest.raises(ValueError, match="threads"):
        _core.read_bandwidth(b"x", 0)
