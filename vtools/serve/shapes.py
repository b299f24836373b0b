"""Answers as the OpenAI API writes them: of a chat and of a completion, whole and in chunks.

Log-probabilities and token ids are those of every token that usage counts, as vLLM gives them: where an answer ends by
itself, its end token is the last, under its own name.
"""

import time
import uuid
from collections.abc import Callable
from typing import Any

from vtools.inference.client import Token
from vtools.serve.answer import Piece

Named = Callable[[int], str]
Object = dict[str, Any]


class Chat:
    """The shapes of a chat."""

    def __init__(self, model: str, fingerprint: str, named: Named, logprobs: bool, with_ids: bool = False) -> None:
        self._head = _head("chatcmpl", model, fingerprint)
        self._named, self._logprobs, self._with_ids = named, logprobs, with_ids

    def whole(self, choices: list[Object], usage: Object) -> Object:
        """The reply to a request that is not streamed."""
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage}

    def chunk(self, choices: list[Object], **usage: Object | None) -> Object:
        """A part of a streamed one."""
        return {**self._head, "object": "chat.completion.chunk", "choices": choices, **usage}

    def choice(self, index: int, pieces: list[Piece], finish: str | None) -> Object:
        """A whole answer."""
        text = "".join(piece.text for piece in pieces)
        message = {"role": "assistant", "content": text, "refusal": None}
        tokens = [token for piece in pieces for token in piece.tokens]
        logs = self._logs(tokens)
        return {"index": index, "message": message, "logprobs": logs, "finish_reason": finish, **self._ids(tokens)}

    def begin(self, index: int) -> Object | None:
        """What comes before the first piece."""
        return self._delta(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, piece: Piece) -> Object:
        """A piece of an answer."""
        return self._delta(index, {"content": piece.text}, self._logs(piece.tokens)) | self._ids(piece.tokens)

    def end(self, index: int, finish: str) -> Object:
        """What comes after the last piece."""
        return self._delta(index, {}, finish=finish)

    def _ids(self, tokens: list[Token]) -> Object:
        return {"token_ids": [token.id for token in tokens]} if self._with_ids else {}

    def _delta(self, index: int, delta: Object, logprobs: Object | None = None, finish: str | None = None) -> Object:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logs(self, tokens: list[Token]) -> Object | None:
        if not self._logprobs:
            return None
        return {"content": [self._log(token) for token in tokens], "refusal": None}

    def _log(self, token: Token) -> Object:
        top = [self._one(number, value) for number, value in (token.top or {}).items()]
        return {**self._one(token.id, token.logprob), "top_logprobs": top}

    def _one(self, number: int, value: float | None) -> Object:
        text = self._named(number)
        return {"token": text, "logprob": value, "bytes": None if "\ufffd" in text else list(text.encode())}


class Completion:
    """The shapes of a completion; `prompt` are its ids, if ids are to be given."""

    def __init__(self, model: str, fingerprint: str, named: Named, logprobs: bool, prompt: list[int] | None) -> None:
        self._head = {**_head("cmpl", model, fingerprint), "object": "text_completion"}
        self._named, self._logprobs, self._prompt = named, logprobs, prompt

    def whole(self, choices: list[Object], usage: Object) -> Object:
        """The reply to a request that is not streamed."""
        return {**self._head, "choices": choices, "usage": usage}

    def chunk(self, choices: list[Object], **usage: Object | None) -> Object:
        """A part of a streamed one."""
        return {**self._head, "choices": choices, **usage}

    def choice(self, index: int, pieces: list[Piece], finish: str | None) -> Object:
        """A whole answer."""
        text = "".join(piece.text for piece in pieces)
        return self._choice(index, text, [token for piece in pieces for token in piece.tokens], finish, self._prompt)

    def begin(self, index: int) -> Object | None:
        """What comes before the first piece."""
        return None if self._prompt is None else self._choice(index, "", [], None, self._prompt)

    def piece(self, index: int, piece: Piece) -> Object:
        """A piece of an answer."""
        return self._choice(index, piece.text, piece.tokens)

    def end(self, index: int, finish: str) -> Object:
        """What comes after the last piece."""
        return self._choice(index, "", [], finish)

    def _choice(
        self, index: int, text: str, tokens: list[Token], finish: str | None = None, prompt: list[int] | None = None
    ) -> Object:
        ids = {} if self._prompt is None else {"token_ids": [token.id for token in tokens]}
        ids |= {} if prompt is None else {"prompt_token_ids": prompt}
        return {"index": index, "text": text, "logprobs": self._logs(tokens), "finish_reason": finish, **ids}

    def _logs(self, tokens: list[Token]) -> Object | None:
        if not self._logprobs:
            return None
        tops = [{self._named(number): value for number, value in (token.top or {}).items()} for token in tokens]
        names = [self._named(token.id) for token in tokens]
        return {"tokens": names, "token_logprobs": [token.logprob for token in tokens], "top_logprobs": tops}


def _head(kind: str, model: str, fingerprint: str) -> Object:
    head = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
    return {**head, "system_fingerprint": fingerprint}
