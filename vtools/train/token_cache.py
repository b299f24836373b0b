"""The token cache of `vtools train`: conversations tokenised once, in parallel, into files that any process can map.

Each combination of input bytes, template, tokenizer and limit has one folder below `tokens` in the cache, named by a
digest of them. It is built under a lock and another name, and renamed when it is complete.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vtools import __version__, models, process, records
from vtools.files import cache
from vtools.files.atomic import atomic_folder, part_of
from vtools.files.lock import lock
from vtools.models.template import Template
from vtools.options import Common
from vtools.process import Failure, say
from vtools.records import filtering, streams
from vtools.records.jsonl import Record, Reject
from vtools.records.streams import Value
from vtools.train import data, input_files
from vtools.train.data import ABOUT, FORMATS, Corpus, Overlong
from vtools.train.input_files import Input, read_once, writing

REJECTS = "rejects.jsonl"
SAMPLES = 8  # records kept as they came in, to be rendered by transformers too
UNUSED = 30 * 24 * 3600.0  # seconds after which an unused entry may be deleted


def read(
    files: Sequence[str],
    template: Template,
    max_tokens: int,
    overlong: Overlong,
    *,
    rejects: str | None = None,
    jobs: int = 1,
    quiet: bool = False,
) -> Corpus:
    """Every conversation of the files (`-` is stdin), tokenised now or by an earlier run; the rest are rejects.

    Raises Failure if there is nothing to train on, if the input is broken and `rejects` is not given, or if the cache
    cannot be written.
    """
    saved = filtering.Rejects("train", rejects, files).stream  # opened before any work, in case it is not writable
    home = cache.home() / "tokens"
    with saved or contextlib.nullcontext(), read_once(files, home, quiet) as inputs:
        key = _key([given.digest for given in inputs], template, max_tokens, overlong)
        place = re.compile(rf"{key}\.(\d+)")  # in the cache, the input files go by the key and their number

        def named(text: str) -> str:
            return place.sub(lambda found: inputs[int(found[1])].name, text)

        try:
            corpus, found = _whole(home / key), True
            if corpus is None:
                with writing(home), _alone(home, key, quiet):
                    corpus = _whole(home / key)  # another run may have built it in the meantime
                    if corpus is None:
                        work = functools.partial(_tokenise, max_tokens=max_tokens, overlong=overlong)
                        counts = _Rejects(strict=not rejects, named=named)
                        _make(home, key, inputs, template, work, counts, Common(jobs=jobs, quiet=quiet))
                        corpus, found = Corpus(home / key), False
            if corpus.broken and not rejects:
                raise Failure(corpus.broken)
        except Failure as failure:
            raise type(failure)(named(str(failure))) from None
        if saved:
            with open(corpus.folder / REJECTS, encoding="utf-8") as rows:
                for row in rows:
                    saved.write(place.sub(lambda found: json.dumps(inputs[int(found[1])].name)[1:-1], row).encode())
    if found:
        with contextlib.suppress(OSError):  # the cache may be another user's
            os.utime(corpus.folder / ABOUT)
        if not quiet:
            say("train", named(corpus.line()))
    else:
        _clear(home)
    name = inputs[0].name + f" and {len(inputs) - 1} more" * (len(inputs) > 1)
    if not corpus.received:
        raise Failure(f"{name}: there are no conversations")
    if not len(corpus):
        raise Failure(
            f"{name}: no conversation has a token to train on (first: {named(corpus.first or '')}); "
            f"look at one with --dry-run, and see --template and --max-tokens"
        )
    return corpus


def _key(digests: Sequence[str], template: Template, max_tokens: int, overlong: Overlong) -> str:
    """32 hexadecimal digits from everything that decides ids, masks and rejects."""
    import tokenizers

    tokenizer = template.tokenizer
    parts = [
        *digests, template.name, template.source, template.stop_strings, tokenizer.bos, tokenizer.eos, tokenizer.pad,
        tokenizer.end_ids, max_tokens, overlong, __version__, tokenizers.__version__,
    ]  # fmt: skip
    key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16)
    key.update(tokenizer.backend.to_str().encode())
    for path in rendering_code():
        key.update(path.read_bytes())
    return key.hexdigest()


def rendering_code() -> list[Path]:
    """Our modules that decide tokens and masks: hashing them is safer than remembering a version number."""
    floors = [path for floor in (records, models) for path in sorted(Path(floor.__path__[0]).glob("*.py"))]
    return [*floors, Path(data.__file__), Path(input_files.__file__), Path(__file__)]


def _whole(folder: Path) -> Corpus | None:
    try:
        return Corpus(folder)
    except Failure:
        return None


def _locks(home: Path, key: str) -> Path:
    # A removed lock file could be held twice. These stay, so their number is fixed, and entries may share one.
    return home / ".locks" / key[:2]


@contextlib.contextmanager
def _alone(home: Path, key: str, quiet: bool) -> Iterator[None]:
    """Be the only process that builds this entry; a second one waits, and then finds it complete."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(_locks(home, key)))
        except process.TryAgain:
            if not quiet:
                say("train", "waiting for another run, which is tokenising")
            stack.enter_context(lock(_locks(home, key), wait=True))
        yield


