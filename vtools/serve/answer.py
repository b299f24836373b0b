"""The text of one answer, from the tokens of whatever workers write it."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import NamedTuple

from vtools.inference.client import Token
from vtools.inference.detokenize import Detokenizer
from vtools.serve.upstream import Some


class Piece(NamedTuple):
    """Text that is certain, which may be none, and the tokens that came since the last piece, the end token, too."""

    text: str
    tokens: list[Token]


class Answer:
    """Iterate over its pieces. `finish` is "stop" or "length" once it has ended, None before."""

    def __init__(self, some: AsyncGenerator[Some], text: Detokenizer, stop_ids: frozenset[int]) -> None:
        self.finish: str | None = None
        self.count = 0  # of its tokens
        self._some, self._text, self._stop_ids = some, text, stop_ids

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async with contextlib.aclosing(self._some) as parts:
            async for tokens, finish in parts:
                self.count += len(tokens)
                ids = [token.id for token in tokens]
                if finish == "stop" and ids and ids[-1] in self._stop_ids:
                    ids.pop()
                text = self._text.push(ids, finish is not None, cut=finish == "length")
                self.finish = "stop" if self._text.stopped else finish
                if text or tokens:
                    yield Piece(text, tokens)
                if self.finish:
                    return
