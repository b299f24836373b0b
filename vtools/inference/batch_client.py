"""An endpoint asked by its Batch API: cheaper, and within a day instead of at once."""

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vtools.inference import batch_api, batch_store, endpoint, journal, retry, trouble
from vtools.inference.batch_api import BatchApi
from vtools.inference.batch_store import Spool, Store
from vtools.inference.client import Answer, Messages, Sampling, Slot, Stream
from vtools.inference.endpoint import Endpoint, EndpointError
from vtools.inference.journal import Task
from vtools.inference.progress import lasting
from vtools.inference.trouble import Trouble
from vtools.process import Failure, say
from vtools.records import jsonl
from vtools.records.jsonl import Record, Reject

TRIES = 3  # of a request that failed for what it is not to blame for
FIRST_WAIT, LONGEST_WAIT, LEAST_WAIT = 1.0, 60.0, 0.02  # seconds between two looks at a batch
PATIENCE = 3600.0  # seconds without any word from the server
ENDED = ("completed", "failed", "expired", "cancelled")
LIMITS = ("max_tokens", "max_completion_tokens")
OF_ONE = (400, 413, 422)  # statuses that say something about one request only
FULL = "token_limit_exceeded"  # more tokens in unfinished batches than the account may have

Attempt = Callable[[Task], Record | Reject]


class Pending(Exception):
    """The answer comes with a batch."""


