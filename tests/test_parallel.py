"""parallel: order, bounds and errors of work in threads and in processes."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import sys
import threading

import pytest
from running import wait_until

from vtools.process import Failure
from vtools.records.parallel import in_processes, in_threads


def test_results_keep_the_order_of_the_items():
    done = set()

    def work(item):
        if item % 3 == 0:
            wait_until(lambda: item + 1 in done)
        done.add(item)
        return -item

    assert list(in_threads(work, range(50), jobs=8)) == [(item, -item) for item in range(50)]


def reader_waits() -> bool:
    """Whether every thread that reads items waits for space."""
    frames = sys._current_frames()
    readers = [frames[thread.ident] for thread in threading.enumerate() if thread.name == "reader"]
    return bool(readers) and all(frame.f_code.co_name == "wait" for frame in readers)


@pytest.mark.parametrize("ahead", [1, 3])
def test_few_items_are_drawn_ahead_if_they_are_large(ahead):
    drawn = itertools.count()
    results = in_threads(lambda item: item, (next(drawn) for _ in range(100)), 2, ahead)
    next(results)
    wait_until(reader_waits)
    assert next(drawn) <= ahead + 2
    results.close()


def test_no_more_is_read_than_a_few_items_for_each_job():
    read = itertools.count()
    results = in_threads(lambda item: item, (next(read) for _ in range(1000)), jobs=2)
    next(results)
    wait_until(reader_waits)
    assert next(read) <= 1 + 4 * 2 + 1
    results.close()


def test_as_many_are_at_work_as_was_asked_for_and_no_more():
    lock, now, most = threading.Lock(), 0, 0
    met = threading.Barrier(3)

    def work(item):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        met.wait(30)  # passes only when three are here together
        with lock:
            now -= 1

    assert len(list(in_threads(work, range(12), jobs=3))) == 12
    assert most == 3


def test_a_finished_answer_does_not_wait_for_more_input():
    more = threading.Event()

    def items():
        yield 1
        assert more.wait(30)
        yield 2

    results = in_threads(lambda item: item * 10, items(), jobs=4)
    assert next(results) == (1, 10)
    more.set()
    assert next(results) == (2, 20)


def test_what_goes_wrong_is_raised_after_all_that_came_before():
    def items():
        yield from (1, 2, 3)
        raise Failure("torn")

    got = []
    with pytest.raises(Failure, match="torn"):
        got.extend(result for _, result in in_threads(lambda item: item, items(), jobs=4))
    got = []
    with pytest.raises(ZeroDivisionError):
        for item, _ in in_threads(lambda item: 1 // (3 - item), range(9), jobs=4):
            got.append(item)
    assert got == [0, 1, 2]


fork = multiprocessing.get_context("fork")
FINISHED, FAILED, BEGUN, MET = fork.Value("i", 0), fork.Event(), fork.Value("i", 0), fork.Barrier(6)


def count(value) -> None:
    with value.get_lock():
        value.value += 1


def late_at_three(item):
    if item == 3:  # the batches after it are finished before it
        wait_until(lambda: FINISHED.value > 9)
    count(FINISHED)
    return -item


def test_processes_give_the_same_results_in_the_same_order():
    found = list(in_processes(late_at_three, range(40), 3, lambda item: 100_000))
    assert found == [(item, -item) for item in range(40)]


def fails_at_fifty(apart, item):
    if item == 48 and apart:
        assert FAILED.wait(30)
    if item == 50:
        FAILED.set()
    return 6 // (50 - item)


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_what_goes_wrong_in_a_process_is_raised_after_all_that_came_before(size):
    FAILED.clear()
    work, got = functools.partial(fails_at_fifty, size > 1), []
    with pytest.raises(ZeroDivisionError) as raised:
        for item, _ in in_processes(work, range(60), 2, lambda item: size):
            got.append(item)
    assert got == list(range(50))
    assert "in fails_at_fifty" in "".join(raised.value.__notes__)


def meets_five_others(item):
    count(BEGUN)
    MET.wait(30)
    return item


def test_one_process_works_while_another_waits_and_the_input_is_slow():
    def items():
        for number in range(6):
            yield number
            wait_until(lambda: BEGUN.value > number)  # noqa: B023  no item comes before the last one is at work

    assert len(list(in_processes(meets_five_others, items(), 6, lambda item: 1))) == 6


def ends_at_three(number):
    return next(iter([number] if number != 3 else []))


@pytest.mark.parametrize(
    "run", [in_threads, lambda work, items: in_processes(work, items, 2, lambda item: 1)], ids=["threads", "processes"]
)
def test_work_that_ends_an_iteration_loses_no_item_unsaid(run):
    found = []
    with pytest.raises(RuntimeError, match="StopIteration"):
        for item, _ in run(ends_at_three, range(6)):
            found.append(item)
    assert found == [0, 1, 2]
