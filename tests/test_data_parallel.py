import multiprocessing
import os
import signal
import time

import pytest

from mask_former.data.parallel import AHEAD, parallel_map
from mask_former.errors import InputError


def square(number: int) -> int:
    time.sleep(0.002 * (number % 3))  # so that the processes overtake each other
    return number**2


def refuse_seven(number: int) -> int:
    if number == 7:
        raise InputError("seven: not today")
    return number


def die_at_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def process(_: int) -> int:
    time.sleep(0.01)
    return os.getpid()


@pytest.mark.parametrize(("workers", "batch"), [(1, 1), (2, 1), (3, 4)])
def test_results_come_in_the_order_of_the_items(workers, batch):
    results = list(parallel_map(square, range(50), workers, batch))
    assert results == [number**2 for number in range(50)]
    assert list(parallel_map(square, [], workers, batch)) == []
    assert not multiprocessing.active_children()


def test_the_work_is_done_elsewhere_unless_there_is_one_worker():
    others = set(parallel_map(process, range(20), 2))
    assert len(others) == 2 and os.getpid() not in others
    assert set(parallel_map(process, range(3), 1)) == {os.getpid()}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_comes_in_its_items_turn(workers):
    results = parallel_map(refuse_seven, range(1000), workers)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(InputError, match="seven: not today"):
        next(results)
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_reported_in_a_line():
    with pytest.raises(InputError, match="a worker process was killed, .* run again with fewer --workers"):
        list(parallel_map(die_at_seven, range(20), 2))
    assert not multiprocessing.active_children()


def test_no_more_items_are_taken_than_will_be_needed_soon():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = parallel_map(square, items(), 2, batch=3)
    assert next(results) == 0
    assert len(taken) <= 3 * (2 * AHEAD + 1)
    results.close()
    assert not multiprocessing.active_children()
