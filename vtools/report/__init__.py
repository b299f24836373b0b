"""`vtools report`: judgments to a table."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from vtools import options
from vtools.files import atomic
from vtools.process import Failure
from vtools.records import jsonl
from vtools.records.jsonl import Record
from vtools.records.question import read_question

RESAMPLES = 2000
INCONSISTENT = 0.3  # published judges flip 20 to 80 % of their verdicts; above this the table says little


@dataclass(slots=True)
class Unit:
    """What one judge said about the answers to one question (or one turn of it), in the orders it was shown."""

    question: str
    category: str | None
    verdicts: list[str | None] = field(default_factory=list)
    scores: list[tuple[float, float]] = field(default_factory=list)
    first_won: list[bool] = field(default_factory=list)  # whether the answer shown first won

    @property
    def outcome(self) -> str | None:
        """`a`, `b`, `tie`; a tie too where the orders disagree; None where a verdict is missing."""
        if None in self.verdicts:
            return None
        agreed = set(self.verdicts)
        return "tie" if len(agreed) > 1 or agreed == {"both_bad"} else self.verdicts[0]

    @property
    def score(self) -> tuple[float, float] | None:
        """The mean scores of a and b, if every verdict came with scores."""
        if not self.scores or len(self.scores) < len(self.verdicts):
            return None
        return mean(a for a, _ in self.scores), mean(b for _, b in self.scores)


def report(
    files: options.Files = None,
    questions: Annotated[
        str | None, typer.Option(metavar="FILE", help="Questions, for the categories that the judgments lack.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
    plot: options.Plot = None,
    seed: options.Seed = 0,
    verbose: options.Verbose = False,
) -> None:
    """Print the table of judgments: who is better, by how much, how sure that is, and in which categories.

    A question counts as won if it is won in both orders; where the orders disagree it is a tie. The intervals are 95 %
    bootstrap intervals over questions. The score ratio is B's total score over A's. Judgments are those of
    `vtools judge`, FastChat's pair judgments, or the Vicuna blog's reviews.

    \b
    Examples:
      vtools judge chatgpt.jsonl vicuna.jsonl --model gpt-4.1 | vtools report
      vtools report judgments.jsonl --json
      vtools report review_gpt35_vicuna-13b.jsonl --questions question.jsonl --plot wins.png
    """
    if plot:
        from vtools import plots

        plots.check(plot)
    pairs = collect(files or ["-"], categories(questions))
    tables = [summarise(pair, list(units.values()), seed) for pair, units in pairs.items()]
    if not tables:
        raise Failure("no judgments")
    if json_output:
        sys.stdout.buffer.write(jsonl.dumps({"pairs": tables}))
    else:
        print("\n\n".join(table_text(table) for table in tables))
    if plot:
        atomic.write(plot, picture(plot, tables))


def categories(file: str | None) -> dict[str, str | None]:
    """The category of each question in a file."""
    if file is None:
        return {}
    try:
        return {question.id: question.category for question in map(read_question, jsonl.records([file]))}
    except jsonl.Reject as reject:
        raise Failure(f"{file}: {reject.detail}") from None


Pair = tuple[str, str, str]  # judge, a, b


def collect(files: Iterable[str], known: dict[str, str | None]) -> dict[Pair, dict[str, Unit]]:
    """Judgments by pair of models and then by question. Raises Failure for a record that is no judgment."""
    pairs: dict[Pair, dict[str, Unit]] = {}
    for file in files:
        for record in jsonl.records([file]):
            for judgment in read_judgment(record, file):
                pair = judgment["judge"], judgment["a"], judgment["b"]
                question = judgment["id"]
                unit = pairs.setdefault(pair, {}).setdefault(
                    f"{question}\0{judgment.get('turn', '')}",
                    Unit(question, judgment.get("category") or known.get(question)),
                )
                verdict = judgment["verdict"]
                unit.verdicts.append(verdict)
                unit.first_won.append(verdict == judgment["order"][0])
                if judgment["scores"]:
                    unit.scores.append((float(judgment["scores"][0]), float(judgment["scores"][1])))
    return pairs


def read_judgment(record: Record, file: str) -> Iterator[Record]:
    """A judgment of ours, a pair judgment of FastChat's (two of ours), or a review of the Vicuna blog's."""
    if "verdict" in record and "order" in record:
        yield record
    elif "g1_winner" in record and "g2_winner" in record:
        judge = record.get("judge")
        shared = {
            "id": str(record["question_id"]), "turn": record.get("turn"), "scores": None,
            "a": record["model_1"], "b": record["model_2"],
            "judge": str(judge[0] if isinstance(judge, list) and judge else judge),
        }  # fmt: skip
        for winner, order in (("g1_winner", "ab"), ("g2_winner", "ba")):
            yield {**shared, "order": order, "verdict": FASTCHAT.get(record[winner])}
    elif "score" in record and "question_id" in record:
        # The models are named nowhere but in the file's name; -1 is a reply that could not be read.
        stem = "review" if file == "-" else Path(file).stem
        scores = [float(score) for score in record["score"]]
        scored = len(scores) == 2 and min(scores) > 0
        # The reviewer's name ends with the prompt's: gpt-4-0328-generic, -coding, -math are one judge.
        judge = str(record.get("reviewer_id") or "unknown").removesuffix("-generic").removesuffix("-coding")
        yield {
            "id": str(record["question_id"]), "a": f"{stem}: Assistant 1", "b": f"{stem}: Assistant 2",
            "judge": judge.removesuffix("-math"), "order": "ab", "scores": scores if scored else None,
            "verdict": better(*scores) if scored else None,
        }  # fmt: skip
    else:
        raise Failure(f"{file}: not a judgment ({', '.join(list(record)[:6])}); vtools judge writes them")


def better(a: float, b: float) -> str:
    """The verdict that two scores amount to."""
    return "tie" if a == b else "a" if a > b else "b"


FASTCHAT = {"model_1": "a", "model_2": "b", "tie": "tie"}


def summarise(pair: Pair, units: list[Unit], seed: int) -> dict[str, Any]:
    """Everything the table says, as one object."""
    judge, a, b = pair
    counted = [unit for unit in units if unit.outcome]
    swapped = [unit for unit in counted if len(unit.verdicts) > 1]
    flipped = [unit for unit in swapped if len(set(unit.verdicts)) > 1]
    table: dict[str, Any] = {
        "judge": judge,
        "a": a,
        "b": b,
        "questions": len({unit.question for unit in units}),
        "judged": len(units),
        "unparsed": len(units) - len(counted),
        "both_orders": len(swapped),
        "inconsistent": len(flipped) / len(swapped) if swapped else None,
        "first_won": sum(all(unit.first_won) for unit in flipped),
        "second_won": sum("tie" not in unit.verdicts and not any(unit.first_won) for unit in flipped),
        **counts(counted),
        **intervals(counted, seed),
    }
    names = sorted({unit.category for unit in counted if unit.category})
    table["categories"] = {name: counts([unit for unit in counted if unit.category == name]) for name in names}
    table["warnings"] = list(warnings(table))
    return table


def counts(units: list[Unit]) -> dict[str, Any]:
    """Wins, ties and losses of b, and the totals of the scores."""
    outcomes = [unit.outcome for unit in units]
    scores = [score for unit in units if (score := unit.score)]
    total_a, total_b = sum(a for a, _ in scores), sum(b for _, b in scores)
    return {
        "n": len(units),
        "b_wins": outcomes.count("b"),
        "ties": outcomes.count("tie"),
        "a_wins": outcomes.count("a"),
        "scored": len(scores),
        "score_a": round(total_a, 4),
        "score_b": round(total_b, 4),
        "score_ratio": total_b / total_a if total_a else None,
        "win_rate": (outcomes.count("b") + outcomes.count("tie") / 2) / len(units) if units else None,
        "as_good": (outcomes.count("b") + outcomes.count("tie")) / len(units) if units else None,
    }


MEASURES = ("score_ratio", "win_rate", "as_good")


def intervals(units: list[Unit], seed: int) -> dict[str, Any]:
    """95 % percentile intervals of the measures: 2,000 resamples of whole questions, since turns of one go together."""
    questions: dict[str, list[list[float]]] = {}
    for unit in units:
        a, b = unit.score or (0.0, 0.0)
        won, tied = unit.outcome == "b", unit.outcome == "tie"
        row = questions.setdefault(unit.question, [])
        row.append([a, b, 1.0, won + tied / 2, float(won or tied)])
    sums = [[sum(column) for column in zip(*rows, strict=True)] for rows in questions.values()]
    import random

    dice = random.Random(seed)
    drawn: list[list[float]] = [[], [], []]
    for _ in range(RESAMPLES if len(sums) > 1 else 0):
        a, b, n, won, good = (sum(column) for column in zip(*dice.choices(sums, k=len(sums)), strict=True))
        for values, part, whole in ((drawn[0], b, a), (drawn[1], won, n), (drawn[2], good, n)):
            if whole:
                values.append(part / whole)
    return {f"{name}_ci": interval(values) for name, values in zip(MEASURES, drawn, strict=True)}


def interval(values: list[float]) -> list[float] | None:
    """The 2.5th and 97.5th percentile."""
    if not values:
        return None
    values = sorted(values)
    return [values[int(0.025 * (len(values) - 1))], values[int(0.975 * (len(values) - 1))]]


def warnings(table: dict[str, Any]) -> Iterator[str]:
    """What a reader must know before believing the table."""
    if table["unparsed"]:
        yield f"{table['unparsed']} of {table['judged']} have no verdict that could be read, and are left out"
    if table["both_orders"] < table["n"]:
        alone = table["n"] - table["both_orders"]
        yield f"{alone} were shown in one order only: the place of an answer may have decided"
    if table["inconsistent"] is not None and table["inconsistent"] > INCONSISTENT:
        yield f"the judge changed its mind with the order in {table['inconsistent']:.0%}: this table says little"
    if table["n"] and table["scored"] < table["n"]:
        yield f"the score totals leave out {table['n'] - table['scored']} that have a verdict but no scores"


def table_text(table: dict[str, Any]) -> str:
    """The table for people."""
    lines = [f"A: {table['a']}", f"B: {table['b']}", f"judge: {table['judge']}", ""]
    flips = "not known" if table["inconsistent"] is None else f"{table['inconsistent']:.1%}"
    if table["inconsistent"]:
        flips += f" (the first answer won both times {table['first_won']}, the second {table['second_won']})"
    rows = [
        ("questions", f"{table['questions']}, judged {table['judged']}, unparsed {table['unparsed']}"),
        ("orders disagree", flips),
        ("B wins / ties / A wins", f"{table['b_wins']} / {table['ties']} / {table['a_wins']}"),
        ("B's win rate, ties half", share(table, "win_rate")),
        ("B as good or better", f"{share(table, 'as_good')}, {table['b_wins'] + table['ties']}/{table['n']}"),
        ("total score", f"A {table['score_a']:.1f}, B {table['score_b']:.1f}"),
        ("B's score / A's", share(table, "score_ratio", digits=2)),
    ]
    lines += [f"{name:<24} {value}" for name, value in rows]
    if table["categories"]:
        width = max(len(name) for name in [*table["categories"], "category"])
        lines += ["", f"{'category':<{width}}  {'n':>4} {'B wins':>7} {'ties':>5} {'A wins':>7} {'score B/A':>10}"]
        for name, row in table["categories"].items():
            ratio = "-" if row["score_ratio"] is None else f"{row['score_ratio']:.2f}"
            lines.append(
                f"{name:<{width}}  {row['n']:>4} {row['b_wins']:>7} {row['ties']:>5} {row['a_wins']:>7} {ratio:>10}"
            )
    lines += [""] * bool(table["warnings"]) + [f"warning: {warning}" for warning in table["warnings"]]
    return "\n".join(lines)


def share(table: dict[str, Any], name: str, digits: int = 1) -> str:
    """A measure with its interval, in percent."""
    if table[name] is None:
        return "-"
    text = f"{table[name]:.{digits}%}"
    ends = table[f"{name}_ci"]
    return text if ends is None else f"{text} (95 %: {ends[0]:.1%} to {ends[1]:.1%})"


def picture(path: str, tables: list[dict[str, Any]]) -> bytes:
    """Wins, ties and losses: one bar for each pair and, below it, for each of its categories."""
    from vtools import plots

    rows = []
    for table in tables:
        rows.append((f"B: {table['b']}\nA: {table['a']}", bar(table)))
        rows += [(name, bar(row)) for name, row in table["categories"].items()]
    judges = ", ".join(dict.fromkeys(table["judge"] for table in tables))
    title = f"Judged by {judges}\nThe further B's wins reach to the right, the better B"
    return plots.stacked_bars(path, title, "share of the questions", rows)


def bar(counted: dict[str, Any]) -> dict[str, int]:
    """The parts of a bar."""
    return {name: counted[key] for name, key in (("B wins", "b_wins"), ("tie", "ties"), ("A wins", "a_wins"))}


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    listed = list(values)
    return sum(listed) / len(listed)
