"""Conversations as token ids and loss masks, held in memory end to end; reads without torch."""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections import Counter
from typing import Any, Literal

from vtools import conversation, filtering
from vtools.jsonl import Record, Reject
from vtools.process import Failure
from vtools.template import Template

Overlong = Literal["truncate", "drop", "error"]


class Corpus:
    """Tokenised conversations: token ids, which of them are trained, and where each conversation starts."""

    def __init__(self) -> None:
        self.ids = array("i")
        self.trained = bytearray()
        self.starts = array("q", [0])
        self.lengths = array("i")
        self.trained_counts = array("i")
        self.truncated = 0
        self.sources: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, row: Record) -> None:
        """Append what `tokenise` has made of a record."""
        self.ids.frombytes(row["ids"])
        self.trained += row["trained"]
        self.starts.append(len(self.ids))
        self.lengths.append(len(row["trained"]))
        self.trained_counts.append(sum(row["trained"]))
        self.truncated += row["truncated"]
        self.sources[row["kind"]] += 1
        self.licenses[row["license"]] += 1

    def conversation(self, index: int) -> tuple[array[int], bytes]:
        """Token ids of a conversation, and for each a byte that is 1 where it is trained (never at the first)."""
        start, end = self.starts[index], self.starts[index + 1]
        return self.ids[start:end], bytes(self.trained[start:end])

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def trained_tokens(self) -> int:
        return sum(self.trained_counts)

    def digest(self) -> str:
        """32 hexadecimal digits that depend on every token, its mask and the order of the conversations."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.starts, self.ids, self.trained):
            digest.update(part)
        return digest.hexdigest()


# The pool forks its workers after this is set: a compiled template cannot be sent to them.
_template: Template | None = None


def read(
    file: str,
    template: Template,
    max_tokens: int,
    overlong: Overlong,
    *,
    rejects: str | None = None,
    jobs: int = 1,
    quiet: bool = False,
) -> tuple[Corpus, filtering.Rejects]:
    """Read every conversation of a file (`-` is stdin) and render it; what cannot be trained is a reject.

    Raises Failure if nothing at all can be trained.
    """
    global _template
    _template = template
    corpus = Corpus()
    work = functools.partial(tokenise, max_tokens=max_tokens, overlong=overlong)
    counts = filtering.run("train", work, write=corpus.add, files=[file], rejects=rejects, jobs=jobs, quiet=quiet)
    if not len(corpus):
        name = "stdin" if file == "-" else file
        if counts.received:
            raise Failure(
                f"{name}: no conversation has a token to train (first: {counts.first}); "
                f"look at one with --dry-run, and see --template and --max-tokens"
            )
        raise Failure(f"{name}: there are no conversations")
    return corpus, counts


def tokenise(value: Record, max_tokens: int, overlong: Overlong) -> Record:
    """One object of any known shape to its ids (int32 bytes) and mask (bytes of 0 and 1). Raises Reject."""
    record = conversation.read(value)
    assert _template is not None
    ids, mask = _template.render(record["messages"])
    mask = [False, *mask[1:]]  # nothing before the first token predicts it
    end = _last_trained(mask)
    if not end:
        raise Reject("template_error", "there is no answer to train")
    truncated = end > max_tokens
    if truncated:
        if overlong == "drop":
            raise Reject("overlong", f"{end} tokens, --max-tokens is {max_tokens}")
        if overlong == "error":
            raise Failure(
                f"conversation {record['id']}: {end} tokens, --max-tokens is {max_tokens}; "
                f"cut it with `vtools split`, or --overlong truncate|drop"
            )
        end = _last_trained(mask[:max_tokens])
        if not end:
            raise Reject("overlong", f"no token to train within the first {max_tokens}")
    source: Any = record.get("source")
    source = source if isinstance(source, dict) else {}
    return {
        "ids": array("i", ids[:end]).tobytes(),
        "trained": bytes(mask[:end]),
        "truncated": truncated,
        "kind": str(source.get("kind") or "unknown"),
        "license": str(source.get("license") or "unknown"),
    }


def _last_trained(mask: list[bool]) -> int:
    """The length up to the last trained token: what follows it changes no loss."""
    end = len(mask)
    while end and not mask[end - 1]:
        end -= 1
    return end


def marked(corpus: Corpus, index: int, template: Template, on: str, off: str) -> str:
    """A conversation as text again, with `on` and `off` around what is trained."""
    ids, trained = corpus.conversation(index)
    parts = []
    start = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or trained[place] != trained[start]:
            text = template.tokenizer.decode(list(ids[start:place]), skip_special=False)
            parts.append(f"{on}{text}{off}" if trained[start] else text)
            start = place
    return "".join(parts)
