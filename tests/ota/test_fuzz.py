import pytest

from tests import fuzzing
from tests.ota.fuzz import TARGETS


@pytest.mark.parametrize(("what", "cases"), [("metadata", 80), ("wire", 3000)])
def test_damaged_input_gives_typed_errors_within_bounds(tmp_path, what, cases):
    tally = fuzzing.run(TARGETS[what](tmp_path), seed=1, cases=cases)
    assert tally.cases == cases
    assert tally.refused.total() > cases / 3
    assert len(tally.reasons) > 5
