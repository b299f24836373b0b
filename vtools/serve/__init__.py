"""`vtools serve`: serve local models over the OpenAI chat API."""

import asyncio
import os
from typing import Annotated, Literal

import typer

from vtools import options
from vtools.process import UsageFailure, say


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]MODEL...",
            help="A folder, hub id or .gguf file; clients call it NAME (default: the last part of MODEL).",
        ),
    ],
    port: Annotated[int, options.number(min=0, max=65535, help="Listen on this port; 0 picks a free one.")] = 8000,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Listen on this address; any but loopback needs VTOOLS_API_KEY.")
    ] = "127.0.0.1",
    template: options.TemplateName = None,
    system: options.SystemText = None,
    dtype: Annotated[
        Literal["auto", options.Dtype],
        typer.Option(help="Which dtype to load the weights in: fp32 on a CPU, where answers repeat, else bf16."),
    ] = "auto",
    max_requests: Annotated[
        int, options.number(min=1, help="Accept N requests per model at a time; further ones get HTTP 429.")
    ] = 64,
    workers: Annotated[
        int, options.number(min=1, help="Run N processes per model: where one dies, another goes on with its answers.")
    ] = 1,
    grace: Annotated[
        float,
        options.number(
            min=0, max=86400, help="Give up on running answers N seconds after SIGTERM: they end in an error."
        ),
    ] = 25.0,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="Answer web pages of this origin, such as http://localhost:3000; repeatable."
        ),
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Serve one or more local models over the OpenAI chat API.

    Clients such as `vtools chat`, the openai library or curl use the base URL http://127.0.0.1:8000/v1. Requests that
    come at the same time share one batch, whether or not they are streamed; a request ends when its client disconnects.
    A dead worker is started again; another one, or itself, goes on with its answers, token for token. Workers take the
    machine's GPUs, or those of CUDA_VISIBLE_DEVICES, in turn.

    stdout: one JSON line per event: "ready" with the URL, "worker" when one comes up or ends, "request" for each
    request, without its text, and at last "drained". If VTOOLS_API_KEY is set, clients must send it as their API key.

    \b
    Examples:
      vtools serve ./vicuna
      vtools serve base=HuggingFaceTB/SmolLM2-135M-Instruct tuned=./vicuna --port 8001
      vtools serve ./vicuna --port 0 | jq -r --unbuffered 'select(.event == "ready").url'
    """
    named = _names(models)
    from vtools.serve import admission, listen

    key = admission.key(os.environb)
    origins = allow_origin or []
    admission.check_origins(origins, key)
    listener = listen.bind(host, port)
    if key is None and not listen.is_loopback(listener):
        raise UsageFailure(f"--host {host} is open to other machines: set {admission.KEY} in the environment first")

    from vtools.models.reference import model_folder
    from vtools.serve.supervisor import Supervisor

    for reference in named.values():
        model_folder(reference)
    listen.start(listener)
    threads = max(1, len(os.sched_getaffinity(0)) // (len(named) * workers))
    events = listen.Events()
    url = listen.url(listener, host)

    def ready() -> None:
        events.put({"event": "ready", "url": url, "models": list(named)})
        if not quiet:
            say("serve", f"{', '.join(named)} at {url} (Ctrl-C stops)")

    edge = {
        "template": template,
        "system": system,
        "most": max_requests,
        "grace": grace,
        "host": host,
        "origins": origins,
    }
    worker = {
        "template": template, "system": system, "dtype": dtype, "threads": threads, "max_requests": max_requests,
        "grace": grace,
    }  # fmt: skip
    try:
        asyncio.run(Supervisor(named, workers, listener, edge, worker, events.put).run(ready))
    finally:
        events.close()


def _names(models: list[str]) -> dict[str, str]:
    """`[NAME=]MODEL` arguments to references by name. Raises UsageFailure for a name used twice."""
    named: dict[str, str] = {}
    for argument in models:
        name, equals, reference = argument.partition("=")
        if not equals or os.path.exists(argument):
            path = os.path.abspath(argument.removeprefix("hf:").partition("@")[0])
            name, reference = os.path.basename(path).removesuffix(".gguf"), argument
        if not name or not reference:
            raise UsageFailure(f"{argument}: not a model; write MODEL or NAME=MODEL")
        if name in named:
            raise UsageFailure(f"{argument}: another model is named {name} already; name this one with NAME=MODEL")
        named[name] = reference
    return named
