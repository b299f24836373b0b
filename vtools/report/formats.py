"""The formats of judgments, of `vtools judge` and of others: which of them a record is in, and what it says.

What is checked raises Wrong. A verdict in words that the format does not know is one that could not be read: nobody
loses by it.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from vtools.records.comparison import WON
from vtools.records.jsonl import Record
from vtools.report.units import Grade, Graded, Judgment, Verdict
from vtools.report.values import Wrong, identity, is_number, number, one_of, optional, shown, text, two, whole

Graded1 = tuple[Graded, Grade]  # a grade, and whose it is by whom
Checked = tuple[str, str, bool]  # model, question, whether its answer passed a program's check
Read = Judgment | Graded1 | Checked

PEOPLE = "people"  # the judge of votes whose file names none
UNKNOWN = "unknown"
SIDES = {
    **{word: "a" for word in ("a", "A", "model_a", "model_1", "model1", "left")},
    **{word: "b" for word in ("b", "B", "model_b", "model_2", "model2", "right")},
    **{word: "tie" for word in ("tie", "Tie", "C", "both_bad", "tie (bothbad)", "bothbad", "tie (both bad)", "both")},
}  # fmt: skip
ARENA_HARD = {
    "A>>B": ("first", 3), "A>B": ("first", 1), "A=B": ("tie", 1), "B=A": ("tie", 1), "B>A": ("second", 1),
    "B>>A": ("second", 3), "B<<A": ("first", 3), "B<A": ("first", 1), "A<B": ("second", 1), "A<<B": ("second", 3),
}  # fmt: skip
NAMES_OF_TWO = (("a", "b"), ("model_a", "model_b"), ("model_1", "model_2"))
NAMES_OF_VOTES = ("votes", "vote", "winner", "verdict", "label", "preference")
PROMPTS = ("-generic", "-coding", "-math")  # of the Vicuna blog, at the end of a reviewer's name


def said(side: str | None, share: float | None = None, **more: Any) -> Verdict:
    """A verdict, with the share that it gives b unless that is known better."""
    return Verdict(side, WON.get(side or "") if share is None else share, **more)


def better(a: float, b: float) -> str:
    """The verdict that follows from two scores."""
    return "tie" if a == b else "a" if a > b else "b"


def vtools_pair(record: Record, file: str) -> Iterator[Read]:
    """A judgment of `vtools judge`."""
    verdict, scores = record.get("verdict"), two(record, "scores")
    if verdict is not None and not isinstance(verdict, str):
        raise Wrong(f"verdict is {shown(verdict)}, not a text")
    expected = None if record.get("expectation") is None else 1 - number(record, "expectation", 0, 1)
    games = number(record, "games", 1, 100) if record.get("games") is not None else 1
    missed = record.get("unanswered") or {}
    if not isinstance(missed, dict) or not missed.keys() <= {"a", "b"}:
        raise Wrong(f"unanswered is {shown(missed)}, not an object with a or b")
    lengths = two(record, "len") if isinstance(record.get("len"), list) and len(record["len"]) == 2 else None
    digest = optional(record, "rubric_digest")
    name = optional(record, "rubric")
    yield Judgment(
        identity(record, "id", "question_id"), optional(record, "judge") or UNKNOWN, text(record, "a"),
        text(record, "b"), one_of(record, "order", ("ab", "ba")),
        said(SIDES.get(verdict or ""), expected, scores=scores, games=games, words=words(record)),
        whole(record, "turn"), optional(record, "category"), optional(record, "key"),
        f"{name or 'a rubric'} ({digest[:8]})" if digest else name, optional(record, "judge_reported"),
        frozenset(missed), lengths=lengths, trained=record.get("in_training_data") is True,
        stopping=record.get("stopping"),
    )  # fmt: skip


def vtools_single(record: Record, file: str) -> Iterator[Read]:
    """A grade of `vtools judge --mode single`."""
    graded = optional(record, "judge") or UNKNOWN, text(record, "rubric"), text(record, "model")
    score = None if record.get("score") is None else number(record, "score")
    turn = whole(record, "turn", 1) or 1
    question = identity(record, "id", "question_id")
    yield graded, Grade(question, optional(record, "category"), turn, score, "unanswered" in record, words(record))


def fastchat_pair(record: Record, file: str) -> Iterator[Read]:
    """A judgment of a pair in FastChat's form: two games, the second with the answers exchanged."""
    judge, _ = judge_and_prompt(record)
    for game, order in (("g1", "ab"), ("g2", "ba")):
        winner = record.get(f"{game}_winner")
        yield Judgment(
            identity(record, "question_id"), judge, text(record, "model_1"), text(record, "model_2"), order,
            said(SIDES.get(winner if isinstance(winner, str) else ""), words=words(record, f"{game}_judgment")),
            whole(record, "turn"), optional(record, "category"),
        )  # fmt: skip


