import pytest
from hypothesis import given
from hypothesis import strategies as st

import ota.errors
from ota.retry import CLASSES, RULES, RetryClass, class_of, retry_after_s, uncounted_after_s

CODES = {
    kind.code
    for kind in vars(ota.errors).values()
    if isinstance(kind, type) and issubclass(kind, ota.errors.UpdateError)
}


def test_every_code_of_the_table_exists_and_every_class_is_used():
    assert CODES - {"payload_unusable"} <= set(CLASSES)
    assert {class_of(code) for code in CODES} == set(RetryClass)


@pytest.mark.parametrize("code", sorted(CODES))
def test_waits_grow_up_to_the_longest_and_end_with_the_budget(code):
    rule = RULES[class_of(code)]
    budget = 100 if rule.budget is None else rule.budget
    waits = [retry_after_s(code, attempt, 0.999) for attempt in range(1, budget + 1)]
    assert waits == sorted(waits) and all(wait <= rule.longest_s for wait in waits)
    assert (retry_after_s(code, budget + 1, 0) is None) is (rule.budget is not None)


@given(st.sampled_from(sorted(CLASSES)), st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_jitter_keeps_between_half_and_the_whole_of_a_step(code, attempt, draw):
    wait, whole = retry_after_s(code, attempt, draw), retry_after_s(code, attempt, 1)
    assert wait is whole is None or whole / 2 <= wait <= whole


@pytest.mark.parametrize("code", sorted(CODES))
def test_what_cannot_be_counted_waits_the_longest_from_the_first_time_on(code):
    rule = RULES[class_of(code)]
    wait = uncounted_after_s(code, 0.5)
    assert wait == (None if rule.budget == 0 else rule.longest_s * 0.75)
