"""Conversations as token ids and loss masks: made once, in parallel, into files that any process maps. Without torch.

One set of input bytes, template, tokenizer and limit makes one folder below `tokens` in the cache; its name is a digest
of all of them. It is built beside its place, under a lock, and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import mmap
import os
import shutil
import stat
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from vtools import __version__, bytestream, conversation, filtering, formats, jsonl, model, process
from vtools import template as templates
from vtools.bytestream import Value
from vtools.jsonl import Record, Reject
from vtools.process import Failure
from vtools.template import Template

Overlong = Literal["truncate", "drop", "error"]

FORMATS = {"ids": "i", "trained": "B", "starts": "q", "lengths": "i", "trained_counts": "i"}  # file: type of its items
REJECTS, ABOUT = "rejects.jsonl", "about.json"
UNUSED = 30 * 24 * 3600.0  # seconds after which an entry that no run has used may go


class Corpus:
    """Tokenised conversations in a folder, mapped: however many they are, opening takes neither time nor memory.

    `ids` (int32) are all token ids end to end, `trained` (bytes) says by 1 which are trained, `starts` (int64) where
    each conversation begins and the last ends; `lengths` and `trained_counts` (int32) are of each conversation.
    Pickles as its path.
    """

    def __init__(self, folder: Path) -> None:
        """Raises Failure if the folder does not hold what its about.json says."""
        self.folder = Path(folder)
        try:
            with open(self.folder / ABOUT, "rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH)
                # The mapping keeps the lock: no other run takes the entry for unused as long as this object lives.
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
            self.largest: int = about["largest"]  # of all token ids
            self.truncated: int = about["truncated"]
            self.received: int = about["received"]
            self.repaired: int = about["repaired"]
            self.sources: dict[str, int] = about["sources"]
            self.licenses: dict[str, int] = about["licenses"]
            self.reasons: dict[str, int] = about["reasons"]
            self.rejected = sum(self.reasons.values())
            self.dropped = self.reasons.get("overlong", 0)
            self._digest: str = about["digest"]
            self._first: str | None = about["first"]
            self._broken: str | None = about["broken"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise Failure(f"{self.folder}: the tokenised data there is not whole; start the run again") from None

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path]]:
        return Corpus, (self.folder,)

    def __len__(self) -> int:
        return len(self.lengths)

    def conversation(self, index: int) -> tuple[memoryview, bytes]:
        """Token ids of a conversation (int32), and for each a byte that is 1 where it is trained (never the first)."""
        start, end = self.starts[index], self.starts[index + 1]
        return self.ids[start:end], bytes(self.trained[start:end])

    def digest(self) -> str:
        """32 hexadecimal digits that depend on every token, its mask and the order of the conversations."""
        return self._digest

    def line(self) -> str:
        """The counts as one line for people."""
        counts = filtering.Rejects("train", None)
        counts.received, counts.kept, counts.repaired = self.received, len(self), self.repaired
        counts.reasons.update(self.reasons)
        return counts.line()


def _mapped(path: Path, kind: str) -> memoryview:
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        data = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    return memoryview(data).cast(kind)  # type: ignore[call-overload]


def read(
    file: str,
    template: Template,
    max_tokens: int,
    overlong: Overlong,
    *,
    rejects: str | None = None,
    jobs: int = 1,
    quiet: bool = False,
) -> Corpus:
    """Every conversation of a file (`-` is stdin), rendered now or by an earlier run; what cannot be is a reject.

    Raises Failure if nothing at all can be trained, if the input is broken and `rejects` is not given, or if the cache
    cannot be written.
    """
    name = "stdin" if file == "-" else file
    saved = filtering.Rejects("train", rejects, [file]).stream  # before any work: it may not be writable
    home = model.cache() / "tokens"
    with saved or contextlib.nullcontext(), _input(file, home, quiet) as given:
        key = _key(given.digest, template, max_tokens, overlong)
        try:
            corpus, found = _whole(home / key), True
            if corpus is None:
                with _writing(home), _alone(home, key, quiet):
                    corpus = _whole(home / key)  # another run may have made it in the meantime
                    if corpus is None:
                        work = functools.partial(tokenise, max_tokens=max_tokens, overlong=overlong)
                        _make(home, key, given, template, work, strict=not rejects, jobs=jobs, quiet=quiet)
                        corpus, found = Corpus(home / key), False
            if corpus._broken and not rejects:
                raise Failure(corpus._broken)
        except Failure as failure:  # within the cache, the input goes by the name of the key
            raise type(failure)(str(failure).replace(key, name)) from None
        if saved:
            with open(corpus.folder / REJECTS, "rb") as rows:
                saved.writelines(row.replace(b'"%s"' % key.encode(), jsonl.dumps(name)[:-1]) for row in rows)
    if found:
        with contextlib.suppress(OSError):  # somebody else's cache may be used as well
            os.utime(corpus.folder / ABOUT)
        if not quiet:
            print(corpus.line(), file=sys.stderr)
    else:
        _clear(home)
    if not corpus.received:
        raise Failure(f"{name}: there are no conversations")
    if not len(corpus):
        first = (corpus._first or "").replace(key, name)
        raise Failure(
            f"{name}: no conversation has a token to train (first: {first}); "
            f"look at one with --dry-run, and see --template and --max-tokens"
        )
    return corpus


class _Input(NamedTuple):
    """An input that can be read again from where its stream stands; a digest of its bytes; its size and time then."""

    stream: io.BufferedReader
    digest: str
    state: tuple[int, int]


def _state(stream: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _input(file: str, home: Path, quiet: bool) -> Iterator[_Input]:
    """Read the input once, to know it. What cannot be read twice is spooled, to a nameless file in the cache."""
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(bytestream._open(file))
        state = _state(stream)
        start, total, spool = 0, None, None
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            start = stream.tell()  # stdin may have been read in part by another program
            total = (state[0] - start + (1 << 20) - 1) >> 20
        else:
            with _writing(home):
                home.mkdir(parents=True, exist_ok=True)
                spool = stack.enter_context(tempfile.TemporaryFile(dir=home))
        digest = hashlib.blake2b(digest_size=16)
        with jsonl.progress("train: input", quiet, total, " MiB") as tick:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                if spool:
                    with _writing(home):
                        spool.write(chunk)
                tick()
        source: Any = spool or stream
        with _writing(home):
            source.seek(start)  # writes what a spool has in memory
        yield _Input(source, digest.hexdigest(), _state(source) if spool else state)


def _key(digest: str, template: Template, max_tokens: int, overlong: Overlong) -> str:
    """32 hexadecimal digits that depend on all that decides about ids, masks and rejects."""
    import tokenizers

    tokenizer = template.tokenizer
    parts = [
        digest, template.name, template.source, template.stop_strings, tokenizer.bos, tokenizer.eos, tokenizer.pad,
        tokenizer.end_ids, max_tokens, overlong, __version__, tokenizers.__version__,
    ]  # fmt: skip
    key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16)
    key.update(tokenizer.backend.to_str().encode())
    # Our own code too: nobody would think of a version number here after a change to, say, the template's masks.
    for module in (bytestream, conversation, filtering, formats, jsonl, templates, sys.modules[__name__]):
        assert module.__file__ is not None
        key.update(Path(module.__file__).read_bytes())
    return key.hexdigest()


def _whole(folder: Path) -> Corpus | None:
    try:
        return Corpus(folder)
    except Failure:
        return None


@contextlib.contextmanager
def _writing(home: Path) -> Iterator[None]:
    """Say what can be done when the cache cannot be written."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(
            f"{home}: tokenised data cannot be kept there: {error.strerror or error}; "
            f"make room, or name another folder in VTOOLS_CACHE"
        ) from None