# Set before the pool forks its workers: a compiled template cannot be pickled.
_template: Template | None = None


def _tokenise(value: Record, max_tokens: int, overlong: Overlong) -> Record:
    assert _template is not None
    return data.tokenise(value, _template, max_tokens, overlong)


def _make(
    home: Path,
    key: str,
    inputs: Sequence[Input],
    template: Template,
    work: filtering.Work,
    counts: "_Rejects",
    common: Common,
) -> None:
    """Tokenise the input into `home / key`, which the caller has locked; all or nothing."""
    global _template
    _template = template
    with atomic_folder(home / key) as part:
        counts.stream = open(part / REJECTS, "wb")  # noqa: SIM115  closed below
        values = (
            value for number, given in enumerate(inputs) for value in streams.split(given.chunks(), f"{key}.{number}")
        )
        with contextlib.ExitStack() as stack:
            writer = _Writer({name: stack.enter_context(open(part / name, "wb", 1 << 20)) for name in FORMATS})

            samples: list[str] = []

            def add(row: Record) -> None:
                writer.add(row)
                if len(samples) < SAMPLES and counts.value is not None:
                    samples.append(counts.value.raw.decode(errors="replace"))
                counts.extra["truncated"] += row["truncated"]

            filtering.run(counts, values, work, common, write=add, leaves=False)
        counts.stream.close()
        about = {
            **writer.totals,
            "digest": writer.digest.hexdigest(),
            "sources": writer.sources,
            "licenses": writer.licenses,
            "samples": samples,
            **{name: getattr(counts, name) for name in ("received", "repaired", "reasons", "first", "broken")},
            "bytes": {name: (part / name).stat().st_size for name in (*FORMATS, REJECTS)},
        }
        (part / ABOUT).write_text(json.dumps(about))


class _Rejects(filtering.Rejects):
    """Rejects stored in the entry, whether or not this run needs them; notes where broken input ends a run."""

    def __init__(self, strict: bool, named: Callable[[str], str]) -> None:
        """`named` puts the names of the input files into a text."""
        super().__init__("train", None)
        self.strict, self.named = strict, named
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

    def line(self) -> str:
        """The counts as one line for people."""
        return self.named(super().line())


class _Writer:
    """Writes the files of an entry from the results of `data.tokenise`."""

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
    """Remove leftovers of killed runs, and entries unused for a month that no run has open."""
    for path in home.iterdir():
        key = path.name.removeprefix(".").removesuffix(".part")
        part = part_of(home / key)
        try:
            if path != part and (path.name.startswith(".") or time.time() - (path / ABOUT).stat().st_mtime < UNUSED):
                continue
            with lock(_locks(home, key)):
                if path != part:
                    with open(path / ABOUT, "rb") as about:
                        fcntl.flock(about, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        os.replace(path, part)  # atomically: half an entry is never visible
                shutil.rmtree(part, ignore_errors=True)
        except (OSError, process.TryAgain):
            continue  # in use
