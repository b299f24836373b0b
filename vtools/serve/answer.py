"""The text of one answer, from the ids of whatever workers write it."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from vtools.inference.detokenize import Detokenizer
from vtools.serve.upstream import Tokens


class Answer:
    """Iterate over its pieces of text. `finish` is "stop" or "length" once it has ended, None before."""

    def __init__(
        self, tokens: AsyncGenerator[Tokens], text: Detokenizer, prompt_tokens: int, stop_ids: frozenset[int]
    ) -> None:
        self.finish: str | None = None
        self.usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 0}
        self._tokens, self._text, self._stop_ids = tokens, text, stop_ids

    async def __aiter__(self) -> AsyncIterator[str]:
        async with contextlib.aclosing(self._tokens) as tokens:
            async for found in tokens:
                self.usage["completion_tokens"] += len(found.ids)
                last = found.finish is not None
                stopped = last and bool(found.ids) and found.ids[-1] in self._stop_ids
                piece = self._text.push(found.ids[:-1] if stopped else found.ids, last)
                if self._text.stopped or last:
                    self.finish = "stop" if stopped or self._text.stopped else "length"
                if piece:
                    yield piece
                if self.finish:
                    return
