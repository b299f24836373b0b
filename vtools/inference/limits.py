"""How long an answer may be."""

from vtools.process import Failure


class PromptTooLong(Failure):
    """The prompt leaves no token of the context for an answer."""


class AnswerTooLong(Failure):
    """The prompt fits into the context, but not together with the requested answer."""


def limit(context: int, prompt: int, wanted: int | None, clamp: bool = False) -> int:
    """The most tokens of an answer after a prompt of so many; with `clamp`, what is too much is what is left.

    Raises PromptTooLong, AnswerTooLong.
    """
    available = context - prompt
    if available < 1:
        raise PromptTooLong(f"the prompt has {prompt} tokens and the context {context}: no space for an answer")
    if wanted is None or clamp:
        return min(wanted or available, available)
    if wanted > available:
        raise AnswerTooLong(
            f"max_tokens is {wanted}, and the prompt of {prompt} tokens leaves {available} of the context of {context}:"
            " lower max_tokens, or leave it out"
        )
    return wanted
