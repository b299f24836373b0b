"""`vtools report`: summarise judgments in a table."""

import sys
from typing import Annotated, Literal

import typer

from vtools import options
from vtools.files import atomic
from vtools.process import Failure, UsageFailure, install, say
from vtools.records import jsonl
from vtools.records.question import read_questions
from vtools.report import gate, headline, measures, preference_records, ranking, reading, reparse
from vtools.report.comparisons import joined


def report(
    files: options.Files = None,
    questions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Read the categories from these questions if the judgments lack them."),
    ] = None,
    answers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE", help="Read a model's answers, which judgments lack, from here; repeatable."
        ),
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
        typer.Option(metavar="FILE", help="Read people's votes on some of the questions, which correct the win rates."),
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
    as_table: Annotated[
        bool | None,
        typer.Option("--table/--json", help="Print a table, or one JSON object. Default: a table on a terminal."),
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write a page with charts and all questions here.")
    ] = None,
    plot: options.Plot = None,
    pairs: Annotated[
        str | None, typer.Option("--pairs", metavar="FILE", help="Write what was preferred to what here, for training.")
    ] = None,
    gate_text: Annotated[
        str | None,
        typer.Option(
            "--gate", metavar="'B >= A - 2%'", help="Check this at 95 %: exit with 0 if so, 1 if not, 75 if undecided."
        ),
    ] = None,
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

    With --human, people's votes on some of the questions (at least 20) correct the win rates of all, by
    prediction-powered inference, and show how far the judge agrees with people, and they with each other. A pair is
    surely better if an exact sign test over questions, adjusted for all pairs (Holm), and the interval both say so.

    Three models or more get ratings (Bradley and Terry's; a tie is half a win, or by --rate-ties davidson an outcome of
    its own), each with an interval, the ranks that it may have, and what the first place gives. Where five or more were
    compared with one, win rates adjusted for length follow. Several judges are compared by Cohen's kappa and
    Krippendorff's alpha, and each by how it treats its own family.

    On a terminal it prints a table, in a pipe one JSON object. --html writes a page that works from disk: charts, and
    every question with its answers side by side and the judge's words, to be filtered. Judgments do not hold the
    answers: name their files with --answers, as NAME=FILE where the judge was told another name. --pairs writes
    preference records: the answer that won ends the conversation, the other is under `rejected`.

    --gate 'B >= A - 2%' is for cron: it compares win rates (with "score:" before it, total scores) and is passed if the
    whole 95 % interval fulfils it (exit status 0), failed if none of it does (1), else undecided (75). A and B name an
    only pair of models; else write their names.

    --reparse blog and --reparse mtbench take the verdicts from the stored replies of the Vicuna blog's reviews and of
    FastChat's judgments, whatever was stored as their scores or winners; what cannot be told counts as unparsed.

    \b
    Examples:
      vtools judge chatgpt.jsonl vicuna.jsonl --model gpt-4.1 | vtools report
      vtools report judgments.jsonl --json
      vtools report review_gpt35_vicuna-13b.jsonl --questions question.jsonl --plot wins.png
      vtools report review_gpt35_vicuna-13b.jsonl --reparse blog
      vtools report judgments.jsonl --questions questions.jsonl --answers x=a.jsonl --answers y=b.jsonl --html page.html
      vtools report judgments.jsonl --human votes.jsonl
      vtools report judgments.jsonl --gate 'x >= y - 2%' || echo "exit status $?"
    """
    condition = gate.read(gate_text) if gate_text else None
    if plot or html:
        from vtools import plots

        if plot:
            plots.check(plot)
    if pairs and not answers:
        raise UsageFailure("--pairs needs the answers, which judgments lack: name their files with --answers FILE")
    style = reparse.STYLES[reparse_style] if reparse_style else None
    known = reading.read_answers(answers or [])
    known.questions = read_questions(questions) if questions else {}
    judgments = reading.read(files or ["-"], known, style, form)
    reading.check_answers(known, judgments)
    if not judgments.pairs and not judgments.grades and not judgments.checks:
        raise Failure("no judgments in the input; vtools judge writes them")
    votes = reading.read([human], known, otherwise="votes") if human else None
    if votes and not votes.pairs:
        raise Failure(f"{human}: no votes on pairs of answers")
    found = measures.measure(judgments, votes, rule, tie_model == "davidson", baseline)
    if baseline and not any(baseline in (table["a"], table["b"]) for table in found["pairs"]):
        raise UsageFailure(f"--baseline {baseline}: no judgment is of this model")
    several = len({model for _, *both in judgments.pairs for model in both}) > 2
    if not several and (baseline or tie_model != "halves"):
        raise UsageFailure("--baseline and --rate-ties are about ratings, which need three models: leave them out")
    if several and not ranking.available():
        say("report", f"ratings of these models need NumPy: {install('report')}")
    if sys.stdout.isatty() if as_table is None else as_table:
        from vtools.report import table

        table.show(found)
    else:
        with jsonl.output(None) as output:
            output.write({"headline": headline.lines(found), **found})
    if plot:
        from vtools.report import charts

        atomic.write(plot, plots.picture(plot, *charts.charts(found)))
    if html:
        from vtools.report import page

        atomic.write(html, page.page(found, judgments, known, rule))
    if pairs:
        preference_records.write(pairs, joined(judgments.pairs, rule), known)
    if condition:
        say("report", gate.check(condition, found))
