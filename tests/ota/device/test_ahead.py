import threading

import pytest

from ota.device.ahead import running_ahead


def test_all_items_come_in_order():
    with running_ahead(iter(range(1000)), 3) as items:
        assert list(items) == list(range(1000))


def test_no_more_are_made_than_may_wait():
    made, waits = [], threading.Event()

    def items():
        for k in range(100):
            made.append(k)
            if k == 2:  # two wait, this one is at the door
                waits.set()
            yield k

    with running_ahead(items(), 2) as used:
        assert waits.wait(30)
        assert made == [0, 1, 2]
        assert next(used) == 0
    assert len(made) <= 5


def test_an_error_is_raised_where_the_items_are_used():
    def items():
        yield 1
        raise ValueError("no more")

    with running_ahead(items()) as used:
        assert next(used) == 1
        with pytest.raises(ValueError, match="no more"):
            next(used)


def test_who_leaves_early_leaves_no_thread():
    before = threading.active_count()
    with pytest.raises(KeyError), running_ahead(iter(range(10**9)), 2) as used:
        next(used)
        raise KeyError
    assert threading.active_count() == before
