import pytest

from ota.device.flash import DAY_S, CountingCalls, FlashLedger
from ota.errors import FlashBudget
from ota.storage import Disk

NOON_S = 100 * DAY_S + DAY_S / 2


def ledger(path, budget=1000):
    calls = CountingCalls()
    disk = Disk(calls)
    return FlashLedger(disk, path / "flash.json", calls, budget), disk


def test_what_runs_wrote_adds_up_over_a_day(tmp_path):
    for _ in range(2):
        book, disk = ledger(tmp_path)
        book.check(400, NOON_S)  # the first one's bytes and these are within the budget
        disk.write(tmp_path / "f", [b"x" * 400])
        assert book.settle(NOON_S) == 400  # its own record is not counted
    book, _ = ledger(tmp_path)
    with pytest.raises(FlashBudget) as caught:
        book.check(400, NOON_S)
    assert caught.value.retry_after_s


def test_a_new_day_has_a_new_budget_and_a_clock_that_goes_back_has_not(tmp_path):
    book, disk = ledger(tmp_path)
    disk.write(tmp_path / "f", [b"x" * 900])
    book.settle(NOON_S)
    book.check(900, NOON_S + DAY_S)
    for earlier in (NOON_S - DAY_S, 0.0):
        with pytest.raises(FlashBudget):
            book.check(900, earlier)


def test_an_update_larger_than_the_budget_goes_through_on_an_unused_day(tmp_path):
    book, _ = ledger(tmp_path, budget=10)
    book.check(10_000, NOON_S)


def test_without_a_budget_or_with_a_damaged_ledger_nothing_is_refused(tmp_path):
    book, disk = ledger(tmp_path, budget=None)
    disk.write(tmp_path / "f", [b"x" * 900])
    book.settle(NOON_S)
    book.check(10**9, NOON_S)
    for text in (b"", b"[]", b'{"day": "x", "bytes": 1}', b"{", b'{"day": 100}'):
        (tmp_path / "flash.json").write_bytes(text)
        ledger(tmp_path)[0].check(10**9, NOON_S)
