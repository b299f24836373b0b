"""What a fleet's keeper asks of an edge: the status as JSON or a table, to drain a worker."""

import json
import ssl
import sys
from typing import Any

from vtools.process import Failure, UsageFailure, shown
from vtools.serve import signatures

EDGE = "http://127.0.0.1:8000"  # where `vtools serve` listens unless told otherwise
SECONDS = 10.0  # for an edge to answer
COLUMNS = ("model", "worker", "state", "in_flight", "seconds", "url", "reason")


def edges(given: list[str]) -> list[str]:
    """The URLs of edges, without /v1. Raises UsageFailure."""
    found = [one.strip().rstrip("/").removesuffix("/v1") for each in given for one in each.split(",") if one.strip()]
    for url in found:
        if not url.startswith(("http://", "https://")):
            raise UsageFailure(f"{url}: not the URL of an edge; for example https://edge.example:8000")
    return list(dict.fromkeys(found))


def ask(edge: str, path: str, asked: dict[str, Any]) -> Any:
    """An edge's answer. Raises Failure."""
    import httpx2
    import orjson

    body = orjson.dumps(asked)
    headers = signatures.headers(signatures.token(), path, body)
    try:
        trusted = ssl.create_default_context()  # with the certificates of SSL_CERT_FILE
        with httpx2.Client(verify=trusted, trust_env=False, timeout=SECONDS) as client:
            reply = client.post(f"{edge}{path}", content=body, headers=headers)
        answer = reply.json()
    except httpx2.HTTPError as error:
        raise Failure(f"{edge}: no answer ({error}); is it the URL of an edge that runs?") from None
    except ValueError:
        raise Failure(f"{edge}: HTTP {reply.status_code}, and no JSON; is it the URL of an edge?") from None
    if reply.status_code != 200:
        raise Failure(f"{edge}: {answer.get('error', {}).get('message') or f'HTTP {reply.status_code}'}")
    return answer


def status(edge: str) -> None:
    """Print an edge's status: a table on a terminal, else one JSON object."""
    found = ask(edge, signatures.STATUS, {})
    if not sys.stdout.isatty():
        print(json.dumps(found))
        return
    rows = [*found["workers"], *({"worker": one["from"], "state": "refused", **one} for one in found["refused"])]
    print(table([{name: _cell(row.get(name)) for name in COLUMNS} for row in rows]))
    for model in found["models"]:
        warning = f"; {model['warning']}" if "warning" in model else ""
        print(shown(f"{model['model']}: {model['workers']} workers, {model['in_flight']} in flight{warning}"))


def table(rows: list[dict[str, str]]) -> str:
    """Rows under their names, in columns."""
    head = {name: name.replace("_", " ") for name in COLUMNS}
    widths = {name: max(len(row[name]) for row in [head, *rows]) for name in COLUMNS}
    return "\n".join("  ".join(row[name].ljust(widths[name]) for name in COLUMNS).rstrip() for row in [head, *rows])


def _cell(value: Any) -> str:
    return "" if value is None else shown(str(value))


def drain(edge: str, worker: str) -> None:
    """Have a worker finish and end."""
    print(json.dumps(ask(edge, signatures.DRAIN, {"worker": worker})))
