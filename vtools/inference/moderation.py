"""What an OpenAI-compatible moderation endpoint says of a conversation's texts."""

from __future__ import annotations

import json
import os
import random
import time
from typing import Any
from urllib.parse import urlsplit

from vtools.inference import endpoint
from vtools.process import Failure, UsageFailure
from vtools.records.conversation import Message
from vtools.records.jsonl import Record, Reject

RETRIES = 6  # of a server that is busy or fails: half a minute in all
CONNECTS = 3  # of one that cannot be reached
TIMEOUT = 60.0  # seconds of silence


class Moderator:
    """One server and model. Each process has connections of its own."""

    def __init__(self, url: str, model: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageFailure(f"--moderation {url}: not an http(s) URL; for example {endpoint.OPENAI}")
        base = url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"
        self.url, self.model, self.loopback = f"{base}/moderations", model, parts.hostname in ("localhost", "127.0.0.1")
        self._client: Any = None
        self._process = 0

    def judge(self, messages: list[Message]) -> Record:
        """The highest score of each category over all texts.

        Raises Reject("moderation") with the raw scores of the text that is flagged, Failure.
        """
        places = [place for place, message in enumerate(messages) if message["content"].strip()]
        results = self._ask([messages[place]["content"] for place in places])
        highest: dict[str, float] = {}
        for place, result in zip(places, results, strict=True):
            scores = {str(name): score for name, score in (result.get("category_scores") or {}).items()}
            if result["flagged"]:
                names = ", ".join(name for name, flagged in (result.get("categories") or {}).items() if flagged)
                raise Reject(
                    "moderation", f"messages[{place}]: {names or 'flagged'}; category_scores {json.dumps(scores)}"
                )
            for name, score in scores.items():
                if isinstance(score, int | float):
                    highest[name] = max(score, highest.get(name, score))
        return {"model": self.model, "category_scores": highest}

    def _ask(self, texts: list[str]) -> list[dict[str, Any]]:
        import httpx2

        attempt = 0
        while True:
            allowed, said = CONNECTS, ""
            asked: float | None = None
            try:
                response = self._connection().post(self.url, json={"model": self.model, "input": texts})
            except httpx2.TransportError as error:
                said = f"no answer ({error or type(error).__name__}); is the server running?"
            else:
                if response.status_code == 200:
                    return self._results(response, len(texts))
                said = f"HTTP {response.status_code}: {' '.join(response.text.split())[:300]}"
                if response.status_code in (400, 413, 422):  # these texts, not this server
                    raise Reject("moderation", f"not judged: {said}")
                asked = endpoint.retry_after(response.headers)
                busy = response.status_code in (408, 409, 425, 429) or response.status_code >= 500
                allowed = RETRIES if busy and (asked is None or asked <= endpoint.LONGEST_WAIT) else 0
                if response.status_code in (401, 403):
                    said += "; check OPENAI_API_KEY"
            if attempt >= allowed:
                tries = f" after {attempt + 1} tries" if attempt else ""
                raise Failure(f"{self.url}{tries}: {said}")
            wait = min(0.5 * 2**attempt, 30) * random.uniform(0.75, 1.25)
            time.sleep(wait if asked is None else asked * random.uniform(1, 1.25))
            attempt += 1

    def _results(self, response: Any, count: int) -> list[dict[str, Any]]:
        try:
            results = response.json()["results"]
            if len(results) == count and all(isinstance(result["flagged"], bool) for result in results):
                return results
        except (ValueError, KeyError, TypeError):
            pass
        raise Failure(f"{self.url}: the reply is not one of a moderation endpoint")

    def _connection(self) -> Any:
        if self._client is None or self._process != os.getpid():  # a forked worker must not share a connection
            import httpx2

            key = os.environ.get("OPENAI_API_KEY")
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            self._client = httpx2.Client(headers=headers, timeout=TIMEOUT, trust_env=not self.loopback)
            self._process = os.getpid()
        return self._client
