"""Work on many files with several processes: in order, in bounded memory, and nobody is left behind.

The processes are forked, so that they need not import anything again.
"""

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from mask_former.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # batches a process that are handed out or done, but not taken yet


def parallel_map(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, batch: int = 1
) -> Iterator[Result]:
    """work(item) of every item, in the order of the items.

    workers: processes; with 1, all is done in this one. batch: items that travel together; more than 1 pays
    when one takes less than a few milliseconds. An exception of `work` is raised here, in its item's turn.
    The processes end with the iteration, and by themselves when this process is killed. InputError when one
    of them was killed.
    """
    if workers == 1:
        yield from map(work, items)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), initializer=_start_worker)
    try:
        waiting: deque[Future[list[Result]]] = deque()
        batches = _batches(items, batch)
        for some in itertools.islice(batches, AHEAD * workers):
            waiting.append(pool.submit(_work_on, work, some))
        while waiting:
            results = waiting.popleft().result()
            for some in itertools.islice(batches, 1):
                waiting.append(pool.submit(_work_on, work, some))
            yield from results
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed, probably for want of memory; run again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while some := list(itertools.islice(remaining, size)):
        yield some


def _work_on(work: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [work(item) for item in items]


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the others
    # Zero threads, not one: going down to one, OpenCV waits for threads that a fork does not copy.
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers to end, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
