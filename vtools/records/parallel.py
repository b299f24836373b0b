"""Parallel work on items, in threads or processes, with results in the items' order."""

import multiprocessing
import os
import queue
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from vtools import process
from vtools.process import Failure

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH = 1 << 18  # bytes per batch for a worker process
AHEAD = 4 << 20  # bytes read ahead of the worker processes, whatever the size of an item
OVERHEAD = 1 << 10  # bytes that an item costs beyond its size
BATCH_WAIT = 0.05  # seconds that items wait at most for a full batch, when input or work is slow


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], jobs: int = 1, ahead: int | None = None,
    pool: Executor | None = None,
) -> Generator[tuple[Item, Result]]:  # fmt: skip
    """Yield every item with its result, in the order of the items, working on `jobs` at a time.

    A thread reads the items, at most `ahead` (4 * jobs) of them in advance, so a finished result never waits for more
    input. Exceptions of reading or working are raised in their place, after all earlier results. Pass a `pool` to
    reuse its threads: each new thread takes memory of its own.
    """
    return _in_order(pool or ThreadPoolExecutor(jobs), work, items, ahead or 4 * jobs, lent=pool is not None)


def in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], jobs: int, size: Callable[[Item], int]
) -> Iterator[tuple[Item, Result]]:
    """`in_threads` for CPU-bound work: in forked processes, reading ahead a limited number of bytes."""
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(jobs, fork, initializer=process.child_of_pool, initargs=(os.getpid(),))
    with process.signals_held():  # an exception inside fork hooks is lost
        pool.submit(int).result()  # fork the workers before starting threads
    try:
        weigh = lambda item: size(item) + OVERHEAD  # noqa: E731
        yield from _in_order(pool, work, items, max(AHEAD, 4 * jobs * BATCH), weigh, BATCH)
    except BrokenProcessPool:
        raise Failure(
            "a worker process was killed (out of memory?); the output ends at the last whole record; lower -j"
        ) from None


def _in_order(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int,
    weigh: Callable[[Item], int] = lambda item: 1, batch: int = 1, lent: bool = False,
) -> Generator[tuple[Item, Result]]:  # fmt: skip
    line: queue.SimpleQueue[tuple[list[Item], Future[Done[Result]]] | BaseException | None] = queue.SimpleQueue()
    slot_freed = threading.Condition()
    held: list[Item] = []  # read, but not yet submitted
    held_weight = under_way = 0
    stopped = False

    def hand_over() -> None:
        nonlocal held, held_weight
        with slot_freed:
            if held and not stopped:
                given, held, held_weight = held, [], 0
                line.put((given, pool.submit(_each, work, given)))

    def read() -> None:
        nonlocal held_weight, under_way
        end = None
        try:
            for item in items:
                with slot_freed:
                    while under_way >= ahead and not stopped:
                        slot_freed.wait()
                    if stopped:
                        return
                    held.append(item)
                    held_weight += weigh(item)
                    under_way += weigh(item)
                if held_weight >= batch:
                    hand_over()
            hand_over()
        except BaseException as error:
            end = error
            hand_over()
        finally:
            line.put(end)

    threading.Thread(target=read, daemon=True, name="reader").start()
    ended = False
    try:
        while True:
            try:
                entry = line.get(timeout=BATCH_WAIT)
            except queue.Empty:
                hand_over()
                continue
            if not isinstance(entry, tuple):
                break
            given, future = entry
            while not wait([future], BATCH_WAIT).done:
                hand_over()
            results, error = future.result()
            yield from zip(given, results, strict=error is None)
            if error:
                raise error
            with slot_freed:
                under_way -= sum(map(weigh, given))
                slot_freed.notify()
        if entry:
            raise entry
        ended = True
    finally:
        with slot_freed:
            stopped = True
            slot_freed.notify()
        if not lent:
            pool.shutdown(wait=ended, cancel_futures=True)


Done = tuple[list[Result], Exception | None]


def _each(work: Callable[[Item], Result], items: list[Item]) -> Done[Result]:
    """The results of a batch, and the exception that ended it early."""
    results: list[Result] = []
    try:
        for item in items:
            results.append(work(item))  # not `map`, which would end at a StopIteration of the work
    except Exception as error:
        if multiprocessing.parent_process():
            error.add_note(traceback.format_exc())  # the traceback itself stays in this process
        return results, error
    return results, None