def fastchat_single(record: Record, file: str) -> Iterator[Read]:
    """A grade in FastChat's form, of which -1 stands for none."""
    judge, prompt = judge_and_prompt(record)
    score = number(record, "score", -1)
    yield (
        (judge, prompt, text(record, "model")),
        Grade(
            identity(record, "question_id"), optional(record, "category"), whole(record, "turn", 1) or 1,
            None if score < 0 else score, words=words(record, "judgment"),
        ),
    )  # fmt: skip


def blog(record: Record, file: str) -> Iterator[Read]:
    """A review of the Vicuna blog. -1 stands for no score; 0 is a score.

    Its models are named by `answer1_id` and `answer2_id`, as far as the reader knows whose answers these are.
    """
    scores = two(record, "score")
    if scores is None:
        raise Wrong("score is missing, not two numbers")
    known = scores if min(scores) >= 0 else None
    # Reviewers with the same name and other prompts (gpt-4-0328-generic, -coding, -math) are one judge. The numbers 1,
    # 2 and 3 in older files are prompts too.
    reviewer = record.get("reviewer_id")
    judge = UNKNOWN if reviewer is None or str(reviewer).isdigit() else str(reviewer)
    for prompt in PROMPTS:
        judge = judge.removesuffix(prompt)
    yield Judgment(
        identity(record, "question_id"), judge, str(record.get("answer1_id") or ""),
        str(record.get("answer2_id") or ""), "ab",
        said(better(*known) if known else None, scores=known, words=words(record)), None, optional(record, "category"),
    )  # fmt: skip


def alpacaeval(record: Record, file: str) -> Iterator[Read]:
    """An annotation of AlpacaEval: a preference from 1 (the first output) to 2, of which fractions are shares.

    0 is a tie of older files; -1 and null are no verdict. It has no id: the instruction is one. The judge saw the
    outputs in a random order that is not recorded.
    """
    preference = record.get("preference")
    share = None
    if preference is not None and preference != -1:
        if not is_number(preference) or not (preference == 0 or 1 <= preference <= 2):
            raise Wrong(f"preference is {shown(preference)}, not a number from 1 to 2")
        share = 0.5 if preference == 0 else preference - 1
    side = None if share is None else better(0.5, share)
    asked = text(record, "instruction")
    outputs = [optional(record, name) for name in ("output_1", "output_2")]
    answers = tuple((each,) if each else () for each in outputs)
    yield Judgment(
        digest(asked), optional(record, "annotator") or UNKNOWN, optional(record, "generator_1") or "output_1",
        optional(record, "generator_2") or "output_2", "", said(side, share, words=words(record, "raw_completion")),
        category=optional(record, "dataset"), asked=(asked,), answers=(answers[0], answers[1]),
        lengths=(float(len(outputs[0])), float(len(outputs[1]))) if outputs[0] and outputs[1] else None,
    )  # fmt: skip


def arena(record: Record, file: str) -> Iterator[Read]:
    """A battle of the Chatbot Arena, or a vote of MT-Bench's people, in the same form: model_a is shown first."""
    winner = record.get("winner")
    judge = optional(record, "judge") or ""
    pair = [conversation(record.get(name)) for name in ("conversation_a", "conversation_b")]
    asked = tuple(turn for role, turn in pair[0] if role == "user")
    answers = [tuple(turn for role, turn in each if role == "assistant") for each in pair]
    known = all(answers)
    yield Judgment(
        identity(record, "question_id", "id") if "question_id" in record or "id" in record else digest(repr(asked)),
        PEOPLE, text(record, "model_a"), text(record, "model_b"), "ab",
        said(SIDES.get(winner if isinstance(winner, str) else ""), voter=judge), whole(record, "turn"),
        optional(record, "category"), asked=asked, answers=(answers[0], answers[1]) if known else None,
        lengths=(float(sum(map(len, answers[0]))), float(sum(map(len, answers[1])))) if known else None,
    )  # fmt: skip


def arena_hard(record: Record, file: str) -> Iterator[Read]:
    """A judgment of Arena-Hard: two games, in the first of which the baseline's answer is shown first."""
    games = record.get("games")
    if not isinstance(games, list) or not all(isinstance(game, dict) for game in games) or len(games) > 2:
        raise Wrong(f"games is {shown(games)}, not a list of two objects")
    for game, order in zip(games, ("ab", "ba"), strict=False):
        score = game.get("score")
        place, weight = ARENA_HARD.get(score.strip().upper() if isinstance(score, str) else "", ("", 1))
        side = {"first": order[0], "second": order[1], "tie": "tie"}.get(place)
        reply = game.get("judgment")
        reply = reply.get("answer") if isinstance(reply, dict) else reply
        yield Judgment(
            identity(record, "uid", "question_id"), optional(record, "judge") or UNKNOWN,
            optional(record, "baseline") or "baseline", text(record, "model"), order,
            said(side, games=weight, words=reply if isinstance(reply, str) else ""),
            category=optional(record, "category"),
        )  # fmt: skip


