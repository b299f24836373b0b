"""A run of questions: several at a time, one that fails costs the others nothing, a rerun asks for the rest."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from vtools.inference import journal
from vtools.inference.batch_client import Attempt, Batches
from vtools.inference.budget import Spent
from vtools.inference.client import TOKENS, Client
from vtools.inference.endpoint import EndpointError
from vtools.inference.journal import Kind, Task
from vtools.inference.progress import Progress
from vtools.options import Common
from vtools.process import Failure, TryAgain, say
from vtools.records import filtering, jsonl, parallel
from vtools.records.jsonl import Record, Reject

AHEAD = 64  # questions per job that may be answered before an earlier one, which is slow, is
PATIENCE = 2.0  # seconds before it is said that answers are waited for
# A row, why there is none, or None if it is not needed; and whether an earlier run has asked for it.
Done = tuple[Record | Reject | None, bool]


def ask_all(
    tool: str, tasks: Iterable[Task], ask: Callable[[Task], Record], common: Common, kind: Kind, *,
    write: Callable[[jsonl.Output, Record], None] = jsonl.Output.write,
    seen: Callable[[Task, Record | None], None] = lambda task, record: None,
    needed: Callable[[Task], bool] = lambda task: True,
    unit: str = "answers", total: int | None = None, clients: Sequence[Client],
) -> str | None:  # fmt: skip
    """Each task through `ask`, which asks `clients`, in the order of the tasks; finished ones come from FILE.

    Every task is `seen` in that order with its row, None if it failed; then some may be no longer `needed`, which is
    asked in threads. These have no row of this run: what was under way follows after the rows that are.

    Rows of FILE that this run does not ask for follow after its own. A failed question does not affect the others; the
    returned text reports failures, and a rerun asks for them again. Raises Failure for what stops the run, after the
    answers that were under way are in the journal; FILE is then as it was. By batches, all is answered before the first
    row is written.
    """
    counts, out = filtering.Rejects(tool, common.rejects), common.out
    budget = next((client.budget for client in clients if client.budget), None)
    batches = next((client for client in clients if isinstance(client, Batches)), None)  # then it is the only client
    progress = Progress(tool, unit, total, common.quiet, budget)
    failed = None
    late: list[tuple[Task, Record]] = []
    workers = _Workers(tool, common.jobs, needed)
    with journal.keep(out, kind) as kept, jsonl.output(out) as output, progress, workers:

        def attempt(task: Task) -> Record | Reject:
            task.begun = kept.begun(task.key)
            try:
                return ask(task)
            except Reject as reject:
                return reject
            except (Spent, TryAgain, journal.OtherModel):
                raise
            except Failure as failure:
                if isinstance(failure, EndpointError) and failure.fatal:
                    raise
                return Reject("unanswered", str(failure))

        answered: Attempt = attempt
        if batches:
            tasks, answered = batches.settled(tool, tasks, attempt, kept.get, common.quiet)

        def work(task: Task) -> Done:
            if task.reject:
                return task.reject, False
            if (known := kept.get(task.key)) is not None:
                return known, True
            task.keep = kept.add
            try:
                made = answered(task)
            except _NotNeeded:
                return None, False
            if not isinstance(made, Reject):
                kept.add(made)
            return made, False

        for client in clients:
            client.slot = workers.slot

        def add(task: Task, record: Record, known: bool) -> None:
            write(output, record)
            kept.written(record["key"])
            counts.kept += 1
            counts.extra["reused"] += known
            usage = None if known else record.get("usage")
            if usage:
                before = (task.begun or {}).get("usage", {})
                for name in TOKENS:
                    counts.extra[f"tokens {name}"] += usage[name] - before.get(name, 0)

        for task, (outcome, known) in workers.through(work, tasks):
            if outcome is None or not needed(task):
                progress.drop()
                late.extend([(task, outcome)] if isinstance(outcome, dict) and not known else [])
                continue
            counts.received += 1
            counts.repaired += task.repaired
            unanswered = isinstance(outcome, Reject) and outcome.reason == "unanswered"
            progress.tick(asked=unanswered or not (known or task.reject), failed=unanswered)
            if isinstance(outcome, Reject):
                seen(task, None)
                counts.add(outcome, task.value, task.source)
                if unanswered:
                    failed = failed or f"{task.value.file}:{task.value.number}: {outcome.detail}"
                continue
            seen(task, outcome)
            add(task, outcome, known)
        for task, record in late:
            counts.received += 1
            add(task, record, known=False)
        if kept and not counts.received:
            raise Failure(
                f"the input is empty, and {out} has {len(kept)} rows of an earlier run: they stay as they are"
            )
        others = len(kept)
        for record in kept.others():
            write(output, record)
    if batches:
        batches.finish(tool, common.quiet)
    if late and not common.quiet:
        say(tool, f"{len(late)} {unit} that were under way when they were no longer needed follow after the others")
    if others and not common.quiet:
        say(tool, f"{out}: {others} rows of earlier runs, which this one did not ask for, follow after its own")
    if budget and not common.quiet:
        say(tool, f"{budget.spent:.4f} USD spent")
    filtering.close(counts, common)
    if failed:
        again = f" ({out} has the others; repeat the command to ask only for these)" if out and out != "-" else ""
        return f"{counts.reasons['unanswered']} of {counts.received} failed{again}; the first: {failed}"
    if common.rejects is None and counts.received and counts.reasons["bad_schema"] == counts.received:
        return f"{counts.first} (no record has a shape that vtools {tool} reads)"
    return None


class _NotNeeded(Exception):
    """A task that is not to be asked."""


class _Workers:
    """The threads that ask. After a failure that ends the run none asks further; answers under way are waited for, as
    they are paid for."""

    def __init__(self, tool: str, jobs: int, needed: Callable[[Task], bool]) -> None:
        self._tool, self._jobs, self._needed = tool, jobs, needed
        # More threads than requests at a time, as some wait before they ask again.
        self._pool = ThreadPoolExecutor(jobs + jobs // 2)
        self._slots = threading.Semaphore(jobs)
        self._busy: dict[int, Task] = {}  # by thread
        self._paid: set[int] = set()  # those that have asked something for their task
        self._failure: Exception | None = None
        self._ended = False

    def through(self, work: Callable[[Task], Done], tasks: Iterable[Task]) -> Iterator[tuple[Task, Done]]:
        """Every task with what `work` makes of it, in the order of the tasks."""

        def busily(task: Task) -> Done:
            if self._failure:
                raise self._failure
            self._busy[threading.get_ident()] = task
            try:
                return work(task)
            except Exception as error:
                self._stop(error)
                raise
            finally:
                self._busy.pop(threading.get_ident(), None)
                self._paid.discard(threading.get_ident())

        with contextlib.closing(parallel.in_threads(busily, tasks, self._jobs, AHEAD * self._jobs, self._pool)) as done:
            yield from done

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the `jobs` requests. If nothing was paid for this task, raises the failure that ended the run, or
        _NotNeeded."""
        thread = threading.get_ident()
        with self._slots:
            if thread not in self._paid:
                if self._failure:
                    raise self._failure
                if not self._needed(self._busy[thread]):
                    raise _NotNeeded
            self._paid.add(thread)
            try:
                yield
            except EndpointError as error:
                self._stop(error)
                raise

    def _stop(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
            waiting = threading.Timer(PATIENCE, self._say_waiting)
            waiting.daemon = True
            waiting.start()

    def _say_waiting(self) -> None:
        if self._busy and not self._ended:
            say(self._tool, f"{self._failure}; waiting for {len(self._busy)} answers under way (Ctrl-C drops them)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Failure):
            self._stop(error)
        self._pool.shutdown(wait=kind is None or isinstance(error, Failure), cancel_futures=True)
        self._ended = True
