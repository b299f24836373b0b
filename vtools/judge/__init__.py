"""`vtools judge`: have one model compare the answers of others."""

from typing import Annotated, Literal

import typer

from vtools import options
from vtools.process import UsageFailure, say

MAX_TOKENS = 2048
ONE_TOKEN = 2  # with --logprobs: a blank may come first
ALTERNATIVES = 20  # of which servers give log-probabilities


def judge(
    context: typer.Context,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="The answers of each model, a file each; - is stdin.")
    ],
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME", help="Name the model of a file; once per file, in their order."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Compare each other model with this one. Default: all pairs of models."),
    ] = None,
    rubric_name: Annotated[
        str,
        typer.Option(
            "--rubric",
            metavar="NAME|FILE",
            help="Use this rubric: alpaca, arena-hard, checklist, dialogue, mtbench, vicuna, or your own .toml.",
        ),
    ] = "vicuna",
    mode_name: Annotated[
        Literal["pair", "single"],
        typer.Option("--mode", help="Whether to compare pairs of answers, or to grade each turn of each answer."),
    ] = "pair",
    logprobs: Annotated[
        bool,
        typer.Option("--logprobs", help="Read each verdict from the probabilities of one token; for small models."),
    ] = False,
    questions: Annotated[
        str | None, typer.Option(metavar="FILE", help="Read the questions from here if the answers do not carry them.")
    ] = None,
    training_data: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Report which questions are in this training data; repeatable."),
    ] = None,
    model: options.AskedModel = None,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge", metavar="NAME[=URL]", help="Ask this model, at --base-url or a URL of its own; repeatable."
        ),
    ] = None,
    own_family: Annotated[
        bool, typer.Option("--own-family", help="Keep the judgments of a panel's judge about its own family.")
    ] = False,
    base_url: options.BaseUrl = None,
    one_order: Annotated[
        bool,
        typer.Option(
            "--one-order", help="Show the first model's answer first, always (not advised: judges favour one place)."
        ),
    ] = False,
    stop_when_decided: Annotated[
        float | None,
        typer.Option(
            metavar="LEVEL",
            help="Stop each pair once it is this sure which model is better, as 0.95; ask in random order (--seed).",
        ),
    ] = None,
    temperature: options.Temperature = 0.0,
    max_tokens: Annotated[
        int | None, options.number(min=1, help="Limit the judge's replies to N tokens.", show_default="2048")
    ] = None,
    seed: options.Seed = 0,
    template: options.TemplateName = None,
    timeout: options.Timeout = 600.0,
    prices: options.PricesFile = None,
    max_usd: options.MaxUsd = None,
    out: options.Out = None,
    rejects: options.RejectsFile = None,
    stats: options.Stats = None,
    batch: options.Batch = False,
    jobs: options.Requests = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Compare the answers of models, question by question: one judgment per line, for `vtools report`.

    Reads answers of `vtools chat`, FastChat or the Vicuna blog, a file per model: two, or more, of which each pair is
    compared, or each with the --baseline. Answers are joined by the ids of their questions; where these carry the
    question, it must be the same one, or the pair is rejected. A and B are the two models in the order of their names,
    so the files may be given in any. The judge, --model, judges each pair of answers twice, once in each order; it sees
    the reference answer where there is one, and never the models' names. Identical answers are a tie without a call; an
    answer that is missing, empty or an error gives a row without a verdict, which `vtools report` counts. With --mode
    single, each turn of each answer gets a grade for itself, and one file is enough.

    A --rubric says what to weigh and what the verdict is. vicuna, the default: scores from 1 to 10 for helpfulness,
    relevance, accuracy and detail, with criteria of their own for programs and mathematics. dialogue: coherence,
    relevance, fluency and engagement from 1 to 5. mtbench, alpaca, arena-hard: letters, in the style of these
    benchmarks. checklist: the yes-or-no questions in a question's `checklist`. FILE.toml: yours, in the form of these,
    which are in vtools/judge/rubrics and described in vtools/judge/rubric.py.

    A verdict counts only in the exact form that the judge was asked for: JSON where the server takes a schema, else
    last lines with a mark that no answer can contain. Any other reply is requested once more, for the verdict alone;
    one that was cut off is requested whole, with four times the tokens. Then the verdict is null and the exit status 1.
    With --logprobs, the judge is asked for one token, and its probabilities are the verdict: the share that each side
    wins, or the mean grade; null if less than half of the probability is on verdicts.

    Several --judge are a panel: each judges every pair, at --base-url or, as NAME=URL, at a URL of its own, with one -j
    and one --max-usd for all; `vtools report` shows each, and what most of them prefer. Judges favour their own: in a
    panel each leaves out the answers of its own family, which is known by the models' names, unless --own-family keeps
    them; a judge alone is only warned about. So is a name that its provider moves to newer models, such as gpt-4o:
    name the dated one. The key is in OPENAI_API_KEY, or for the servers of Anthropic, Google (Gemini), Mistral,
    DeepSeek and OpenRouter in a variable of their own, as ANTHROPIC_API_KEY.

    Questions that a model was trained on say little about it: --training-data lists on stderr those that share 13
    consecutive words with that data, and marks their judgments, so that `vtools report` shows the result without them.
    `vtools clean --decontaminate` removes such conversations before training.

    With -o FILE, judgments are kept in FILE.journal: after a failure or a kill, the same command asks only for the
    remaining ones, and rows of FILE that it does not ask for follow after its own. A judge that answers under another
    name than before, or another rubric, needs another FILE. On plain stdout nothing is kept.

    With --stop-when-decided 0.95, questions are asked in random order, and a pair of models ends once it is 95 % sure
    which is better on questions like these, of which those given count as a sample. That is tested after each question,
    by a test that allows it: both orders together are one result, a tie counts half, and a missing verdict as whatever
    proves least. The level is that of each pair alone; with many pairs, ask for a higher one. A small difference takes
    all questions, and may stay open although as many would show it without this option. Calls under way when a pair
    ends are kept. The same command ends at the same question; without the option it asks for the rest.

    With --prices, progress shows the dollars spent, and --max-usd stops the run before a call that could pass it: what
    is on its way is still kept, and the same command with a higher limit asks for the rest.

    With --batch, all requests go to the server's Batch API (OpenAI's shape), as a rule for half the price: a file of
    them is submitted, looked at until it is answered, within 24 hours, and collected; requests that follow from a reply
    are a batch of their own. The first call is made directly, at its full price, so that what the server refuses is
    known before. What was submitted is noted in FILE.batches: after Ctrl-C or a kill the same command collects it, and
    submits nothing twice. Prices are half of those in --prices, unless the model has a "batch": {"in", "out"} there.

    \b
    Examples:
      vtools judge chatgpt.jsonl vicuna.jsonl --model gpt-4.1 -n --prices prices.json
      vtools judge chatgpt.jsonl vicuna.jsonl --model gpt-4.1 -j 8 -o judgments.jsonl
      vtools judge a.jsonl b.jsonl --questions q.jsonl --base-url http://127.0.0.1:8000/v1 | vtools report
      vtools judge a.jsonl b.jsonl vicuna.jsonl --baseline a --model gpt-4.1 --prices prices.json --max-usd 5 -o j.jsonl
      vtools judge a.jsonl b.jsonl --model gpt-4.1 --stop-when-decided 0.95 -o j.jsonl && vtools report j.jsonl
      vtools judge a.jsonl b.jsonl --judge gpt-4.1-2025-04-14 --judge qwen=http://127.0.0.1:8000/v1 -o j.jsonl
      vtools judge a.jsonl --rubric dialogue --mode single --model gpt-4.1 | vtools report
    """
    from vtools.inference.client import Sampling
    from vtools.inference.connect import Target, by_batch
    from vtools.judge import answer_files, answers, judging, matches, panel, rubric

    if mode_name == "pair" and len(files) < 2:
        raise UsageFailure("name a second file of answers to compare with, or grade the one with --mode single")
    if mode_name == "single" and one_order:
        raise UsageFailure("--one-order is about pairs; leave it out with --mode single")
    if mode_name == "single" and baseline is not None:
        raise UsageFailure("--baseline is about pairs; leave it out with --mode single")
    if stop_when_decided is not None:
        if mode_name == "single":
            raise UsageFailure("--stop-when-decided is about pairs; leave it out with --mode single")
        if not 0.5 <= stop_when_decided < 1:
            raise UsageFailure(f"--stop-when-decided {stop_when_decided:g}: name a level from 0.5 to below 1, as 0.95")
    if logprobs and (temperature or max_tokens):
        raise UsageFailure("--logprobs reads one token as it is: leave out --temperature and --max-tokens")
    chosen = rubric.read(rubric_name)
    mode = chosen.mode(mode_name)
    if logprobs:
        mode.one_token_form("")  # refuses what has several values
        sampling = Sampling(ONE_TOKEN, temperature, seed=seed, logprobs=ALTERNATIVES)
    else:
        sampling = Sampling(max_tokens or MAX_TOKENS, temperature, seed=seed)
    if batch and stop_when_decided:
        raise UsageFailure(
            "--batch asks everything at once, so that nothing can stop it: leave out --stop-when-decided"
        )
    source = context.get_parameter_source("model")
    if judges and source is not None and source.name == "COMMANDLINE":  # VTOOLS_MODEL is for when nothing is said
        raise UsageFailure("--judge and --model both say who judges; leave one of them out")
    several = len(judges or ()) > 1
    if own_family and not several:
        raise UsageFailure("--own-family is about a panel, of several --judge; one judge judges all")
    if several and batch:
        raise UsageFailure("--batch asks one judge: repeat the command for each --judge, with the same -o FILE")
    if several and stop_when_decided:
        raise UsageFailure("--stop-when-decided is about one judge's verdicts; leave it out with several --judge")
    at_once, beside = jobs or options.REQUESTS, by_batch(batch, out, jobs)
    common = Target(model, base_url, template, timeout=timeout, prices=prices, max_usd=max_usd, batch=beside)
    targets = panel.targets(common, judges or [])
    asked = judging.Judge(chosen, mode, sampling)
    every, known = answer_files.read(files, names, questions)
    board = panel.Panel(targets, {answers.model: answers.names for answers in every}, own_family)
    if mode_name == "single":
        tasks = list(answers.singles(every, known))
    else:
        tasks = list(matches.matches(every, known, baseline, ("ab",) if one_order else ("ab", "ba")))
    stopping = None
    if stop_when_decided is not None:
        from vtools.judge.stopping import Stopping

        stopping = Stopping(stop_when_decided, seed, tasks)
        tasks = stopping.tasks
    if not quiet:
        for warning in answer_files.warnings(every):
            say("judge", f"warning: {warning}")
    seen, contaminated = None, None
    if training_data:
        from vtools.judge import training_data as trained

        seen, contaminated = trained.seen(tasks, files[0], training_data)
    if dry_run:
        judging.estimate(tasks, board, asked, out, at_once, stopping)
        return
    try:
        outputs = options.Common(out, rejects, stats, at_once, quiet)
        judging.judge_all(tasks, board, asked, outputs, stopping, contaminated)
    finally:
        if seen and not quiet:
            say("judge", seen)
