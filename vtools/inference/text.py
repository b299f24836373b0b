"""From the tokens of an answer to its text, wherever the tokens come from."""

from collections.abc import Sequence
from typing import Self

from vtools.inference.client import Messages, Token, Tokens
from vtools.inference.detokenize import Detokenizer
from vtools.models.template import Template, is_continued

BEFORE = 16  # tokens of a continued text that are decoded with what follows, on which its spaces depend


def continued_text(template: Template, prompt: Sequence[int], stops: Sequence[str]) -> Detokenizer:
    """For the tokens that continue a prompt's own text."""
    return Detokenizer(template.tokenizer.decode, stops, before=prompt[-BEFORE:])


def chat_text(template: Template, messages: Messages, prompt: Sequence[int], stops: Sequence[str]) -> Detokenizer:
    """For the tokens of an answer in a chat whose prompt this is; it may continue a last assistant message."""
    stops = (*template.stop_strings, *stops)
    if is_continued(messages):
        return continued_text(template, prompt, stops)
    return Detokenizer(template.tokenizer.decode, stops, template.answer_lead)


class Stream:
    """The text of one answer in pieces. `finish` is "stop" or "length" once the answer has ended, None before.

    Closing it, from any thread, stops the generation and the iteration. `logprobs` has the tokens given so far, the end
    token included, with their log-probabilities, if these were asked for.
    """

    def __init__(self, tokens: Tokens, text: Detokenizer, stop_ids: frozenset[int]) -> None:
        self.finish: str | None = None
        self.logprobs: list[Token] = []
        self._tokens, self._text, self._stop_ids = tokens, text, stop_ids

    @property
    def usage(self) -> dict[str, int]:
        """`prompt_tokens`, and the `completion_tokens` that were generated so far."""
        return self._tokens.usage

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        while self.finish is None:
            new = next(self._tokens)
            finish = self._tokens.finish
            self.logprobs += [token for token in new if token.logprob is not None]
            ids = [token.id for token in new]
            if finish == "stop" and ids and ids[-1] in self._stop_ids:
                ids.pop()
            piece = self._text.push(ids, finish is not None, cut=finish == "length")
            if self._text.stopped:
                self._tokens.close()
                finish = "stop"
            self.finish = finish
            if piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        """Stop the generation, if it has not ended."""
        self._tokens.close()
