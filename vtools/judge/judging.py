"""Ask the judge about every pair of answers, or every answer, and write its judgments."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from vtools.inference import journal
from vtools.inference.client import Sampling, paid
from vtools.inference.forecast import Forecast, parts
from vtools.inference.journal import Task
from vtools.inference.run import ask_all
from vtools.judge import prompt
from vtools.judge.answers import Single
from vtools.judge.asking import Asking
from vtools.judge.matches import Match
from vtools.judge.panel import Panel
from vtools.judge.prompt import Prompt
from vtools.judge.rubric import PAIR, Mode, Outcome, Rubric
from vtools.judge.stopping import Stopping
from vtools.options import Common
from vtools.process import Failure, say
from vtools.records import jsonl
from vtools.records.jsonl import Record, Reject
from vtools.records.model_names import unpinned

AGAIN = {
    "longer": "were cut off and asked for again with more tokens",
    "verdict": "had no verdict that could be read and were asked for it alone",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Judge:
    """What is asked of a judge: a rubric, a mode of it, and whether its value is read from log-probabilities."""

    rubric: Rubric
    mode: Mode
    sampling: Sampling

    @property
    def kind(self) -> journal.Kind:
        """What its rows are; those by another rubric do not belong into the same file."""
        return journal.Kind("judge", has_verdict, {"rubric_digest": self.rubric.digest})

    @property
    def one_token(self) -> bool:
        """Whether the verdict is read from the log-probabilities of one token."""
        return self.sampling.logprobs is not None

    @property
    def way(self) -> str:
        """The way to give a verdict that is asked for where no server takes a schema."""
        return prompt.LOGPROBS if self.one_token else prompt.LINES

    def prompt(self, asked: Match | Single) -> Prompt:
        """The prompt for a task. Raises Reject if its question lacks what the rubric needs."""
        seed = self.sampling.seed or 0
        if isinstance(asked, Single):
            return prompt.single(self.rubric, self.mode, asked.question, asked.turns, asked.turn, seed, self.one_token)
        return prompt.pair(self.rubric, self.mode, asked.question, asked.shown(), seed, self.one_token)

    def keyed(self, tasks: Iterable[Task], identities: Mapping[str, str]) -> Iterator[Task]:
        """The tasks with keys that hold all that a judgment depends on; rejects for those that lack a prompt.

        `identities` are those of the judges' models, by the judges' names.
        """
        keys = journal.Keys()
        for task in tasks:
            if task.question:
                asked: Match | Single = task.question
                who = [asked.model] if isinstance(asked, Single) else [asked.a, asked.b, asked.order]
                try:
                    messages = [] if asked.unanswered else self.prompt(asked).messages(self.way)
                except Reject as reject:
                    task = Task(task.value, task.source, reject=reject)
                else:
                    depends = (
                        asked.question.id,
                        *who,
                        asked.judge,
                        identities[asked.judge],
                        self.rubric.digest,
                        messages,
                        self.sampling.options(),
                    )
                    task.key = keys.unique(journal.key("judge", *depends))
            yield task

    def record(self, task: Task, asking: Asking) -> Record:
        """One judgment. Identical answers are a tie without a call."""
        asked: Match | Single = task.question
        question = asked.question
        record: Record = {"key": task.key, "id": question.id}
        if question.category:
            record["category"] = question.category
        if isinstance(asked, Single):
            record |= {"mode": "single", "model": asked.model, "turn": asked.turn + 1}
        else:
            record |= {"mode": "pair", "a": asked.a, "b": asked.b, "order": asked.order}
        record |= {"judge": asked.judge, "judge_reported": None, "rubric": self.rubric.name}
        record |= {"rubric_digest": self.rubric.digest}
        record["instructions"] = self.rubric.instructions_name(question.category)
        if isinstance(asked, Single):
            lengths = [len("".join(asked.turns[asked.turn : asked.turn + 1]))]
        else:
            lengths = [len("".join(turns)) for turns in (asked.a_turns, asked.b_turns)]
        if asked.unanswered:
            nothing = {"score": None} if isinstance(asked, Single) else {"scores": None, "verdict": None}
            return {**record, **nothing, "parse": "unanswered", "unanswered": asked.unanswered, "len": lengths}
        if is_same(asked):
            return {**record, "scores": None, "verdict": "tie", "parse": "identical", "len": lengths}
        verdict = asking.verdict(self.prompt(asked), self.mode)
        outcome = verdict.outcome or Outcome()
        record |= _single(outcome) if isinstance(asked, Single) else _pair(outcome, asked.order)
        if self.one_token and isinstance(asked, Match):
            first = outcome.expectation
            record["expectation"] = first if first is None or asked.order == "ab" else 1 - first
        record["judge_reported"] = verdict.replies[0].model
        record |= {**verdict.fields, "finish": verdict.replies[-1].finish, "len": lengths}
        return {**record, **paid(verdict.replies)}


def judge_all(
    tasks: Sequence[Task],
    panel: Panel,
    judge: Judge,
    common: Common,
    stopping: Stopping | None = None,
    contaminated: frozenset[str] | None = None,
) -> None:
    """Have every task judged, or with `stopping` its tasks until all is sure, and write the judgments.

    Those on `contaminated` questions, by id, are marked; None leaves the marks of an earlier run.

    Raises Failure if some have no verdict.
    """
    clients = panel.connect()
    shared, said = panel.share(tasks, list(clients))
    asking = {name: Asking(client, judge.sampling) for name, client in clients.items()}
    total, counted, without, masses = 0, Counter[str](), Counter[str](), list[float]()
    told: dict[str, str] = {}  # by the name of a judge, its server's

    def tell(line: str | None) -> None:
        if line and not common.quiet:
            say("judge", line)

    def count(task: Task, record: Record | None) -> None:
        nonlocal total
        if stopping:
            stopping.seen(task, record)
        if record is None:
            return
        total += 1
        counted["unanswered"] += "unanswered" in record
        without[record["judge"]] += not has_verdict(record) and "unanswered" not in record
        counted.update(record.get("again", []))
        masses.extend([record["mass"]] if "mass" in record else [])
        if record["judge_reported"] and record["judge"] not in told:
            told[record["judge"]] = record["judge_reported"]
            tell(unpinned(record["judge"], record["judge_reported"]))

    def write(output: jsonl.Output, record: Record) -> None:
        record.pop("stopping", None)  # of an earlier run
        if contaminated is not None:
            record.pop("in_training_data", None)
            record |= {"in_training_data": True} if record["id"] in contaminated else {}
        output.write(stopping.stamped(record) if stopping else record)

    for line in said:
        tell(line)
    identities = {name: client.identity() for name, client in clients.items()}
    before = _known(stopping, judge.keyed(shared, identities), common.out, judge) if stopping else None
    complaint = ask_all(
        "judge",
        judge.keyed(shared, identities),
        lambda task: judge.record(task, asking[task.question.judge]),
        common,
        judge.kind,
        write=write,
        seen=count,
        needed=lambda task: all(each.needed(task) for each in (stopping, before) if each),
        unit="judgments",
        total=len(shared),
        clients=list(clients.values()),
    )
    for client in clients.values():
        client.close()
    if counted["unanswered"]:
        tell(f"{counted['unanswered']} of {total} have no verdict, as an answer is missing, empty or an error")
    again = [f"{counted[why]} of {total} replies {text}" for why, text in AGAIN.items() if counted[why]]
    if masses:
        spread = f"{fmean(masses):.2f} on average, {min(masses):.2f} at least"
        again.append(f"the judge's first token was a verdict with a probability of {spread}")
    tell("; ".join(again))
    for line in stopping.said() if stopping else []:
        tell(line)
    complaints = [complaint] if complaint else []
    if unread := +without:
        by = ", ".join(f"{number} by {name}" for name, number in unread.items())
        complaints.append(f"{unread.total()} of {total} judgments have no verdict that can be read: {by}")
    if complaints:
        raise Failure("; ".join(complaints))
    if not total:
        both = "no question has an answer in both files; are the question ids the same?"
        raise Failure(f"nothing to judge: {both if judge.mode.name == PAIR else 'no answer fits its question'}")


def _known(stopping: Stopping, tasks: Iterable[Task], out: str | None, judge: Judge) -> Stopping:
    """What an earlier run knew, up to the first judgment that it lacks.

    Without it, threads that are ahead of the one that counts would ask for what is decided already.
    """
    known = stopping.copy()
    with journal.peek(out, judge.kind) as found:
        for task in tasks:
            if task.reject or not known.needed(task):
                continue
            record = found.get(task.key)
            if record is None:
                break
            known.seen(task, record)
    return known


def is_same(asked: Match | Single) -> bool:
    """Whether both answers are the same, which is a tie without a call."""
    return isinstance(asked, Match) and asked.a_turns == asked.b_turns


def has_verdict(record: Record) -> bool:
    """Whether a judgment of an earlier run counts; those without a verdict are requested again."""
    return record.get("score" if record.get("mode") == "single" else "verdict") is not None


def estimate(
    tasks: Sequence[Task], panel: Panel, judge: Judge, out: str | None, jobs: int, stopping: Stopping | None = None
) -> None:
    """Report the calls, tokens, dollars and minutes that the same command would take, per judge and in all; with
    `stopping` at most.
    """
    targets = {target.model or "": target for target in panel.targets}
    shared, said = panel.share(tasks, list(targets))
    free, done, dropped = Counter[str](), Counter[str](), 0
    with journal.peek(out, judge.kind) as found:
        identities = {name: target.identity() if found else "" for name, target in targets.items()}
        forecasts = {name: Forecast(target, judge.sampling) for name, target in targets.items()}
        for task in judge.keyed(shared, identities):
            if stopping and not stopping.needed(task):
                continue
            known = None if task.reject else found.get(task.key)
            if stopping:
                stopping.seen(task, known)
            if task.reject:
                dropped += 1
                continue
            name = task.question.judge
            if known:
                done[name] += 1
            elif task.question.unanswered or is_same(task.question):
                free[name] += 1
            else:
                forecasts[name].add(judge.prompt(task.question).messages(judge.way))
    for line in filter(None, [*said, *map(unpinned, targets)]):
        say("judge", line)
    existing = "{:,} need no call, {:,} judgments exist already"
    asked = [
        f"would ask {name or 'the judge'} at {target} {'at most ' if stopping else ''}{forecasts[name].calls:,} times"
        for name, target in targets.items()
    ]
    if len(targets) > 1:
        for name, line in zip(targets, asked, strict=True):
            say("judge", "; ".join([line, *parts([forecasts[name]]), existing.format(free[name], done[name])]))
        asked = [f"{sum(forecast.calls for forecast in forecasts.values()):,} calls in all"]
    rest = f"{existing.format(free.total(), done.total())}, {dropped:,} records are left out"
    say("judge", "; ".join([*asked, *parts(list(forecasts.values()), jobs, found.times), rest]))


def _single(outcome: Outcome) -> Record:
    """The fields of an outcome for one answer."""
    criteria = {name: values[0] for name, values in outcome.criteria.items()}
    return {"score": outcome.scores[0] if outcome.scores else None, **({"criteria": criteria} if criteria else {})}


def _pair(outcome: Outcome, order: str) -> Record:
    """The fields of an outcome for two answers, which were shown in this order: of a, then of b."""
    step = 1 if order == "ab" else -1
    record: Record = {"scores": list(outcome.scores[::step]) if outcome.scores else None}
    if outcome.criteria:
        record["criteria"] = {name: list(values[::step]) for name, values in outcome.criteria.items()}
    if outcome.choice:
        record |= {"choice": outcome.choice, "games": outcome.games}
    swapped = {"a": "b", "b": "a"} if order == "ba" else {}
    return {**record, "verdict": swapped.get(outcome.verdict or "", outcome.verdict)}
