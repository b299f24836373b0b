"""A judge's server that also has a Batch API of OpenAI's shape, and can be told where its client dies."""

from __future__ import annotations

import email
import json
from collections.abc import Callable, Iterator
from typing import Any

from judging import Judge
from loopback import Reply, Request

GONE = Reply(b"{", headers={"Content-Length": "1000"})  # the connection is closed without an answer


class BatchServer(Judge):
    """Carries batches out at once and tells of it after `looks` looks; answers come in reverse order.

    `fate(requests)` changes the end of a batch: its fields, and how many of its requests are carried out (`done`).
    `dies(step)` may kill the client when it comes to a step, and says whether the server still acts: "acted" or "not",
    or sends half of the reply: "half". A step is `chat`, `upload`, `files`, `submit`, `list`, `poll` or `content`.
    """

    looks = 2
    page = 1  # of what is listed
    dies: Callable[[str], str | None] = staticmethod(lambda step: None)
    fate: Callable[[list[dict]], dict] = staticmethod(lambda requests: {})

    def __init__(self, answer: Callable[[list[dict], dict], Any], **options: Any) -> None:
        self.files: dict[str, dict] = {}
        self.batches: dict[str, dict] = {}
        self.carried: list[str] = []  # the names of requests that were carried out, and so are paid for
        self.steps: list[str] = []
        super().__init__(answer, **options)

    @property
    def asked(self) -> list[Request]:
        return [request for request in super().asked if request.path.endswith("/chat/completions")]

    @property
    def lines(self) -> list[list[dict]]:
        """The requests of each batch."""
        return [_lines(self.files[batch["input_file_id"]]["content"]) for batch in self.batches.values()]

    def _reply(self, request: Request) -> Reply:
        path, _, query = request.path.removeprefix("/v1").partition("?")
        parts = path.strip("/").split("/")
        if parts[0] not in ("files", "batches", "chat"):
            return super()._reply(request)
        step = self._step(request.method, parts)
        self.steps.append(step)
        end = self.dies(step)
        if end == "not":
            return GONE
        given = dict(pair.split("=") for pair in query.split("&") if pair)
        reply = super()._reply(request) if step == "chat" else self._batch_reply(step, request, parts, given)
        if end == "half":
            half = reply.body[: len(reply.body) // 2]
            return Reply(half, headers={"Content-Length": str(len(reply.body))})
        return GONE if end else reply

    def _step(self, method: str, parts: list[str]) -> str:
        if parts[0] == "chat" or parts[-1] == "content":
            return "chat" if parts[0] == "chat" else "content"
        if method == "POST":
            return "upload" if parts[0] == "files" else "submit"
        return "poll" if len(parts) > 1 else "files" if parts[0] == "files" else "list"

    def _batch_reply(self, step: str, request: Request, parts: list[str], given: dict[str, str]) -> Reply:
        if step == "upload":
            return Reply.json(self._uploaded(request))
        if step == "submit":
            return self._submitted(request.json)
        if step == "content":
            return Reply(self.files[parts[1]]["content"])
        if step == "poll":
            return self._polled(parts[1])
        listed = list((self.files if step == "files" else self.batches).values())[::-1]
        after = next((place + 1 for place, one in enumerate(listed) if one["id"] == given.get("after")), 0)
        shown = [{name: one[name] for name in one if name not in ("content", "end")} for one in listed]
        return Reply.json({"data": shown[after : after + self.page], "has_more": after + self.page < len(shown)})

    def _uploaded(self, request: Request) -> dict:
        head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        fields = {
            part.get_param("name", header="content-disposition"): part
            for part in email.message_from_bytes(head + request.body).get_payload()
        }
        assert fields["purpose"].get_payload().strip() == "batch"
        return self._file(fields["file"].get_payload(decode=True), fields["file"].get_filename())

    def _file(self, content: bytes, filename: str) -> dict:
        name = f"file-{len(self.files)}"
        self.files[name] = {"id": name, "filename": filename, "content": content}
        return {"id": name, "filename": filename, "object": "file"}

    def _submitted(self, asked: dict) -> Reply:
        assert asked["endpoint"] == "/v1/chat/completions" and asked["completion_window"] == "24h"
        requests = _lines(self.files[asked["input_file_id"]]["content"])
        assert len({request["custom_id"] for request in requests}) == len(requests)
        assert len({request["body"]["model"] for request in requests}) == 1
        end = {"status": "completed", "created_at": 1000, "completed_at": 1060, **self.fate(requests)}
        done = 0 if end["status"] == "failed" else end.pop("done", len(requests))
        answers, errors = [], []
        for request in requests[:done]:
            reply = Judge._reply(self, Request("POST", request["url"], {}, json.dumps(request["body"]).encode(), 0.0))
            if reply.status == 200:
                self.carried.append(request["custom_id"])
            response = {"status_code": reply.status, "request_id": "r", "body": json.loads(reply.body)}
            line = {"id": "line", "custom_id": request["custom_id"], "response": response, "error": None}
            (answers if reply.status == 200 else errors).append(line)
        expired = {"code": "batch_expired", "message": "the completion window has passed"}
        errors += [
            {"id": "line", "custom_id": request["custom_id"], "response": None, "error": expired}
            for request in requests[done:]
        ]
        if end["status"] != "failed":
            end["output_file_id"] = self._results(answers)
            end["error_file_id"] = self._results(errors)
        counts = {"total": len(requests), "completed": len(answers), "failed": len(errors)}
        batch = {"id": f"batch-{len(self.batches)}", "object": "batch", "status": "validating", "metadata": None}
        batch |= asked | {"request_counts": counts, "looks": 0, "end": end}
        self.batches[batch["id"]] = batch
        return Reply.json({name: batch[name] for name in batch if name != "end"})

    def _results(self, lines: list[dict]) -> str | None:
        content = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in reversed(lines))
        return self._file(content, "results")["id"] if lines else None

    def _polled(self, name: str) -> Reply:
        batch = self.batches[name]
        batch["looks"] += 1
        if batch["looks"] > self.looks:
            batch |= batch["end"]
        elif batch["looks"] > 1:
            batch["status"] = "in_progress"
        return Reply.json({name: batch[name] for name in batch if name != "end"}, headers={"Retry-After": "0.02"})


def _lines(content: bytes) -> list[dict]:
    return [json.loads(line) for line in content.splitlines()]


def names(batches: Iterator[list[dict]] | list[list[dict]]) -> list[str]:
    """The names of all requests, in their order."""
    return [request["custom_id"] for batch in batches for request in batch]
