# ruff: noqa: TID253  imported by the edge alone
"""What a worker must show before it is asked: the join token, that it serves what its lease says, and one token."""

import asyncio
import contextlib
import json
import secrets
import ssl
from typing import Any

import h11
import orjson

from vtools.inference.client import Token
from vtools.inference.identity import fingerprint
from vtools.models.template import Template
from vtools.process import Failure
from vtools.serve import signatures, template_files
from vtools.serve.exchange import Exchange, Remote, trusting
from vtools.serve.lease import Lease
from vtools.serve.upstream import CONNECT, Lost, Refused, Worker
from vtools.serve.worker_url import BadUrl, Policy

CHALLENGE, TEMPLATE = "/fleet/challenge", "/fleet/template"
ANSWER = 1 << 16  # bytes of an answer to a challenge
FILES = 64 << 20  # bytes of a tokenizer
SECONDS = 5.0  # for either
CANARY = 60.0  # seconds for a token
LIKELIEST = 5  # tokens by which answers of the same weights are known
Tops = dict[int, float]


class Unfit(Exception):
    """A worker that is not asked, and why."""


async def vetted(
    lease: Lease, peer: str, policy: Policy, token: bytes, known: Template | None, tops: Tops | None
) -> tuple[Worker, Template, Tops]:
    """The worker of a lease, its template, and the likeliest tokens after a prompt that is the same for all.

    `known` and `tops` are those of the workers that have the same weights. Raises Unfit.
    """
    try:
        place = await policy.place(lease.url, peer)
        if place.tls != bool(lease.certificate):
            raise Unfit("its lease has no certificate, or one that it does not use")
        remote = Remote(place.address, place.port, trusting(lease.certificate) if place.tls else None, lease.key)
        worker = Worker(f"{lease.model}@{place}", 0, remote)
        await _challenge(remote, lease, token)
        found = await _canary(worker, lease.vocabulary)
        if tops is not None and not (set(found) & set(tops)):
            raise Unfit("it answers a prompt otherwise than others with the weights that it claims to have")
        if known is None:
            known = await _template(remote, lease)
    except BadUrl as error:
        raise Unfit(str(error)) from None
    return worker, known, tops or found


async def canary(worker: Worker, vocabulary: int) -> bool:
    """Whether a token comes through the worker's engine."""
    with contextlib.suppress(Unfit):
        return bool(await _canary(worker, vocabulary))
    return False


async def _post(remote: Remote, path: str, body: bytes, limit: int) -> tuple[Any, bytes]:
    """The answer with status 200, and its body. Raises Unfit."""
    where = f"{remote.address}:{remote.port}"
    exchange = Exchange(remote)
    try:
        response, read = await exchange.whole(path, body, limit, SECONDS)
    except TimeoutError:
        raise Unfit(f"{where} did not answer {path} within {SECONDS:g} s: is the port open to this edge?") from None
    except ssl.SSLError as error:
        raise Unfit(f"{where}: TLS fails ({error.reason})") from None
    except OSError as error:
        raise Unfit(f"{where} cannot be reached ({error.strerror or error}): is the port open to this edge?") from None
    except (h11.RemoteProtocolError, ValueError) as error:
        raise Unfit(f"{where} does not answer {path} as a worker does: {error}") from None
    finally:
        exchange.close()
    if response.status_code != 200:
        moved = "; redirects are not followed" if 300 <= response.status_code < 400 else ""
        raise Unfit(f"{where} answers {path} with HTTP {response.status_code}{moved}")
    return response, read


async def _challenge(remote: Remote, lease: Lease, token: bytes) -> None:
    """Raise Unfit unless the worker signs a new nonce and what its lease says of its model."""
    nonce = secrets.token_hex(16)
    _, read = await _post(remote, CHALLENGE, orjson.dumps({"nonce": nonce}), ANSWER)
    try:
        answer = orjson.loads(read)
        about, signature = answer["about"], str(answer["signature"])
    except (ValueError, KeyError, TypeError):
        raise Unfit(f"{remote.address}:{remote.port} does not answer {CHALLENGE} as a worker does") from None
    if not signatures.signs(signature, token, nonce.encode(), _canonical(about)):
        raise Unfit("its answer to the challenge is not signed with the join token, or was given to an earlier one")
    claimed = {"id": lease.id, **lease.served()}
    if about != claimed:
        differing = [name for name in claimed if not isinstance(about, dict) or about.get(name) != claimed[name]]
        raise Unfit(f"its lease does not say what it serves: {', '.join(differing) or 'other fields'} differ")


def signed(token: bytes, nonce: str, about: dict[str, Any]) -> dict[str, Any]:
    """A worker's answer to a challenge."""
    return {"about": about, "signature": signatures.sign(token, nonce.encode(), _canonical(about))}


def _canonical(about: Any) -> bytes:
    return json.dumps(about, sort_keys=True).encode()


async def _canary(worker: Worker, vocabulary: int) -> Tops:
    """The likeliest tokens after a prompt. Raises Unfit."""
    prompt = [vocabulary * part // 9 for part in range(8)]
    body = orjson.dumps({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": LIKELIEST})
    tokens: list[Token] = []
    try:
        async with asyncio.timeout(CANARY), contextlib.aclosing(worker.stream(body)) as stream:
            async for some in stream:
                tokens += some.tokens
    except TimeoutError:
        raise Unfit(f"its engine gave no token within {CANARY:g} s") from None
    except Refused as error:
        raise Unfit(f"its engine refuses a prompt: {error}") from None
    except Lost as error:
        why = {"connect": f"cannot be reached within {CONNECT:g} s", "stall": "falls silent"}
        raise Unfit(f"its engine {why.get(error.reason, 'fails')} when asked for one token") from None
    if len(tokens) != 1 or not tokens[0].top or not all(0 <= number < vocabulary for number in tokens[0].top):
        raise Unfit("its engine does not give the one token that it is asked for, with those that it prefers")
    return tokens[0].top


async def _template(remote: Remote, lease: Lease) -> Template:
    """The worker's template. Raises Unfit."""
    _, read = await _post(remote, TEMPLATE, b"{}", FILES)
    try:
        template = await asyncio.to_thread(lambda: template_files.read(orjson.loads(read)))
    except (Failure, ValueError) as error:
        raise Unfit(f"its tokenizer and template cannot be used: {error}") from None
    if fingerprint(lease.digest, template) != lease.fingerprint:
        raise Unfit("its template is not the one that its lease names")
    return template
