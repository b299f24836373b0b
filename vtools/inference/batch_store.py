"""What is known of an endpoint's batches, in a folder: requests on their way, answers that came, what was learned."""

import contextlib
import dataclasses
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from vtools.files import atomic
from vtools.inference import batch_api
from vtools.inference.client import Answer
from vtools.records import jsonl

ANSWERS, ENDPOINT, REQUESTS = "answers.jsonl", "endpoint.json", ".requests.jsonl"
MOST_BYTES = 200_000_000  # of a file of requests, and
MOST_REQUESTS = 50_000  # in it: OpenAI's limits


def folder(out: str) -> Path:
    """Where the batches of an output file are noted, in a folder per endpoint and model."""
    return Path(f"{out}.batches")


def noted(out: str) -> int:
    """How many requests are submitted, or answered, that the output file does not have yet."""
    return sum(path.read_bytes().count(b"\n") for path in folder(out).glob("*/*.jsonl"))


@dataclasses.dataclass(slots=True)
class Spool:
    """The requests of one batch, by their names: written before they are submitted, removed once they are answered.

    `key` names it here and at the provider; `file` and `batch` are the provider's ids, None until its reply is here.
    """

    key: str
    names: list[str]
    file: str | None = None
    batch: str | None = None
    submitted: float = 0.0  # seconds since 1970
    held: float = 0.0  # dollars
    wanted: int = 0  # requests that this run waits for


class Store:
    """A folder of one endpoint and model. Its caller holds the lock on the output file that it belongs to."""

    def __init__(self, folder: Path, url: str, model: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        for part in folder.glob(".*.part"):  # of a run that was killed while it wrote
            part.unlink()
        self._endpoint: dict[str, Any] = {"url": url, "model": model}
        with contextlib.suppress(FileNotFoundError):
            self._endpoint |= orjson.loads((folder / ENDPOINT).read_bytes())
        self.spools = [self._spool(path) for path in sorted(folder.glob(f"*{REQUESTS}"))]
        self._places: dict[str, tuple[int, int]] = {}
        self._answers = open(folder / ANSWERS, "a+b")  # noqa: SIM115  lives as long as the run
        self._read_answers()

    def learned(self, name: str) -> Any:
        """What the endpoint was found to do, None if that is not known."""
        return self._endpoint.get(name)

    def learn(self, **found: Any) -> None:
        """Note what the endpoint was found to do."""
        if any(self._endpoint.get(name) != value for name, value in found.items()):
            self._endpoint |= found
            atomic.write(self.folder / ENDPOINT, orjson.dumps(self._endpoint))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def answer(self, name: str) -> Answer:
        """The answer to a request that has one. Thread-safe."""
        offset, length = self._places[name]
        return Answer(**orjson.loads(os.pread(self._answers.fileno(), length, offset))["answer"])

    def add(self, name: str, answer: Answer) -> None:
        """Keep an answer; it is on disk after the next `sync`."""
        line = jsonl.dumps({"name": name, "answer": dataclasses.asdict(answer)})
        self._places[name] = (self._answers.tell(), len(line))
        self._answers.write(line)

    def sync(self) -> None:
        """Have all answers on disk."""
        self._answers.flush()
        os.fsync(self._answers.fileno())

    def write(self, requests: Iterable[tuple[str, dict[str, Any], float]]) -> Iterator[Spool]:
        """Spools of requests, each with its name, its body and what it may cost in dollars."""
        lines = ((name, jsonl.dumps(batch_api.line(name, body)), cost) for name, body, cost in requests)
        following = next(lines, None)
        while following:
            spool = Spool(uuid.uuid4().hex, [])
            with atomic.atomic(self.requests(spool)) as stream:
                while following and len(spool.names) < MOST_REQUESTS:
                    name, line, cost = following
                    if spool.names and stream.tell() + len(line) > MOST_BYTES:
                        break
                    stream.write(line)
                    spool.names.append(name)
                    spool.held += cost
                    following = next(lines, None)
            spool.wanted = len(spool.names)
            self.spools.append(spool)
            yield spool

    def note(self, spool: Spool) -> None:
        """Keep the provider's ids."""
        if spool.batch and not spool.submitted:
            spool.submitted = time.time()
        known = {"file": spool.file, "batch": spool.batch, "submitted": spool.submitted}
        atomic.write(self.folder / f"{spool.key}.json", orjson.dumps(known))

    def requests(self, spool: Spool) -> Path:
        """The file of a spool's requests."""
        return self.folder / f"{spool.key}{REQUESTS}"

    def bodies(self, spool: Spool) -> Iterator[tuple[str, dict[str, Any]]]:
        """The requests of a spool, by their names."""
        with open(self.requests(spool), "rb") as stream:
            for line in stream:
                request = orjson.loads(line)
                yield request["custom_id"], request["body"]

    def remove(self, spool: Spool) -> None:
        """Forget a spool that is answered, or was not accepted."""
        self.requests(spool).unlink()  # first: without it the other file says nothing
        (self.folder / f"{spool.key}.json").unlink(missing_ok=True)
        self.spools.remove(spool)

    def keep_only(self, names: set[str]) -> None:
        """Drop all other answers; none is read or added afterwards."""
        with atomic.atomic(self.folder / ANSWERS) as stream:
            for name in self._places.keys() & names:
                offset, length = self._places[name]
                stream.write(os.pread(self._answers.fileno(), length, offset))

    @property
    def names(self) -> set[str]:
        """Of all requests that are answered."""
        return set(self._places)

    def close(self, done: bool = False) -> None:
        """Remove the folder if it holds nothing that was asked, or if all of that is `done`."""
        self._answers.close()
        if done or not (self._places or self.spools or self._endpoint.get("tried")):
            for name in (ANSWERS, ENDPOINT):
                (self.folder / name).unlink(missing_ok=True)
            for folder in (self.folder, self.folder.parent):
                with contextlib.suppress(OSError):  # it holds batches of another endpoint
                    folder.rmdir()

    def _spool(self, path: Path) -> Spool:
        with open(path, "rb") as stream:
            names = [orjson.loads(line)["custom_id"] for line in stream]
        spool = Spool(path.name.removesuffix(REQUESTS), names)
        with contextlib.suppress(FileNotFoundError):
            known = orjson.loads((self.folder / f"{spool.key}.json").read_bytes())
            spool.file, spool.batch, spool.submitted = known["file"], known["batch"], known["submitted"]
        return spool

    def _read_answers(self) -> None:
        self._answers.seek(0)
        end = 0
        for line in self._answers:
            if not line.endswith(b"\n"):  # torn by a kill
                break
            self._places[orjson.loads(line)["name"]] = (end, len(line))
            end += len(line)
        self._answers.truncate(end)
        self._answers.seek(end)
