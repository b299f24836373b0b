"""`vtools report`: summarise judgments in a table."""

from typing import Annotated, Literal

import typer

from vtools import options
from vtools.files import atomic
from vtools.process import Failure, UsageFailure, shown
from vtools.records import jsonl
from vtools.records.question import read_questions
from vtools.report import measures, reading, reparse, table


def report(
    files: options.Files = None,
    questions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Read the categories from these questions if the judgments lack them."),
    ] = None,
    answers: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Read the models' answers, which judgments lack, from here; repeatable."),
    ] = None,
    form: Annotated[
        Literal[
            "vtools",
            "vtools-single",
            "blog",
            "fastchat",
            "fastchat-single",
            "alpacaeval",
            "arena",
            "arena-hard",
            "votes",
            "scores",
            "checks",
        ]
        | None,
        typer.Option("--read", help="Read the input in this format. Default: what each record looks like."),
    ] = None,
    rule: Annotated[
        Literal["mean", "strict"],
        typer.Option("--ties", help="Which rule decides: the mean of both orders, or a tie unless they agree."),
    ] = "mean",
    human: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Correct the win rates by people's votes on some of the questions."),
    ] = None,
    tie_model: Annotated[
        Literal["halves", "davidson"],
        typer.Option("--rate-ties", help="How ratings take a tie: as half a win each, or as an outcome of its own."),
    ] = "halves",
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Show ratings relative to this model. Default: that with most games."),
    ] = None,
    reparse_style: Annotated[
        Literal["blog", "mtbench"] | None,
        typer.Option("--reparse", help="Read the verdicts from the replies stored in these published judgments."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    plot: options.Plot = None,
    verbose: options.Verbose = False,
) -> None:
    """Summarise judgments in a table: which model is better, by how much, how certainly, and in which categories.

    Reads judgments of `vtools judge`, FastChat (pairs and single answers), AlpacaEval and Arena-Hard, reviews of the
    Vicuna blog, battles of the Chatbot Arena, people's votes, scores, and whether programs accept answers; --read names
    the format where a file does not show it. The unit is a question: the mean of both orders of its answers, so that a
    win and a tie are three quarters; by --ties strict it is won only if it is won in both. Both are shown where they
    differ. B's share of all games is also shown where it differs: each order is one game, or three by Arena-Hard's
    strong verdicts, and a judge asked with --logprobs shares each out by its probabilities. Intervals hold 95 % over
    questions (Wilson's for shares, Fieller's for the score ratio, which is B's total score divided by A's), and there
    is none for fewer than 20. Grades of single answers are summarised by their means.

    For a run of `vtools judge --stop-when-decided`, the table says when it stopped and what is sure. Its intervals are
    those of the test that stopped it, which hold although it was looked at after each question; the score ratio has
    none. The win rate at which a run stops is more likely too far from one half than too close.

    Where several judges have judged a pair of models, another table follows, of the panel: each question goes to the
    answer that more of them prefer, and scores are the means of theirs. Grades are summarised together for the judges
    who graded every model.

    --reparse blog and --reparse mtbench take the verdicts from the stored replies of the Vicuna blog's reviews and of
    FastChat's judgments, whatever was stored as their scores or winners; what cannot be told counts as unparsed.

    \b
    Examples:
      vtools judge chatgpt.jsonl vicuna.jsonl --model gpt-4.1 | vtools report
      vtools report judgments.jsonl --json
      vtools report review_gpt35_vicuna-13b.jsonl --questions question.jsonl --plot wins.png
      vtools report review_gpt35_vicuna-13b.jsonl --reparse blog
    """
    if plot:
        from vtools import plots

        plots.check(plot)
    style = reparse.STYLES[reparse_style] if reparse_style else None
    known = reading.read_answers(answers or [])
    known.questions = read_questions(questions) if questions else {}
    judgments = reading.read(files or ["-"], known, style, form)
    if not judgments.pairs and not judgments.grades and not judgments.checks:
        raise Failure("no judgments in the input; vtools judge writes them")
    votes = reading.read([human], known) if human else None
    if votes and not votes.pairs:
        raise Failure(f"{human}: no votes on pairs of answers")
    measured = measures.measure(judgments, votes, rule, tie_model == "davidson", baseline)
    tables, panels = measured["pairs"], measured["panels"]
    if baseline and not any(baseline in (table["a"], table["b"]) for table in tables):
        raise UsageFailure(f"--baseline {baseline}: no judgment is of this model")
    if json_output:
        with jsonl.output(None) as output:
            output.write(measured)
    else:
        print(shown(table.text_of_all(measured)))
    if plot:
        together = [(each["a"], each["b"]) for each in panels]
        drawn = [*panels, *(each for each in tables if (each["a"], each["b"]) not in together)]
        if not tables:
            raise Failure("--plot: no chart, for it shows pairs of models, and these are grades of single answers")
        atomic.write(plot, table.picture(plot, drawn))
