"""Moderating a conversation's texts by an OpenAI-compatible endpoint."""

import json
import os
import time
from typing import Any

from vtools.inference import address, retry
from vtools.inference.address import Server, one_line
from vtools.process import Failure
from vtools.records.conversation import Message
from vtools.records.jsonl import Record, Reject

CONNECTS = 3  # retries for a server that cannot be reached
TIMEOUT = 60.0  # seconds of silence


class Moderator:
    """One server and model. Each process has its own connections."""

    def __init__(self, url: str, model: str) -> None:
        self._server, self.model = Server(url), model
        self.url = f"{self._server.url}/moderations"
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
            allowed, asked = CONNECTS, None
            try:
                response = self._connection().post(self.url, json={"model": self.model, "input": texts})
            except httpx2.TransportError as error:
                said = f"no answer ({error or type(error).__name__}); is the server running?"
            else:
                if response.status_code == 200:
                    return self._results(response, len(texts))
                said = f"HTTP {response.status_code}: {one_line(response.text)}"
                if response.status_code in (400, 413, 422):  # refused for these texts, not for every request
                    raise Reject("moderation", f"not judged: {said}")
                asked = retry.after(response.headers)
                allowed = retry.RETRIES if retry.is_transient(response.status_code) else 0
                if response.status_code in (401, 403):
                    said += "; check OPENAI_API_KEY"
            wait = retry.wait(attempt, allowed, asked)
            if wait is None:
                tries = f" after {attempt + 1} tries" if attempt else ""
                raise Failure(f"{self.url}{tries}: {said}")
            time.sleep(wait)
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

            key = address.key()
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            self._client = httpx2.Client(headers=headers, timeout=TIMEOUT, trust_env=not self._server.loopback)
            self._process = os.getpid()
        return self._client
