"""Processes that work for this one and end with it.

Python's own `multiprocessing.Pool` waits for ever for what a killed process had in hand, and its processes answer
Ctrl-C with a traceback each.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait


@contextmanager
def parallel_map(
    num_workers: int, method: str = "fork", begin: Callable[[], object] = lambda: None
) -> Iterator[Callable]:
    """A `map` of processes, which are gone on every way out; BrokenProcessPool if one of them was killed. Each calls
    `begin` first, which a forked process need not be sent."""
    initializer = partial(_start, begin) if method == "fork" else follow_the_parent
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context(method), initializer=initializer)
    try:
        yield partial(_in_order, pool, 4 * num_workers)
    except BrokenProcessPool:
        raise  # it ends the others itself
    except BaseException:
        # What is begun is finished: a process killed with a lock of the pool's in hand would hold up our own end.
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown()


def _in_order(pool: ProcessPoolExecutor, num_ahead: int, function: Callable, items: Iterable) -> Iterator:
    """Results in the order of the items, with no more than so many in hand."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > num_ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _start(begin: Callable[[], object]) -> None:
    follow_the_parent()
    begin()


def follow_the_parent() -> None:
    """In a process of the pool: Ctrl-C is its parent's to answer, SIGTERM just ends it, and so does the parent's end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "in a process of the pool"
    wait([parent.sentinel])
    os._exit(1)


def kill(processes: Iterable) -> None:
    """And wait until they are gone."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(timeout=5)