class Batches:
    """The client of a run: `settled` has everything answered in rounds, then `complete` gives the answers at once.

    In a round every task is tried: a call that has no answer yet becomes a request of the next batch, and the task is
    tried again from its beginning when that has come. So whoever asks needs no other way of asking, and what a reply
    leads to (another turn, the verdict once more) is a request of the next round. The first call of all is made
    directly: what it is refused for, every request would be.

    A request is written to disk before it is submitted, under a key by which a restarted run finds its batch at the
    provider. Only a batch that the provider takes later than it tells of it could be submitted twice.
    """

    def __init__(self, asked: Endpoint, out: str) -> None:
        self.slot: Slot = contextlib.nullcontext
        self.url, self.model, self.budget = asked.url, asked.model, asked.budget
        self._endpoint, self._api = asked, BatchApi(asked)
        self._folder = batch_store.folder(out) / journal.key(asked.url, asked.model)[:16]
        self._store: Any = None  # from when the output file is locked
        self._say: Callable[[str], None] = lambda text: None
        self._keys: set[str] = set()
        self._heard = time.monotonic()  # when the server last told how a batch is
        self._task = threading.local()
        self._new: tuple[str, dict[str, Any]] | None = None
        self._of: dict[str, Spool] = {}  # by the name of a request
        self._failed: dict[str, EndpointError] = {}
        self._tries: dict[str, int] = {}
        self._unlimited: set[str] = set()  # requests whose limit of tokens is more than the context leaves
        self._size: int | None = None  # of a batch, where the account may not have as many tokens as ours had

    @property
    def takes_schema(self) -> bool | None:
        """Whether the endpoint takes schemas. What is found first stays, as all are asked at the same time."""
        return self._store.learned("takes_schema")

    @takes_schema.setter
    def takes_schema(self, takes: bool | None) -> None:
        if self.takes_schema is None:
            self._store.learn(takes_schema=takes)

    def identity(self) -> str:
        """The endpoint's. Raises EndpointError."""
        return self._endpoint.identity()

    def stream(self, messages: Messages, sampling: Sampling) -> Stream:
        """Ask the endpoint directly."""
        return self._endpoint.stream(messages, sampling)

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def complete(self, messages: Messages, sampling: Sampling) -> Answer:
        """The answer to a request of the task at hand. Raises EndpointError; Pending in a round."""
        request = self._endpoint.request(messages, sampling)
        name = f"{self._task.key}.{journal.key(request)[:16]}"
        if name in self._store:
            return self._store.answer(name)
        if name in self._failed:
            raise self._failed[name]
        if spool := self._of.get(name):
            spool.wanted += 1
        elif self._store.learned("tried"):
            self._new = (name, request)
        else:
            return self._directly(name, messages, sampling)
        raise Pending

    def settled(
        self, tool: str, tasks: Iterable[Task], attempt: Attempt, known: Callable[[str], Any], quiet: bool
    ) -> tuple[list[Task], Attempt]:
        """The tasks, and how to attempt them once all is answered that they need. `known` gives finished records.

        Raises Failure; what was submitted then goes on, and a restarted run collects it.
        """
        if not quiet:
            self._say = lambda text: say(tool, text)

        def keyed(task: Task) -> Record | Reject:
            self._task.key = task.key
            return attempt(task)

        every = list(tasks)
        self._keys = {task.key for task in every}
        remaining = [task for task in every if not task.reject and known(task.key) is None]
        self._store = Store(self._folder, self.url, self.model)
        try:
            self._begin()
            while remaining := self._round(remaining, keyed):
                self._wait()
            self._look({})
        except BaseException:
            if sent := [spool for spool in self._store.spools if spool.batch]:
                say(tool, f"{_counted(sent)} at {self.url} go on; the same command collects their answers")
            self._store.close()
            raise
        return every, keyed

    def finish(self, tool: str, quiet: bool) -> None:
        """Drop the answers whose records are in the output, and say what of other runs is kept."""
        others = {name for name in self._store.names if name.rpartition(".")[0] not in self._keys}
        self._store.keep_only(others)
        sent = self._store.spools
        self._store.close(done=not others and not sent)
        kept = [f"{len(others)} answers"] if others else []
        kept += [f"{_counted(sent)} on their way"] if sent else []
        if kept and not quiet:
            say(tool, f"{self._folder}: keeps {' and '.join(kept)} that another command than this has asked for")

    def _directly(self, name: str, messages: Messages, sampling: Sampling) -> Answer:
        try:
            answer = self._endpoint.complete(messages, sampling)
        except EndpointError as error:
            if error.status not in OF_ONE:
                raise EndpointError(f"{error}; nothing is submitted", error.status, fatal=True) from None
            self._failed[name] = error
            raise
        self._store.add(name, answer)
        self._store.sync()
        self._store.learn(tried=True, lacks=sorted(self._endpoint.lacks))
        return answer

    def _begin(self) -> None:
        """Find what an earlier run has submitted, whether or not it heard of that."""
        self._endpoint.lacks |= set(self._store.learned("lacks") or ())
        for spool in self._store.spools:
            if spool.file and not spool.batch:
                spool.batch = self._api.find(spool.file, spool.key)
                if spool.batch:
                    self._store.note(spool)
            if self.budget:
                spool.held = sum(self._most(body) for _, body in self._store.bodies(spool))
                self.budget.hold(spool.held, committed=True)
            self._of |= dict.fromkeys(spool.names, spool)

    def _round(self, tasks: list[Task], attempt: Attempt) -> list[Task]:
        """Attempt tasks, submit what they ask for, and return those that wait for answers."""
        waiting: list[Task] = []
        held_back: list[float] = []
        for spool in self._store.spools:
            spool.wanted = 0
        for spool in self._store.write(self._requests(tasks, attempt, waiting, held_back)):
            self._of |= dict.fromkeys(spool.names, spool)
            self._submit(spool, new=True)
        over = self.budget and self.budget.exceeded
        unsent = [spool for spool in self._store.spools if not spool.batch]
        # Nobody has taken these yet: this run may ask for less than that which wrote them, or have less to spend.
        if dropped := [spool for spool in unsent if over or spool.wanted < len(spool.names)]:
            for spool in dropped:
                self._drop(spool)
            return self._round(waiting, attempt)
        for spool in unsent:
            self._submit(spool, new=False)
        if held_back and self.budget and not self._store.spools:
            raise self.budget.over(held_back[0])
        if held_back:
            self._say(f"{len(held_back)} requests wait until those before them have shown what they cost")
        return waiting

    def _requests(
        self, tasks: list[Task], attempt: Attempt, waiting: list[Task], held_back: list[float]
    ) -> Iterator[tuple[str, dict[str, Any], float]]:
        """The new requests of tasks, as far as limits allow, each with the most that it may cost."""
        left = self._size
        if self._size and any(spool.batch for spool in self._store.spools):
            left = 0
        for task in tasks:
            self._new = None
            try:
                attempt(task)
                continue
            except Pending:
                waiting.append(task)
            if self._new is None or left == 0:
                continue
            name, request = self._new
            body = self._endpoint.adapted(request)
            if name in self._unlimited:
                body = {field: value for field, value in body.items() if field not in LIMITS}
            cost = self._most(body)
            if self.budget and not self.budget.hold(cost):
                held_back.append(cost)
                continue
            left = left and left - 1
            yield name, body, cost

    def _most(self, body: dict[str, Any]) -> float:
        tokens = next((body[name] for name in LIMITS if name in body), None)
        return self.budget.most(body["messages"], tokens, batch=True) if self.budget else 0.0

    def _cost(self, name: str, body: dict[str, Any]) -> float:
        used = self._store.answer(name).usage if self.budget else None
        return self.budget.cost(used["in"], used["out"], batch=True) if self.budget and used else self._most(body)

    def _submit(self, spool: Spool, new: bool) -> None:
        try:
            if not spool.file:
                spool.file = self._api.upload(self._store.requests(spool), spool.key, new)
                self._store.note(spool)
            spool.batch = self._api.submit(spool.file, spool.key, new)
        except EndpointError as error:
            if error.status and not retry.is_transient(error.status):
                self._drop(spool)  # it was not taken
            raise
        self._store.note(spool)
        self._say(f"submitted {spool.batch}: {len(spool.names)} requests, answered within {batch_api.WINDOW}")

    def _drop(self, spool: Spool, spent: float = 0.0) -> None:
        for name in spool.names:
            self._of.pop(name, None)
        if self.budget:
            self.budget.settle(spool.held, spent)
        self._store.remove(spool)

    def _wait(self) -> None:
        """Wait until a batch has ended that this run waits for, or any if it waits for none. Raises Failure."""
        shown: dict[str, str] = {}
        wait = FIRST_WAIT
        sent = {spool.key for spool in self._store.spools}
        wanted = {spool.key for spool in self._store.spools if spool.wanted} or sent
        while wanted:
            asked = self._look(shown)
            if not wanted <= {spool.key for spool in self._store.spools}:
                return
            time.sleep(min(max(LEAST_WAIT, wait if asked is None else asked), LONGEST_WAIT))
            wait = min(1.5 * wait, LONGEST_WAIT)

    def _look(self, shown: dict[str, str]) -> float | None:
        """Look at each batch once and collect those that have ended; `shown` has what was said of each before. Returns
        the seconds after which the server wants to be asked again, if it says. Raises Failure."""
        waits = []
        for spool in list(self._store.spools):
            try:
                waits.append(self._look_at(spool, shown))
            except EndpointError as error:
                said = str(error)
                if error.status in batch_api.NONE:
                    said += f"; if {spool.batch} is lost, remove {self._store.requests(spool)} to ask for it again"
                if spool.wanted:
                    raise EndpointError(said, error.status, error.fatal) from None
                self._say(said)
        return max((wait for wait in waits if wait is not None), default=None)

    def _look_at(self, spool: Spool, shown: dict[str, str]) -> float | None:
        told, after = self._api.poll(spool.batch or "")
        if isinstance(told, Trouble):
            if time.monotonic() - self._heard > PATIENCE:
                raise self._endpoint.error(told)
            text = f"{spool.batch}: no word from the server ({told.said}); asking again"
        else:
            self._heard, text = time.monotonic(), _state(told)
        if shown.get(spool.key) != text:
            shown[spool.key] = text
            self._say(f"{text}, {lasting(time.time() - spool.submitted)} since it was submitted")
        if isinstance(told, dict) and str(told.get("status")).lower() in ENDED:
            self._end(spool, told)
        return after

    def _end(self, spool: Spool, batch: dict[str, Any]) -> None:
        """Keep what a batch has answered, and note what it has not. Raises Failure where that needs a decision."""
        status, wanted = str(batch["status"]).lower(), spool.wanted
        if status == "failed":
            self._drop(spool)
            if wanted:
                self._fail(spool, batch)
            return
        troubles: dict[str, Trouble] = {}
        for file in (batch.get("output_file_id"), batch.get("error_file_id")):
            if file:
                self._collect(spool, file, _took(batch, spool), troubles)
        self._store.sync()
        spent, refused = 0.0, []
        for name, body in self._store.bodies(spool):
            if name in self._store:
                spent += self._cost(name, body)
            elif status != "cancelled":
                refused.append(self._refused(spool, name, body, troubles.get(name)))
        self._drop(spool, spent)
        answered = sum(name in self._store for name in spool.names)
        said = f"{spool.batch}: {answered} of {len(spool.names)} requests answered"
        if status == "cancelled" and wanted:
            raise Failure(
                f"{self.url}: {said}, then it was cancelled there; repeat the command to ask for the others again"
            )
        if refused:
            self._say(f"{said}; the first that was not: {refused[0]}")

    def _collect(self, spool: Spool, file: str, ms: int, troubles: dict[str, Trouble]) -> None:
        """Read a file of answers or of errors."""
        names = set(spool.names)
        with tempfile.TemporaryFile(dir=self._folder) as stream:

            def download() -> None:
                stream.seek(0)
                stream.truncate()
                self._api.download(file, stream)

            self._api.again(download)
            stream.seek(0)
            for line in stream:
                try:
                    answer = jsonl.loads(line)[0]
                    name = answer["custom_id"]
                    body = (answer.get("response") or {}).get("body")
                except (Reject, KeyError, TypeError, AttributeError):
                    continue  # its request is asked for again
                if name not in names or name in self._store:
                    continue
                reply = endpoint.completion(jsonl.dumps(body).decode())
                if isinstance(reply, Trouble):
                    troubles[name] = trouble.in_line(answer)
                else:
                    self._store.add(name, endpoint.answer(reply, ms, spool.batch))

    def _refused(self, spool: Spool, name: str, body: dict[str, Any], told: Trouble | None) -> str:
        """Decide whether a request without an answer is asked for again, and return why it has none. Raises
        EndpointError if all others would have none for the same reason."""
        told = told or Trouble("status", "it was not carried out")
        self._tries[name] = self._tries.get(name, 0) + 1
        if self._endpoint.learns(told, body):
            self._store.learn(lacks=sorted(self._endpoint.lacks))
        elif endpoint.asked_too_much(told) and name not in self._unlimited:
            self._unlimited.add(name)
        elif batch_api.refused(told) or told.unpaid or self._tries[name] >= TRIES:
            status = f"HTTP {told.status}: " if told.status else ""
            tries = f" after {self._tries[name]} tries" if self._tries[name] > 1 else ""
            error = EndpointError(f"{self.url}: {spool.batch}{tries}: {status}{told.said}", told.status, told.fatal)
            self._failed[name] = error
        return told.said

    def _fail(self, spool: Spool, batch: dict[str, Any]) -> None:
        """A whole batch failed, which costs nothing: it is made smaller if it had too many tokens, else Failure."""
        errors = (batch.get("errors") or {}).get("data") or [{}]
        said = "; ".join(
            (f"line {error['line']}: " if error.get("line") else "") + str(error.get("message") or "no reason is given")
            for error in errors[:3]
        )
        others = any(other.batch for other in self._store.spools)
        if any(error.get("code") == FULL for error in errors) and (others or len(spool.names) > 1):
            self._size = self._size if others and self._size else max(1, len(spool.names) // (1 if others else 2))
            self._say(f"{spool.batch}: {said}; going on with {self._size} requests at a time")
            return
        raise Failure(
            f"{self.url}: {spool.batch} failed with {len(spool.names)} requests, none of them paid for: {said}"
        )


def _state(batch: dict[str, Any]) -> str:
    """How far a batch is, in words."""
    counts = batch.get("request_counts") or {}
    done, failed = counts.get("completed") or 0, counts.get("failed") or 0
    of = f", {done + failed} of {counts['total']} done" if counts.get("total") else ""
    return f"{batch.get('id')}: {batch.get('status')}{of}{f', {failed} failed' if failed else ''}"


def _took(batch: dict[str, Any], spool: Spool) -> int:
    """Milliseconds from the creation of a batch to its end, as its server tells them."""
    ended = next((batch[name] for name in ("completed_at", "expired_at", "cancelled_at") if batch.get(name)), None)
    seconds = ended - batch["created_at"] if ended and batch.get("created_at") else time.time() - spool.submitted
    return max(0, round(seconds * 1000))


def _counted(spools: list[Spool]) -> str:
    requests = sum(len(spool.names) for spool in spools)
    return f"{len(spools)} {'batches' if len(spools) > 1 else 'batch'} with {requests} requests"
