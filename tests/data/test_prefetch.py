"""Items made ahead by a thread."""

import gc
import threading
import time
import weakref

import pytest
import torch

from fastmpl.data.prefetch import Prefetcher

CPU = torch.device("cpu")


class Counter:
    """0, 1, 2, ... with what is being made at the moment."""

    def __init__(self) -> None:
        self.made, self.enough = 0, threading.Event()

    def __call__(self) -> int:
        self.made += 1
        if self.made >= 3:
            self.enough.set()
        return self.made - 1


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_come_in_order(depth: int) -> None:
    ahead = Prefetcher(Counter(), depth, CPU)
    assert [ahead.next() for _ in range(10)] == list(range(10))
    ahead.close()


def test_the_next_items_are_made_while_one_is_in_use() -> None:
    counter = Counter()
    ahead = Prefetcher(counter, 2, CPU)
    ahead.next()
    assert counter.enough.wait(20)  # two more, though nobody asked
    ahead.close()


def test_no_more_is_made_than_there_is_room_for() -> None:
    counter = Counter()
    ahead = Prefetcher(counter, 2, CPU)
    assert counter.enough.wait(20)
    time.sleep(0.3)
    assert counter.made == 3  # two that wait, and one in the maker's hands
    ahead.close()


def test_without_a_thread_nothing_is_made_ahead() -> None:
    counter = Counter()
    ahead = Prefetcher(counter, 0, CPU)
    ahead.next()
    assert counter.made == 1


def test_an_error_is_raised_where_its_item_is_asked_for_and_again_after() -> None:
    counter = Counter()

    def failing() -> int:
        if counter.made == 2:
            raise ValueError("no third one")
        return counter()

    ahead = Prefetcher(failing, 4, CPU)
    assert [ahead.next(), ahead.next()] == [0, 1]
    for _ in range(2):
        with pytest.raises(ValueError, match="no third one"):
            ahead.next()
    ahead.close()


def test_a_forgotten_one_takes_its_thread_with_it() -> None:
    ahead = Prefetcher(Counter(), 2, CPU)
    ahead.next()
    gone = weakref.ref(ahead)
    del ahead
    gc.collect()
    assert gone() is None
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]
