import pytest

from tests.ota import fuzz


@pytest.mark.parametrize("what", ["metadata", "wire"])
def test_mutated_input_gives_typed_errors_within_bounds(what):
    assert fuzz.run(what, 1.5, seed=1)["cases"] > 0