def votes(record: Record, file: str) -> Iterator[Read]:
    """A person's vote, or what most of several prefer: `a`, `b` and under `vote`, `winner`, `verdict` or `label` one of
    a, b and tie, or a model's name; `votes` has several, as a list or as their numbers.
    """
    names = next((pair for pair in NAMES_OF_TWO if pair[0] in record), None)
    if names is None:
        raise Wrong("no a and b, model_a and model_b, or model_1 and model_2")
    a, b = (text(record, name) for name in names)
    field = next((name for name in NAMES_OF_VOTES if name in record), None)
    if field is None:
        raise Wrong("no vote, winner, verdict, label or votes")
    given = record[field]
    if isinstance(given, dict):
        if not all(is_number(count) and count == int(count) and count >= 0 for count in given.values()):
            raise Wrong(f"{field} has {shown(next(iter(given.values()), None))}, not whole numbers")
        given = [word for word, count in given.items() for _ in range(int(count))]
    voter = next((str(record[name]) for name in ("voter", "annotator", "judge", "user") if record.get(name)), None)
    order = record["order"] if record.get("order") in ("ab", "ba") else ""
    for each in given if isinstance(given, list) else [given]:
        side = {a: "a", b: "b"}.get(each, SIDES.get(each)) if isinstance(each, str) else None
        yield Judgment(
            identity(record, "id", "question_id"), PEOPLE, a, b, order, said(side, voter=voter), whole(record, "turn"),
            optional(record, "category"),
        )  # fmt: skip


def scores(record: Record, file: str) -> Iterator[Read]:
    """A score of one answer, by whomever: `id`, `model`, `score`."""
    graded = optional(record, "judge") or UNKNOWN, optional(record, "rubric") or "scores", text(record, "model")
    score = None if record.get("score") is None else number(record, "score")
    question = identity(record, "id", "question_id")
    yield (
        graded,
        Grade(question, optional(record, "category"), whole(record, "turn", 1) or 1, score, words=words(record)),
    )


def checks(record: Record, file: str) -> Iterator[Read]:
    """Whether a program accepts an answer: `id`, `model`, `passed`; a row for each of several answers."""
    passed = record.get("passed")
    if not isinstance(passed, bool):
        raise Wrong(f"passed is {shown(passed)}, not true or false")
    yield text(record, "model"), identity(record, "id", "question_id", "task_id"), passed


FORMATS: dict[str, Callable[[Record, str], Iterator[Read]]] = {
    "vtools": vtools_pair, "vtools-single": vtools_single, "blog": blog, "fastchat": fastchat_pair,
    "fastchat-single": fastchat_single, "alpacaeval": alpacaeval, "arena": arena, "arena-hard": arena_hard,
    "votes": votes, "scores": scores, "checks": checks,
}  # fmt: skip
# The fields by which a record is known to be in a format; the first format that fits is it.
KNOWN_BY: list[tuple[str, tuple[str, ...]]] = [
    ("vtools", ("verdict", "order")), ("fastchat", ("g1_winner", "g2_winner")),
    ("fastchat-single", ("judgment", "score")),
    ("alpacaeval", ("preference", "instruction")), ("arena-hard", ("games", "model")),
    ("arena", ("model_a", "model_b", "winner")), ("checks", ("passed", "model")),
    ("votes", ("votes",)), ("votes", ("vote",)), ("vtools-single", ("score", "rubric")), ("scores", ("score", "model")),
    ("blog", ("score", "question_id")),
]  # fmt: skip


def recognise(record: Record, otherwise: str | None = None) -> str:
    """The name of a record's format; `otherwise` if it is in none, or without that Wrong."""
    for name, fields in KNOWN_BY:
        if all(field in record for field in fields):
            return name
    if otherwise:
        return otherwise
    raise Wrong(f"not a judgment ({', '.join(list(record)[:6])}); vtools judge writes them")


def judge_and_prompt(record: Record) -> tuple[str, str]:
    """FastChat's two names of a judge, of which older files have only the first."""
    judge: Any = record.get("judge")
    if isinstance(judge, list) and judge:
        return str(judge[0]), str(judge[-1])
    return str(judge or UNKNOWN), UNKNOWN


def words(record: Record, name: str = "text") -> str:
    """What the judge wrote, if that is kept."""
    value = record.get(name)
    return value if isinstance(value, str) else ""


def conversation(value: Any) -> list[tuple[str, str]]:
    """The turns of a conversation: role and text."""
    turns = value if isinstance(value, list) else []
    return [
        (turn["role"], turn["content"])
        for turn in turns
        if isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
    ]


def digest(words: str) -> str:
    """A short name for a text that has no id."""
    return hashlib.sha256(words.encode()).hexdigest()[:16]
