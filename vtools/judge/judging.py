"""Ask the judge about every match and write its judgments."""

import dataclasses
from collections.abc import Iterator

from vtools.inference import journal
from vtools.inference.client import Client, Sampling, usage
from vtools.inference.connect import Target, connect
from vtools.inference.endpoint import EndpointError
from vtools.inference.journal import Task
from vtools.judge import prompt, verdicts
from vtools.judge.matches import Match
from vtools.options import Common
from vtools.process import Failure, say
from vtools.records import jsonl, prices
from vtools.records.jsonl import Record


@dataclasses.dataclass(frozen=True, slots=True)
class Judge:
    """A model that judges, with its sampling parameters."""

    client: Client
    name: str
    sampling: Sampling

    def judge(self, match: Match, key: str) -> Record:
        """One judgment. An unreadable reply is requested once more; after that the verdict is null."""
        record: Record = {"key": key, "id": match.question.id}
        if match.question.category:
            record["category"] = match.question.category
        record |= {"mode": "pair", "a": match.a, "b": match.b, "order": match.order, "judge": self.name}
        record |= {"judge_reported": None, "prompt": prompt.name(match.question.category)}
        lengths = [len("".join(turns)) for turns in (match.a_turns, match.b_turns)]
        if match.a_turns == match.b_turns:
            return {**record, "scores": None, "verdict": "tie", "parse": "identical", "len": lengths}
        messages = prompt.messages(match.question, *match.shown())
        replies = [self.client.complete(messages, self.sampling)]
        reading = verdicts.read(replies[0].text, cut=replies[0].finish == "length")
        if reading.verdict is None:
            said = {"role": "assistant", "content": replies[0].text}
            try:
                asked = [*messages, said, {"role": "user", "content": prompt.AGAIN}]
                replies.append(self.client.complete(asked, self.sampling))
            except Failure as failure:  # keep the first reply, which was paid for, without a verdict
                if isinstance(failure, EndpointError) and failure.fatal:
                    raise
            else:
                reading = verdicts.read(replies[1].text, cut=replies[1].finish == "length")
        record["judge_reported"] = replies[0].model
        record["scores"] = list(_in_order(reading.scores, match.order)) if reading.scores else None
        record["verdict"] = _in_names(reading.verdict, match.order)
        record["parse"] = reading.parse
        record["text"] = replies[0].text
        if len(replies) > 1:
            record["asked_again"] = replies[1].text
        record |= {"finish": replies[-1].finish, "len": lengths}
        return {**record, **usage(replies), "ms": sum(reply.ms for reply in replies)}


def judge_all(tasks: Iterator[Task], target: Target, sampling: Sampling, common: Common) -> None:
    """Judge every match and write the judgments. Raises Failure if some have no verdict."""
    client, name = connect(target)
    judge = Judge(client, name, sampling)
    without = total = 0

    def write(output: jsonl.Output, record: Record) -> None:
        nonlocal without, total
        total += 1
        without += record["verdict"] is None
        output.write(record)

    complaint = journal.run(
        "judge",
        _keyed(tasks, name, sampling),
        lambda task: judge.judge(task.question, task.key),
        common,
        write=write,
        finished=has_verdict,
    )
    client.close()
    complaints = [complaint] if complaint else []
    if without:
        complaints.append(f"{without} of {total} judgments have no verdict: {name} gave no scores that can be read")
    if complaints:
        raise Failure("; ".join(complaints))
    if not total:
        raise Failure("nothing to judge: no question has an answer in both files; are the question ids the same?")


def has_verdict(record: Record) -> bool:
    """Whether a judgment of an earlier run counts; those without a verdict are requested again."""
    return record.get("verdict") is not None


def _keyed(tasks: Iterator[Task], judge: str | None, sampling: Sampling) -> Iterator[Task]:
    keys = journal.Keys()
    for task in tasks:
        if task.question:
            match: Match = task.question
            # The key includes the prompt, so a changed rubric, question, category or answer is judged again.
            asked = prompt.messages(match.question, *match.shown())
            task.key = keys.unique(
                journal.key("judge", match.question.id, match.a, match.b, match.order, judge, asked, sampling.options())
            )
        yield task


def estimate(
    tasks: Iterator[Task], target: Target, sampling: Sampling, out: str | None, price_list: str | None
) -> None:
    """Report the calls, tokens and dollars that the same command would take."""
    price = prices.read(price_list).tokens(target.model or "") if price_list else None
    known = journal.peek(out, has_verdict)
    calls = same = done = dropped = characters = 0
    for task in _keyed(tasks, target.model, sampling):
        if task.reject:
            dropped += 1
        elif task.key in known:
            done += 1
        elif task.question.a_turns == task.question.b_turns:
            same += 1
        else:
            calls += 1
            asked = prompt.messages(task.question.question, *task.question.shown())
            characters += sum(len(message["content"].encode("utf-8", "replace")) for message in asked)
    tokens_in, tokens_out = characters // 4, calls * (sampling.max_tokens or 0)
    parts = [
        f"would ask {target.model or 'the judge'} at {target} {calls} times",
        f"about {tokens_in:,} tokens in (4 bytes each) and at most {tokens_out:,} out, without retries",
        f"{same} identical answers need no call, {done} judgments exist already, {dropped} records are left out",
    ]
    if price:
        parts.append(f"at most {(tokens_in * price[0] + tokens_out * price[1]) / 1e6:.2f} USD")
    say("judge", f"{'; '.join(parts)}")


def _in_order(pair: tuple[float, float], order: str) -> tuple[float, float]:
    """Scores of Assistant 1 and 2 as scores of a and b."""
    return pair if order == "ab" else (pair[1], pair[0])


def _in_names(verdict: str | None, order: str) -> str | None:
    if order == "ba" and verdict in ("a", "b"):
        return "b" if verdict == "a" else "a"
    return verdict
