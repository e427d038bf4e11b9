"""Some rounds of what `make fuzz-readers` does for ten minutes each."""

import pytest

from bench.fuzz_readers import TARGETS
from tests import fuzzing


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(tmp_path, name):
    tally = fuzzing.run(TARGETS[name](tmp_path), 1, cases=150)
    assert sum(tally.refused.values()) > 50
    assert len(tally.reasons) > 10
