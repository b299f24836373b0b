"""`vtools serve`: serve models over the OpenAI chat API, on one machine or by a fleet of workers."""

import os
from typing import Annotated, Literal

import typer

from vtools import options
from vtools.process import UsageFailure


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAME=]MODEL...]",
            help="A folder, hub id, .gguf file or URL of an engine; clients call it NAME (default: its last part)."
            " None: an edge alone, which workers join.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        options.number(
            min=0,
            max=65535,
            show_default="8000; a free one with --join",
            help="Listen on this port; 0 picks a free one.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="HOST", help="Listen on this address; any but loopback needs keys of clients and workers."
        ),
    ] = "127.0.0.1",
    join: Annotated[
        str | None,
        typer.Option(metavar="URL[,URL]", help="Join the edges at these URLs as a worker; they must reach HOST."),
    ] = None,
    spot: Annotated[
        str | None,
        typer.Option(metavar="CLOUD[=URL]", help="Stop when aws, gcp or azure says that this machine is taken away."),
    ] = None,
    swap: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=MODEL", help="Join the EDGE named in place of a model, and replace NAME's weights there."
        ),
    ] = None,
    status: Annotated[
        bool,
        typer.Option("--status", help="Show the workers of the EDGE named in place of a model, and who is refused."),
    ] = False,
    drain: Annotated[
        str | None,
        typer.Option(
            metavar="WORKER", help="Stop this worker of the EDGE named in place of a model, after its last answer."
        ),
    ] = None,
    new_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Add a client's key to VTOOLS_KEYS_FILE, and print it once.")
    ] = None,
    allow_net: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="Accept workers from this private network, as 10.0.0.0/8; repeatable."),
    ] = None,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="Use TLS with this certificate (PEM).")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Use this private key of --tls-cert.")] = None,
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
    """Serve one or more models over the OpenAI chat API, from this machine or by workers that join it.

    Clients such as `vtools chat`, the openai library or curl use the base URL http://127.0.0.1:8000/v1. Requests that
    come at the same time share one batch, whether or not they are streamed; a request ends when its client disconnects.
    A dead worker is started again; another one, or itself, goes on with its answers, token for token. Workers take the
    machine's GPUs, or those of CUDA_VISIBLE_DEVICES, in turn.

    With --join, this machine's workers are asked by edges elsewhere, as long as they renew their leases; start them
    before or after the edges, of which two may run side by side. Both sides need the same VTOOLS_JOIN_TOKEN. An edge
    looks at a worker before it asks it: see --status. A MODEL may also be the URL of an OpenAI-compatible engine.

    stdout: one JSON line per event: "ready" with the URL, "worker" when one comes up or ends, "lease" when one joins or
    leaves, "request" for each request, without its text, and at last "drained". Clients must send an API key if
    VTOOLS_API_KEY is set, or VTOOLS_KEYS_FILE, which SIGHUP has read again.

    \b
    Examples:
      vtools serve ./vicuna
      vtools serve base=HuggingFaceTB/SmolLM2-135M-Instruct tuned=./vicuna --port 8001
      vtools serve ./vicuna --port 0 | jq -r --unbuffered 'select(.event == "ready").url'
      vtools serve --port 8002 & vtools serve ./vicuna --join http://127.0.0.1:8002
    """
    from vtools.serve import control, keys

    asked = {"--status": status, "--drain": drain, "--new-key": new_key, "--swap": swap, "--join": join}
    chosen = [name for name, value in asked.items() if value]
    if len(chosen) > 1:
        raise UsageFailure(f"{' and '.join(chosen)} do different things: choose one")
    if new_key:
        if models:
            raise UsageFailure(f"--new-key adds a key, and serves nothing: leave out {models[0]}")
        print(keys.add(new_key, os.environ))
        return
    if status or drain or swap:
        edges = control.edges(models or [control.EDGE])
        if len(edges) > 1 and not swap:
            raise UsageFailure(f"{chosen[0]} asks one edge: name one")
        if status:
            control.status(edges[0])
            return
        if drain:
            control.drain(edges[0], drain)
            return
        models = [str(swap)]
    else:
        edges = control.edges([join]) if join else []
    from vtools.serve import start

    given = options.fields_from(start.Settings, {**locals(), "swap": bool(swap), "models": models or []})
    start.start(given)
