"""`vtools judge`: let a model compare the answers of two others."""

from typing import Annotated

import typer

from vtools import options
from vtools.process import UsageFailure, say


def judge(
    a: Annotated[str, typer.Argument(metavar="A", help="Answers of one model, the one to compare with; - is stdin.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Answers of the other; - is stdin.")],
    questions: Annotated[
        str | None, typer.Option(metavar="FILE", help="The questions, where the answers do not carry them.")
    ] = None,
    training_data: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Say which questions this file holds; may be repeated.")
    ] = None,
    model: options.AskedModel = None,
    base_url: options.BaseUrl = None,
    one_order: Annotated[
        bool, typer.Option("--one-order", help="Show A's answer first, always; judges favour a place, so not advised.")
    ] = False,
    temperature: options.Temperature = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply of the judge.")] = 2048,
    seed: options.Seed = 0,
    template: options.TemplateName = None,
    timeout: options.Timeout = 600.0,
    prices: options.PricesFile = None,
    out: options.Out = None,
    rejects: options.RejectsFile = None,
    stats: options.Stats = None,
    jobs: options.Jobs = 4,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Compare the answers of two models, question by question: one judgment a line, for `vtools report`.

    Each pair of answers is judged twice, once in each order, for helpfulness, relevance, accuracy and detail, from 1 to
    10 (programs and mathematics by their own measure, against the reference where the question has one). The judge
    never sees the models' names. Identical answers are a tie without a call. A reply without scores is asked for once
    more; then its verdict is null, and the exit code 1. Answers to a question that the other file lacks are left out
    and counted.

    Answers are those of `vtools chat`, FastChat's or the Vicuna blog's, joined by their question's id.

    Questions that a model was trained on tell little: --training-data names those whose words stand in the data that
    it was trained on (13 in a row; `vtools clean --decontaminate` takes such conversations out), at first and at last.

    With -o FILE, what is judged is kept in FILE.journal, and the same command again, after a failure or a kill, asks
    only for the rest. On plain stdout nothing is kept and all is asked again.

    \b
    Examples:
      vtools judge chatgpt.jsonl vicuna.jsonl --model gpt-4.1 -n --prices prices.json
      vtools judge chatgpt.jsonl vicuna.jsonl --model gpt-4.1 -j 8 -o judgments.jsonl
      vtools judge a.jsonl b.jsonl --questions q.jsonl --base-url http://127.0.0.1:8000/v1 | vtools report
    """
    from vtools.inference.client import Sampling
    from vtools.inference.connect import Target
    from vtools.judge import judging, matches

    if prices and not dry_run:
        raise UsageFailure("--prices is for --dry-run")
    target, sampling = Target(model, base_url, template, timeout=timeout), Sampling(max_tokens, temperature, seed=seed)
    tasks = matches.matches(a, b, questions, ("ab",) if one_order else ("ab", "ba"))
    seen = None
    if training_data:
        from vtools.judge import training_data as trained

        held = list(tasks)
        seen, tasks = trained.seen(held, a, training_data), iter(held)
    if dry_run:
        judging.estimate(tasks, target, sampling, out, prices)
        return
    try:
        judging.judge_all(tasks, target, sampling, options.Common(out, rejects, stats, jobs, quiet))
    finally:
        if seen and not quiet:
            say("judge", seen)
