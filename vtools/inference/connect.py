"""From `--model` and `--base-url` to a client: a server, or a model in this process."""

import os
from dataclasses import dataclass
from pathlib import Path

from vtools.inference import address
from vtools.inference.client import Client
from vtools.process import UsageFailure


@dataclass(frozen=True, slots=True)
class Target:
    """What to ask, as named on the command line; `timeout` limits a server's silence, in seconds."""

    model: str | None
    base_url: str | None = None
    template: str | None = None
    system: str | None = None
    timeout: float = 600.0

    def __str__(self) -> str:
        return where(self.model, self.base_url) or "this process"


def connect(target: Target) -> tuple[Client, str]:
    """The client for a target, and its model's name. Raises Failure if no server or no model is there."""
    url = where(target.model, target.base_url)
    if url is None:
        from vtools.inference.engine import Engine

        engine = Engine(str(target.model), template=target.template, system=target.system, clamp=True)
        return engine, str(target.model)
    if target.template:
        raise UsageFailure(f"--template: {url} renders its own prompts; the option is only for a model loaded here")
    if target.system == "":
        raise UsageFailure(f"--system none: {url} renders its own prompts; start that server with --system none")
    from vtools.inference.endpoint import Endpoint

    endpoint = Endpoint(url, target.model, timeout=target.timeout)
    return endpoint, endpoint.model


def where(model: str | None, base_url: str | None = None) -> str | None:
    """The URL to ask, or None for a model in this process. In order of precedence:

    --base-url; a model that is a folder or a .gguf file here; OPENAI_BASE_URL; a hub id (OWNER/NAME or hf:…) in this
    process; api.openai.com, given a key and a model; `vtools serve` on this machine.
    """
    if base_url:
        return base_url
    if model and (Path(model, "config.json").exists() or (model.endswith(".gguf") and Path(model).exists())):
        return None
    if url := os.environ.get("OPENAI_BASE_URL"):
        return url
    if model and ("/" in model or model.startswith("hf:") or model.endswith(".gguf")):
        return None
    return address.OPENAI if model and address.key() else address.SERVE
