"""Conversations as token ids and loss masks: tokenising one, and memory-mapping a folder of many. Without torch."""

import fcntl
import json
import mmap
import os
from array import array
from pathlib import Path
from typing import Any, Literal

from vtools.files import lock
from vtools.models.template import Template
from vtools.process import Failure
from vtools.records import conversation, filtering
from vtools.records.jsonl import Record, Reject

Overlong = Literal["truncate", "drop", "error"]

FORMATS = {"ids": "i", "trained": "B", "starts": "q", "lengths": "i", "trained_counts": "i"}  # item type of each file
ABOUT = "about.json"


class Corpus:
    """Tokenised conversations in a memory-mapped folder: opening takes neither time nor memory, whatever its size.

    `ids` (int32) are all token ids end to end; `trained` (bytes) is their loss mask, 1 where trained; `starts` (int64)
    has the start of each conversation and the end; `lengths` and `trained_counts` (int32) have one entry per
    conversation. Pickled as its path.
    """

    def __init__(self, folder: Path) -> None:
        """Raises Failure if the folder does not match its about.json."""
        self.folder = Path(folder)
        try:
            with open(self.folder / ABOUT, "rb") as stream:
                lock.hold(stream.fileno(), fcntl.LOCK_SH, self.folder / ABOUT)
                # The mapping keeps the lock: no other run deletes the entry as unused while this object lives.
                self._in_use = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            about = json.loads(self._in_use[:])
            for name, size in about["bytes"].items():
                if (self.folder / name).stat().st_size != size:
                    raise ValueError(name)
            self.ids, self.trained, self.starts, self.lengths, self.trained_counts = (
                _mapped(self.folder / name, kind) for name, kind in FORMATS.items()
            )
            self.tokens = len(self.ids)
            self.trained_tokens: int = about["trained_tokens"]
            self.largest: int = about["largest"]  # largest token id
            self.truncated: int = about["truncated"]
            self.received: int = about["received"]
            self.repaired: int = about["repaired"]
            self.sources: dict[str, int] = about["sources"]
            self.licenses: dict[str, int] = about["licenses"]
            self.reasons: dict[str, int] = about["reasons"]
            self.rejected = sum(self.reasons.values())
            self.digest: str = about["digest"]  # hash of all tokens, masks and the order of the conversations
            self.samples: list[str] = about.get("samples", [])  # the first conversations as they came in
            self.first: str | None = about["first"]
            self.broken: str | None = about["broken"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise Failure(f"{self.folder}: the tokenised data there is incomplete; start the run again") from None

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return Corpus, (self.folder,)

    def __len__(self) -> int:
        return len(self.lengths)

    def conversation(self, index: int) -> tuple[memoryview, bytes]:
        """Token ids of a conversation (int32), and its loss mask: bytes, 1 where trained, never for the first."""
        start, end = self.starts[index], self.starts[index + 1]
        return self.ids[start:end], bytes(self.trained[start:end])

    def line(self) -> str:
        """The counts as one line for people."""
        counts = filtering.Rejects("train", None)
        counts.received, counts.kept, counts.repaired = self.received, len(self), self.repaired
        counts.reasons.update(self.reasons)
        counts.first = counts.unreadable = self.first
        counts.extra["truncated"] = self.truncated
        return counts.line()


def _mapped(path: Path, kind: str) -> memoryview:
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        data = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    return memoryview(data).cast(kind)  # type: ignore[call-overload]


def tokenise(value: Record, template: Template, max_tokens: int, overlong: Overlong) -> Record:
    """Tokenise an object of any known shape: ids (int32 bytes) and mask (bytes of 0 and 1). Raises Reject."""
    record = conversation.read(value)
    ids, mask = template.render(record["messages"], _repeated(record))
    mask = [False, *mask[1:]]  # nothing predicts the first token
    end = _last_trained(mask)
    if not end:
        raise Reject("template_error", "there is no answer to train on")
    truncated = end > max_tokens
    if truncated:
        if overlong == "drop":
            raise Reject("overlong", f"{end} tokens, --max-tokens is {max_tokens}")
        if overlong == "error":
            raise Failure(
                f"conversation {record['id']}: {end} tokens, --max-tokens is {max_tokens}; "
                f"cut it with `vtools split`, or use --overlong truncate or drop"
            )
        end = _last_trained(mask[:max_tokens])
        if not end:
            raise Reject("overlong", f"no token to train on within the first {max_tokens}")
    source: Any = record.get("source")
    source = source if isinstance(source, dict) else {}
    return {
        "ids": array("i", ids[:end]).tobytes(),
        "largest": max(ids[:end]),
        "trained": bytes(mask[:end]),
        "truncated": truncated,
        "kind": str(source.get("kind") or "unknown"),
        "license": str(source.get("license") or "unknown"),
    }


def _repeated(record: Record) -> int:
    """How many leading messages are only context, repeated by `split --overlap-turns`."""
    segment = record.get("segment")
    overlap = segment.get("overlap") if isinstance(segment, dict) else None
    if not isinstance(overlap, int) or overlap < 1:
        return 0
    return overlap + (record["messages"][0]["role"] == "system")


def _last_trained(mask: list[bool]) -> int:
    """The length up to the last trained token: later tokens do not affect the loss."""
    end = len(mask)
    while end and not mask[end - 1]:
        end -= 1
    return end


def marked(corpus: Corpus, index: int, template: Template, on: str, off: str) -> str:
    """A conversation decoded to text, with `on` and `off` around what is trained."""
    ids, trained = corpus.conversation(index)
    parts = []
    start = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or trained[place] != trained[start]:
            text = template.tokenizer.decode(list(ids[start:place]), skip_special=False)
            parts.append(f"{on}{text}{off}" if trained[start] else text)
            start = place
    return "".join(parts)
