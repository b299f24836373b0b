"""`vtools chat`: talk to a model, or ask it a file of questions."""

import sys
from typing import Annotated

import typer

from vtools import options
from vtools.process import UsageFailure


def chat(
    files: options.Files = None,
    model: options.AskedModel = None,
    base_url: options.BaseUrl = None,
    temperature: options.Temperature = 0.7,
    top_p: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, metavar="SHARE", help="Sample from the likeliest tokens, up to this probability."
        ),
    ] = 1.0,
    max_tokens: Annotated[
        int | None, options.number(min=1, help="Limit answers to N tokens. Default: what the server allows.")
    ] = None,
    seed: options.Seed = 0,
    template: options.TemplateName = None,
    system: options.SystemText = None,
    text: Annotated[bool, typer.Option("--text", help="Read lines as questions; print the bare answers.")] = False,
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
    """Talk to a model in the terminal, or ask it a file of questions: one answer per line.

    In a terminal without FILE it starts a conversation; /help lists the commands. Otherwise it reads questions:
    {"id", "turns": [...]}, FastChat's format, {"prompt"}, or conversations, asked up to their last user turn. -j
    requests run at a time; answers are written in the order of the questions, as `vtools judge` reads them. The exit
    status is 1 if a question got no answer.

    The model runs on the server at --base-url or OPENAI_BASE_URL (key in OPENAI_API_KEY), or in this process if --model
    is a folder, a hub id or a .gguf file. With neither, the server is `vtools serve` on this machine, unless a key and
    a --model that it does not serve are given: then api.openai.com.

    With -o FILE, answers are kept in FILE.journal: after a failure or a kill, the same command asks only the remaining
    questions, and rows of FILE that it does not ask for follow after its own. A retrained model gives new answers;
    another model needs another FILE. On plain stdout nothing is kept; with --text, a FILE that exists is refused.

    With --batch, all questions go to the server's Batch API, as a rule for half the price, and are answered within 24
    hours; each further turn is a batch of its own, and the first answer is asked for directly. What was submitted is
    noted in FILE.batches: after Ctrl-C or a kill the same command collects it, and submits nothing twice. Prices are
    half of those in --prices, unless the model has a "batch": {"in", "out"} there.

    \b
    Examples:
      vtools serve vicuna & vtools chat
      vtools chat --model vicuna < questions.jsonl > answers.jsonl
      echo 'What is a pipe?' | vtools chat --text --model ./vicuna --temperature 0
      vtools chat questions.jsonl --base-url https://api.openai.com/v1 --model gpt-4.1 -j 8 -o answers.jsonl
    """
    from vtools.inference.client import Sampling
    from vtools.inference.connect import Target, by_batch

    target = Target(model, base_url, template, system, timeout, prices, max_usd, by_batch(batch, out, jobs))
    sampling = Sampling(max_tokens, temperature, top_p, seed)
    if max_usd is not None and max_tokens is None:
        raise UsageFailure("--max-usd needs --max-tokens: without it there is no limit to what an answer may cost")
    if not files and sys.stdin.isatty():
        from vtools.chat import terminal

        if batch:
            raise UsageFailure("--batch is for a file of questions, not for a conversation: name the file")
        terminal.converse(target, system, sampling, out)
        return
    if batch and text:
        raise UsageFailure("--text keeps nothing that a later run finds: leave out --batch or --text")
    from vtools.chat.batch import answer_all

    common = options.Common(out, rejects, stats, jobs or options.REQUESTS, quiet)
    answer_all(files or [], target, system, sampling, common, text=text, dry_run=dry_run)
