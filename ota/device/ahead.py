"""Work that runs ahead of who uses it, on another core where there is one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

AHEAD_PIECES = 16
"""Pieces of at most 120 KiB that wait, 2 MiB: neither side waits for the other's stutter."""


@contextmanager
def running_ahead(items: Iterator[T], most: int = AHEAD_PIECES) -> Iterator[Iterator[T]]:
    """Let a thread make ``items``, at most ``most`` of them before they are asked for.

    What the thread raises is raised where the items are used, after those before it.  At the end of
    the context the thread is gone, whether all items were used or not: what they were made from may
    be closed.
    """
    made: deque[T] = deque()
    room, there = threading.Semaphore(most), threading.Semaphore(0)
    failed: list[BaseException] = []
    left = False

    def work() -> None:
        try:
            for item in items:
                room.acquire()
                if left:
                    return
                made.append(item)
                there.release()
        except BaseException as err:  # noqa: BLE001 - whatever it is, the user must see it
            failed.append(err)
        finally:
            there.release()  # with nothing made: the end

    def used() -> Iterator[T]:
        while True:
            there.acquire()
            if not made:
                break
            yield made.popleft()
            room.release()
        if failed:
            raise failed[0]

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        yield used()
    finally:
        left = True
        room.release()
        thread.join()
