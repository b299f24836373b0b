"""From `--model` and `--base-url` to a client: a server, or a model in this process."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from vtools.inference import address, batch_store
from vtools.inference.budget import Budget, Purse
from vtools.inference.client import Client
from vtools.inference.journal import is_kept
from vtools.process import UsageFailure
from vtools.records import prices


@dataclass(frozen=True, slots=True)
class Target:
    """What to ask, as named on the command line; `timeout` limits a server's silence, in seconds.

    `prices` is a file with what its tokens cost, and `max_usd` the most that a run may. `batch` is the output file, if
    it is to be asked by batches. Raises UsageFailure.
    """

    model: str | None
    base_url: str | None = None
    template: str | None = None
    system: str | None = None
    timeout: float = 600.0
    prices: str | None = None
    max_usd: float | None = None
    batch: str | None = None

    def __post_init__(self) -> None:
        if self.max_usd is not None and not self.prices:
            raise UsageFailure("--max-usd needs --prices FILE, which says what a token costs")

    def __str__(self) -> str:
        return where(self.model, self.base_url) or "this process"

    def identity(self) -> str:
        """What `connect` would give as the client's identity, without loading a model. Raises Failure."""
        if where(self.model, self.base_url) is None:
            from vtools.inference.identity import of_reference

            return of_reference(str(self.model), self.template, self.system)
        client, _ = connect(self, start_wait=0)
        try:
            return client.identity()
        finally:
            client.close()


def connect(target: Target, start_wait: float | None = None, purse: Purse | None = None) -> tuple[Client, str]:
    """The client for a target, and its model's name. Raises Failure if no server or no model is there.

    What it spends counts together with what is in the `purse`.
    """
    url = where(target.model, target.base_url)
    if url is None:
        if target.prices:
            raise UsageFailure(f"--prices: {target.model} runs in this process, where no token has a price")
        if target.batch:
            raise UsageFailure(f"--batch: {target.model} runs in this process; only servers have a Batch API")
        from vtools.inference.engine import Engine

        engine = Engine(str(target.model), template=target.template, system=target.system, clamp=True)
        return engine, str(target.model)
    if target.template:
        raise UsageFailure(f"--template: {url} renders its own prompts; the option is only for a model loaded here")
    if target.system == "":
        raise UsageFailure(f"--system none: {url} renders its own prompts; start that server with --system none")
    from vtools.inference.endpoint import START_WAIT, Endpoint

    waited = START_WAIT if start_wait is None else start_wait
    endpoint = Endpoint(url, target.model, timeout=target.timeout, start_wait=waited)
    if not target.base_url and target.model and address.key() and not os.environ.get("OPENAI_BASE_URL"):
        print(f"vtools: asking {url} for {target.model}", file=sys.stderr)
    if target.prices:
        listed = prices.read(target.prices)
        model = endpoint.model
        endpoint.budget = Budget(listed.tokens(model), target.max_usd, listed.batch_tokens(model), purse)
    if target.batch:
        if "," in url:
            raise UsageFailure(f"--batch: a batch is one server's, and {url} are several: name one")
        from vtools.inference.batch_client import Batches

        return Batches(endpoint, target.batch), endpoint.model
    return endpoint, endpoint.model


def by_batch(batch: bool, out: str | None, jobs: int | None) -> str | None:
    """The output file, beside which the batches of a run are noted; None without --batch. Raises UsageFailure."""
    if not batch:
        if out and (noted := batch_store.noted(out)):
            raise UsageFailure(
                f"{batch_store.folder(out)}: {noted} requests are submitted or answered by batch; add --batch to "
                "collect them, or remove this folder to ask for them again"
            )
        return None
    if jobs:
        raise UsageFailure("--batch submits all requests together; -j is for requests that run at once: leave out one")
    if out is None or not is_kept(out):
        raise UsageFailure("--batch needs -o FILE: what was submitted is noted beside it, and collected from there")
    return out


def where(model: str | None, base_url: str | None = None) -> str | None:
    """The URL to ask, or None for a model in this process. In order of precedence:

    --base-url; a model that is a folder or a .gguf file here; OPENAI_BASE_URL; a hub id (OWNER/NAME or hf:…) in this
    process; given a key and a model, `vtools serve` on this machine if it serves that model, else api.openai.com;
    `vtools serve` on this machine.
    """
    if base_url:
        return base_url
    if model and (Path(model, "config.json").exists() or (model.endswith(".gguf") and Path(model).exists())):
        return None
    if url := os.environ.get("OPENAI_BASE_URL"):
        return url
    if model and ("/" in model or model.startswith("hf:") or model.endswith(".gguf")):
        return None
    if model and address.key() and not address.serves(address.SERVE, model):
        return address.OPENAI
    return address.SERVE
