"""Where records go: to stdout or a file, and into the state only once they are there."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import BinaryIO, Self

from vtools.files import append, crawl_state
from vtools.files.crawl_state import Source, State
from vtools.records import jsonl
from vtools.records.jsonl import Record, Reject

BATCH = 100  # records of one source until they are settled: so many may come twice after a kill


class Keeping:
    """The output of a run. With a state, a record that it has is not written again."""

    def __init__(self, output: jsonl.Output, state: State | None, added: tuple[str, BinaryIO] | None) -> None:
        self._output, self.state, self._added = output, state, added

    @classmethod
    @contextlib.contextmanager
    def opened(cls, state: str | None, added: str | None, out: str | None, wait: bool) -> Iterator[Self]:
        """Open what these options name. Raises TryAgain while another run has it, unless told to `wait`; Failure."""
        with contextlib.ExitStack() as stack:
            kept = stack.enter_context(crawl_state.opened(state, wait)) if state else None
            if added:
                stream = stack.enter_context(append.appending(added, "fetch", wait))
                keeping = cls(jsonl.Output(stream, flush=False), kept, (os.path.realpath(added), stream))
                keeping._catch_up()
            else:
                keeping = cls(stack.enter_context(jsonl.output(out)), kept, None)
            try:
                yield keeping
            finally:
                keeping.settle()

    def knows(self, record: Record) -> bool:
        """Whether the state has this conversation: the same id with the same messages."""
        return self.state is not None and self.state.has(_digest(record))

    def write(self, record: Record) -> None:
        """Write a record, and note it."""
        self._output.write(record)
        if self.state and self.state.add(_digest(record)) >= BATCH:
            self.settle()

    def settle(self, source: Source | None = None) -> None:
        """Have what was written where a kill does not undo it, and then in the state."""
        if self._added:
            append.settle(self._added[1])
        if self.state:
            self.state.settle(source, self._added and (self._added[0], os.fstat(self._added[1].fileno())))

    def _catch_up(self) -> None:
        """Note the records that a killed run wrote and could not note any more."""
        if self.state is None or self._added is None:
            return
        path, stream = self._added
        end = stream.tell()
        stream.seek(self.state.unsettled(path))
        for line in stream:
            with contextlib.suppress(Reject, KeyError, TypeError):  # a line of somebody else's
                if self.state.add(_digest(jsonl.loads(line)[0])) >= BATCH:
                    self.state.settle()
        stream.seek(end)
        self.settle()


def _digest(record: Record) -> bytes:
    """128 bits of a conversation: its id and its messages, not when or from where it came."""
    return hashlib.blake2b(jsonl.dumps([record["id"], record["messages"]]), digest_size=16).digest()
