"""`vtools judge`: have one model compare the answers of two others."""

from typing import Annotated

import typer

from vtools import options
from vtools.process import UsageFailure, say


def judge(
    a: Annotated[str, typer.Argument(metavar="A", help="The answers of one model; - is stdin.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The answers of the model to compare with it; - is stdin.")],
    questions: Annotated[
        str | None, typer.Option(metavar="FILE", help="Read the questions from here if the answers do not carry them.")
    ] = None,
    training_data: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Report which questions are in this training data; repeatable."),
    ] = None,
    model: options.AskedModel = None,
    base_url: options.BaseUrl = None,
    one_order: Annotated[
        bool, typer.Option("--one-order", help="Show A's answer first, always (not advised: judges favour one place).")
    ] = False,
    temperature: options.Temperature = 0.0,
    max_tokens: Annotated[int, options.number(min=1, help="Limit the judge's replies to N tokens.")] = 2048,
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
    """Compare the answers of two models, question by question: one judgment per line, for `vtools report`.

    Reads answers of `vtools chat`, FastChat or the Vicuna blog, joined by question id; questions without an answer in
    both files are rejected and counted. The judge, --model, scores each pair of answers twice, once in each order, from
    1 to 10 for helpfulness, relevance, accuracy and detail. For programs and mathematics it has criteria of their own;
    it sees the reference answer where there is one, and never the models' names. Identical answers are a tie without a
    call. A reply without scores is requested once more; after that the verdict is null and the exit status 1.

    Questions that a model was trained on say little about it: --training-data lists on stderr those that share 13
    consecutive words with that data. `vtools clean --decontaminate` removes such conversations before training.

    With -o FILE, judgments are kept in FILE.journal: after a failure or a kill, the same command asks only for the
    remaining ones. On plain stdout nothing is kept, and all are asked for again.

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
        raise UsageFailure("--prices needs --dry-run")
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
