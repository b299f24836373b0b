"""A judge's server that fails as servers do: refusals, errors, silence and torn bodies, drawn by a seed."""

from __future__ import annotations

import json
import random
import threading
import time
from typing import Any

from judging import Judge, grades
from loopback import Break, Status

KINDS = ("429", "500", "silence", "torn")


class Unreliable(Judge):
    """Answers after `latency` seconds; one call in ten fails. `silence` is how long the client waits, in seconds.

    `busy` has the seconds that each call took here, a silent one as long as the client waits, and each wait that the
    server asked for.
    """

    def __init__(self, latency: float, silence: float, retry_after: float = 1.0, seed: int = 0) -> None:
        self.latency, self.silence, self.retry_after = latency, silence, retry_after
        self.busy: list[float] = []
        self.failed: dict[str, int] = dict.fromkeys(KINDS, 0)
        self.answered = self.under_way = 0
        self._dice, self._lock = random.Random(seed), threading.Lock()
        self._ended = threading.Event()
        super().__init__(self._late)

    def _late(self, messages: list[dict], body: dict) -> Any:
        with self._lock:
            kind = self._dice.choice(KINDS) if self._dice.random() < 0.1 else None
            self.under_way += 1
        began = time.monotonic()
        try:
            if kind == "silence":
                self._ended.wait(self.silence + 2)
                raise Break
            time.sleep(self.latency)
            if kind == "429":
                raise Status(429, headers={"Retry-After": str(self.retry_after)})
            if kind == "500":
                raise Status(500)
            if kind == "torn":
                raise Break
            with self._lock:
                self.answered += 1
            return grades(7, 4)
        finally:
            with self._lock:
                self.under_way -= 1
                self.busy.append(min(time.monotonic() - began, self.silence))
                if kind:
                    self.failed[kind] += 1
                if kind == "429":
                    self.busy.append(self.retry_after)

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        super().__exit__(*error)


def answers(model: str, number: int) -> str:
    """So many answers of a model, as JSONL."""
    rows = [{"id": n, "model": model, "question": [f"question {n}"], "turns": [f"{model} {n}"]} for n in range(number)]
    return "".join(json.dumps(row) + "\n" for row in rows)
