"""`vtools report`: judgments to a table."""

import sys
from typing import Annotated

import typer

from vtools import options
from vtools.files import atomic
from vtools.process import Failure
from vtools.records import jsonl
from vtools.records.question import read_questions
from vtools.report import reading, summary, table


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
    pairs = reading.read(files or ["-"], read_questions(questions) if questions else {})
    tables = [summary.summarise(pair, list(units.values()), seed) for pair, units in pairs.items()]
    if not tables:
        raise Failure("no judgments")
    if json_output:
        sys.stdout.buffer.write(jsonl.dumps({"pairs": tables}))
    else:
        print("\n\n".join(table.text(each) for each in tables))
    if plot:
        atomic.write(plot, table.picture(plot, tables))