def _locks(home: Path, key: str) -> Path:
    # A lock file that is removed can be held twice. These stay, so there are only so many; strangers may share one.
    return home / ".locks" / key[:2]


@contextlib.contextmanager
def _alone(home: Path, key: str, quiet: bool) -> Iterator[None]:
    """Be the only one who builds this entry; the second waits, and then finds it made."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(process.lock(_locks(home, key)))
        except process.TryAgain:
            if not quiet:
                print("vtools train: waiting for another run, which is tokenising", file=sys.stderr)
            stack.enter_context(process.lock(_locks(home, key), wait=True))
        yield


# The pool forks its workers after this is set: a compiled template cannot be sent to them.
_template: Template | None = None


def _make(
    home: Path,
    key: str,
    given: _Input,
    template: Template,
    work: filtering.Work,
    *,
    strict: bool,
    jobs: int,
    quiet: bool,
) -> None:
    """Tokenise the input into `home / key`, which the caller has locked; all or nothing."""
    global _template
    _template = template
    part = home / f".{key}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        counts = _Rejects(part / REJECTS, strict)
        values = bytestream.split(iter(lambda: given.stream.read1(bytestream.CHUNK), b""), key)
        with contextlib.ExitStack() as stack:
            streams = {name: stack.enter_context(open(part / name, "wb", 1 << 20)) for name in FORMATS}
            writer = _Writer(streams)
            filtering.run("train", work, write=writer.add, values=values, counts=counts, jobs=jobs, quiet=quiet)
        assert counts.stream is not None
        counts.stream.close()
        if _state(given.stream) != given.state:
            raise Failure(f"{key}: changed while it was being read; wait until it is written, and run again")
        names = [*FORMATS, REJECTS]
        about = {
            **writer.totals,
            "digest": writer.digest.hexdigest(),
            "sources": writer.sources,
            "licenses": writer.licenses,
            "received": counts.received,
            "repaired": counts.repaired,
            "reasons": counts.reasons,
            "first": counts.first,
            "broken": counts.broken,
            "bytes": {name: (part / name).stat().st_size for name in names},
        }
        (part / ABOUT).write_text(json.dumps(about))
        for name in [*names, ABOUT, "."]:
            jsonl.sync(part / name)
        shutil.rmtree(home / key, ignore_errors=True)  # a damaged one
        os.replace(part, home / key)
        jsonl.sync(home)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class _Rejects(filtering.Rejects):
    """Rejects that go into the entry, whether or not this run wants them; remembers how broken input ends a run."""

    def __init__(self, path: Path, strict: bool) -> None:
        super().__init__("train", str(path))
        self.strict = strict
        self.broken: str | None = None

    def add(self, reject: Reject, value: Value, record: Any = None) -> None:
        """Count and save a reject; if `strict`, broken input raises Failure, as without --rejects."""
        if reject.reason in filtering.BROKEN and self.broken is None:
            try:
                filtering.Rejects(self.tool, None).add(reject, value)
            except Failure as failure:
                if self.strict:
                    raise
                self.broken = str(failure)
        super().add(reject, value, record)


class _Writer:
    """The files of an entry, growing by what `tokenise` makes of each record."""

    def __init__(self, streams: dict[str, Any]) -> None:
        self.streams = streams
        self.tokens = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self.totals = {"trained_tokens": 0, "truncated": 0, "largest": 0}
        self.sources: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()
        streams["starts"].write(bytes(8))

    def add(self, row: Record) -> None:
        """Append one conversation."""
        ids, trained = row["ids"], row["trained"]
        length, count = array("i", [len(trained)]), trained.count(1)
        self.tokens += len(trained)
        self.streams["ids"].write(ids)
        self.streams["trained"].write(trained)
        self.streams["starts"].write(array("q", [self.tokens]))
        self.streams["lengths"].write(length)
        self.streams["trained_counts"].write(array("i", [count]))
        for part in (length, ids, trained):
            self.digest.update(part)
        self.totals["trained_tokens"] += count
        self.totals["truncated"] += row["truncated"]
        self.totals["largest"] = max(self.totals["largest"], row["largest"])
        self.sources[row["kind"]] += 1
        self.licenses[row["license"]] += 1


def _clear(home: Path) -> None:
    """Remove what killed runs have left, and entries that no run has used for a month or has open now."""
    for path in home.iterdir():
        key = path.name.removeprefix(".").removesuffix(".part")
        part = home / f".{key}.part"
        try:
            if path != part and (path.name.startswith(".") or time.time() - (path / ABOUT).stat().st_mtime < UNUSED):
                continue
            with process.lock(_locks(home, key)):
                if path != part:
                    with open(path / ABOUT, "rb") as about:
                        fcntl.flock(about, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        os.replace(path, part)  # at once: half an entry is never seen
                shutil.rmtree(part, ignore_errors=True)
        except (OSError, process.TryAgain):
            continue  # in use


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
        "largest": max(ids[:end]),
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
