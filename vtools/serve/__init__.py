"""`vtools serve`: answer the OpenAI chat API with local models."""

import os
from typing import Annotated

import typer

from vtools import options
from vtools.process import UsageFailure, say

KEY = "VTOOLS_API_KEY"


def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]MODEL...", help="A folder, hub id or .gguf file; NAME: its last part."),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help=f"Address to listen on; all but loopback need {KEY}.")] = "127.0.0.1",
    template: options.TemplateName = None,
    system: options.SystemText = None,
    dtype: Annotated[options.Dtype, typer.Option(help="Data type of the weights; fp32 repeats its answers.")] = "fp32",
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests that a model takes at a time; the rest get 429.")
    ] = 64,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Answer the OpenAI chat API with one or more local models.

    Clients take http://127.0.0.1:8000/v1 as their base URL: `vtools chat`, the openai library, curl. Requests run
    together, streamed or not; a client that goes away ends its own. SIGTERM lets requests finish for 25 seconds.

    stdout has one JSON line an event: "ready" with the URL, then "request" for each answer, without its text.
    With VTOOLS_API_KEY set, clients send it as their API key.

    \b
    Examples:
      vtools serve ./vicuna
      vtools serve base=HuggingFaceTB/SmolLM2-135M-Instruct tuned=./vicuna --port 8001
      vtools serve ./vicuna --port 0 | jq -r --unbuffered 'select(.event == "ready").url'
    """
    named = _names(models)
    from vtools.serve import listen

    listener = listen.bind(host, port)
    key = os.environ.get(KEY) or None
    if key is None and not listen.is_loopback(listener):
        raise UsageFailure(f"--host {host} is open to other machines: set {KEY} in the environment first")

    from vtools.models.reference import model_folder

    for reference in named.values():
        model_folder(reference)
    from vtools.inference.client import Sampling
    from vtools.inference.engine import Engine

    threads = max(1, len(os.sched_getaffinity(0)) // len(named))
    engines = {}
    for name, reference in named.items():
        engines[name] = Engine(reference, template=template, system=system, dtype=dtype, threads=threads)
        # One token by the way that requests take: a model that loads may still not run.
        engines[name].complete([{"role": "user", "content": "Hello"}], Sampling(max_tokens=1, temperature=0))

    from vtools.serve.api import Api

    events = listen.Events()
    api = Api(engines, key=key, most=max_requests, event=events.put)
    url = listen.url(listener, host)

    def ready() -> None:
        events.put({"event": "ready", "url": url, "models": list(engines)})
        if not quiet:
            say("serve", f"{', '.join(engines)} at {url} (Ctrl-C stops)")

    try:
        listen.run(api.application, listener, ready)
    finally:
        for engine in engines.values():
            engine.close()
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
            raise UsageFailure(f"{argument}: give a model as MODEL or NAME=MODEL")
        if name in named:
            raise UsageFailure(f"{argument}: there is a model {name} already; give this one its own name: NAME=MODEL")
        named[name] = reference
    return named
