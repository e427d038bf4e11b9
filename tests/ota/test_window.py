import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.window import (
    FIRST_WAIT_S,
    FIRST_WINDOW,
    GROW_AFTER,
    MAX_WAIT_S,
    MAX_WINDOW,
    MIN_PIECE_BYTES,
    Window,
)

LIMIT = 126 << 10


def test_the_window_opens_fast_then_slowly_and_halves_at_a_loss():
    window = Window(LIMIT)
    assert window.n_requests == FIRST_WINDOW
    for _ in range(100):
        window.answered(0.1, was_repeated=False)
    assert window.n_requests == MAX_WINDOW
    window.lost(50, 100)
    assert window.n_requests == MAX_WINDOW // 2
    for _ in range(MAX_WINDOW // 2):
        window.answered(0.1, was_repeated=False)
    assert window.size == pytest.approx(MAX_WINDOW // 2 + 1, abs=0.1)


def test_losses_of_one_accident_count_once():
    window = Window(LIMIT, size=16)
    for request in range(90, 101):
        window.lost(request, 100)
    assert window.size == 8
    window.lost(101, 110)
    assert window.size == 4


def test_at_window_one_pieces_shrink_and_grow_again_after_a_long_good_run():
    window = Window(64 << 10, size=1)
    for request in range(1, 20):
        window.lost(request, request)
    assert window.piece_bytes == MIN_PIECE_BYTES
    for _ in range(GROW_AFTER):
        window.answered(0.1, was_repeated=False)
    assert window.piece_bytes == 2 * MIN_PIECE_BYTES


def test_a_queue_of_our_own_making_ends_growth():
    window = Window(LIMIT)
    window.answered(0.1, was_repeated=False)
    for _ in range(100):
        window.answered(3.0, was_repeated=False)
    assert window.n_requests < MAX_WINDOW
    assert FIRST_WAIT_S < window.wait_s <= MAX_WAIT_S


def test_a_repeated_request_tells_no_time():
    window = Window(LIMIT)
    window.answered(9.0, was_repeated=True)
    assert window.round_trip_s is None


def test_a_limit_that_is_learnt_holds():
    window = Window(LIMIT)
    window.limit(1000)
    for _ in range(3 * GROW_AFTER):
        window.answered(0.1, was_repeated=False)
    window.lost(1, 1)
    assert window.piece_bytes <= 1000


@given(st.lists(st.one_of(st.floats(0, 60), st.just("lost")), max_size=200))
def test_the_bounds_hold_whatever_happens(events):
    window = Window(LIMIT)
    for number, event in enumerate(events):
        if event == "lost":
            window.lost(number, number)
        else:
            window.answered(event, was_repeated=False)
        assert 1 <= window.n_requests <= MAX_WINDOW
        assert MIN_PIECE_BYTES <= window.piece_bytes <= LIMIT
        assert FIRST_WAIT_S <= window.wait_s <= MAX_WAIT_S


def test_a_path_that_became_slow_is_not_asked_twice_for_everything():
    """Answers to repeated requests tell no time: waits grow until one does."""
    window = Window(LIMIT)
    first_s = window.wait_s
    window.lost(1, 1)
    window.answered(5.0, was_repeated=True)
    assert window.wait_s == 2 * first_s
    window.lost(2, 2)
    assert window.wait_s == 4 * first_s
    window.answered(0.1, was_repeated=False)
    assert window.wait_s == first_s
