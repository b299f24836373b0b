"""The Batch API of an endpoint, in OpenAI's shape: files of requests, batches of them, and files of their answers."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from vtools.inference import retry, trouble
from vtools.inference.address import one_line
from vtools.inference.endpoint import Endpoint, EndpointError
from vtools.inference.trouble import Trouble

ASKED: Final = "/v1/chat/completions"
WINDOW: Final = "24h"  # the only one that there is
KEY = "vtools"  # of a batch's metadata: the key that we gave it
PAGE = 100  # batches or files that are listed at a time
NONE = (404, 405, 501)  # statuses of a server that has no Batch API

Found = TypeVar("Found")


class BatchApi:
    """One server's. What is submitted has a `key` of ours, by which it is found again where no reply came."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._client = endpoint, endpoint.client

    def upload(self, path: Path, key: str, new: bool) -> str:
        """The id of a file of requests; unless it is `new`, of one that was uploaded already. Raises EndpointError."""
        return self._once(lambda: self._uploaded(key), lambda: self._upload(path, key), new)

    def submit(self, file: str, key: str, new: bool) -> str:
        """The id of the batch of an uploaded file; unless it is `new`, of one that was submitted already. Raises
        EndpointError."""
        return self._once(lambda: self._submitted(file, key), lambda: self._submit(file, key), new)

    def find(self, file: str, key: str) -> str | None:
        """The id of a batch that was submitted, with or without a reply. Raises EndpointError."""
        return self.again(lambda: self._submitted(file, key))

    def poll(self, batch: str) -> tuple[dict[str, Any] | Trouble, float | None]:
        """A batch, or why the server does not tell now; and after how many seconds it wants to be asked again.

        Raises EndpointError if it would never tell.
        """
        import openai

        try:
            raw = self._client.batches.with_raw_response.retrieve(batch)
        except openai.APIError as error:
            told = trouble.of(error)
            if told.kind == "status" and not told.retries(1, self._endpoint.timeout):
                raise self._endpoint.error(told) from None
            return told, told.after
        return self._object(raw), retry.after(raw.headers)

    def download(self, file: str, stream: BinaryIO) -> None:
        """Copy a file's content; one try, for `again`."""
        with self._client.files.with_streaming_response.content(file) as response:
            for chunk in response.iter_bytes():
                stream.write(chunk)

    def again(self, work: Callable[[], Found]) -> Found:
        """The result of work that may be repeated, with retries. Raises EndpointError."""
        return self._once(lambda: None, work, True)

    def _once(self, find: Callable[[], Found | None], work: Callable[[], Found], new: bool) -> Found:
        """What `find` finds, else the result of `work`. A try without a reply may have succeeded: then it is looked for
        before the next."""
        import httpx2
        import openai

        for attempt in itertools.count():
            try:
                return (None if new else find()) or work()
            except (openai.APIError, httpx2.HTTPError) as error:
                told = trouble.of(error)
            new = new and told.status is not None and told.status < 500
            wait = retry.wait(attempt, told.retries(self._endpoint.retries, self._endpoint.timeout), told.after)
            if wait is None:
                if told.status in NONE:
                    said = f"{self._endpoint.url}: HTTP {told.status}: {told.said}; leave out --batch if this server"
                    raise EndpointError(f"{said} has no Batch API", told.status, fatal=True)
                raise self._endpoint.error(told, attempt + 1)
            time.sleep(wait)
        raise AssertionError

    def _upload(self, path: Path, key: str) -> str:
        with open(path, "rb") as stream:
            raw = self._client.files.with_raw_response.create(file=(_name(key), stream), purpose="batch")
        return self._object(raw)["id"]

    def _uploaded(self, key: str) -> str | None:
        files = self._every(self._client.files.with_raw_response.list, purpose="batch")
        return next((file["id"] for file in files if file.get("filename") == _name(key)), None)

    def _submit(self, file: str, key: str) -> str:
        raw = self._client.batches.with_raw_response.create(
            input_file_id=file, endpoint=ASKED, completion_window=WINDOW, metadata={KEY: key}
        )
        return self._object(raw)["id"]

    def _submitted(self, file: str, key: str) -> str | None:
        for batch in self._every(self._client.batches.with_raw_response.list):
            if batch.get("input_file_id") == file or (batch.get("metadata") or {}).get(KEY) == key:
                return str(batch["id"])
        return None

    def _every(self, list_page: Callable[..., Any], **asked: Any) -> Iterator[dict[str, Any]]:
        """All batches, or files, page by page."""
        while True:
            page = self._object(list_page(limit=PAGE, **asked), "data")
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            asked["after"] = page["data"][-1]["id"]

    def _object(self, raw: Any, holds: str = "id") -> dict[str, Any]:
        """The JSON of a reply, which `holds` this."""
        try:
            body = json.loads(raw.text)
            if body[holds] is not None:
                return body
        except (ValueError, KeyError, TypeError):
            pass
        url, said = self._endpoint.url, one_line(trouble.in_reply(raw.text).said)
        raise EndpointError(f"{url}: the reply is not one of a Batch API: {said}; leave out --batch", fatal=True)


def line(name: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request, as a line of a file."""
    return {"custom_id": name, "method": "POST", "url": ASKED, "body": body}


def refused(told: Trouble) -> bool:
    """Whether a request failed for what it is, so that it would fail again."""
    return told.status is not None and not retry.is_transient(told.status)


def _name(key: str) -> str:
    return f"vtools-{key}.jsonl"
