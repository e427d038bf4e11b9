"""A few hundred rounds of what `make fuzz-readers` does for ten minutes each."""

import random

import pytest

from bench.fuzz_readers import READERS, fuzz


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_are_read_or_refused(kind):
    result = fuzz(kind, random.Random(1), rounds=150)
    assert result["refused"] > 50
    assert result["reasons"] > 10
