"""Why a server gave no answer: its own words, whether to ask again, whether every question would meet the same."""

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from vtools.inference import retry
from vtools.inference.address import one_line

FATAL = (401, 402, 403, 404)  # statuses that do not depend on the question
UNPAID = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"}
NO_MONEY = re.compile(
    r"\b(?:insufficient|exceed\w*|out of|no more|not enough)\b.{0,40}\b(?:quota|credits?|balance|funds)\b",
    re.IGNORECASE,
)
REFUSED = (
    r"(?:unsupported|(?:does|do|is|are) ?n[o']t (?:support\w*|permit\w*|allow\w*)|not (?:supported|permitted|allowed)|"
    r"un(?:known|recogni[sz]ed|expected)|extra (?:inputs?|fields?)|invalid (?:parameter|field|argument))"
)
TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Trouble:
    """`kind` is `silent` (no answer in time), `broken` (no connection, or not to the end), `status` or `odd` (a reply
    with status 200 that is no chat completion). `after` is the wait that the server asks for, in seconds."""

    kind: str
    said: str
    status: int | None = None
    code: str = ""
    param: str = ""
    after: float | None = None

    @property
    def unpaid(self) -> bool:
        """Whether the account has no money left: a limit per minute names a wait, this does not."""
        return self.status == 402 or self.code in UNPAID or (self.after is None and bool(NO_MONEY.search(self.said)))

    @property
    def fatal(self) -> bool:
        """Whether every other question would meet the same."""
        return self.unpaid or self.kind == "broken" or self.code == "not_a_server" or self.status in FATAL

    @property
    def elsewhere(self) -> bool:
        """Whether another server of the same model may answer."""
        return self.kind in ("broken", "silent") or (self.status or 0) >= 500

    @property
    def may_cost(self) -> bool:
        """Whether the server may have computed an answer, and count it."""
        return self.kind in ("silent", "broken")

    def retries(self, allowed: int, timeout: float) -> int:
        """How often to ask again; `timeout` is how long a silence takes, in seconds."""
        if self.kind == "silent":
            return min(allowed, retry.silences(timeout))
        if self.kind == "odd":
            return 0 if self.fatal or self.code else min(1, allowed)
        if self.kind == "status" and (self.unpaid or not retry.is_transient(self.status or 0)):
            return 0
        return allowed

    def blames(self, parameter: str) -> bool:
        """Whether the server refuses the request because of this parameter, as another value or none might pass."""
        if self.status not in (400, 422):
            return False
        if self.param == parameter:
            return True
        name = rf"(?<![\w-]){parameter}(?![\w-])"
        near = rf"{REFUSED}[^.;]{{0,40}}?{name}|{name}[^.;]{{0,40}}?{REFUSED}"
        return bool(re.search(near, self.said, re.IGNORECASE))


def of(error: Exception) -> Trouble:
    """What an exception of the openai library or of its connections means."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return Trouble("silent", "no answer in time", after=0.0)  # it was waited for long enough
    if isinstance(error, openai.APIStatusError):
        headers, body = error.response.headers, error.body
        found = _described(body if isinstance(body, dict) else {})
        said = found.said or _words(error.response.text) or one_line(error.message)
        return replace(found, said=said, status=error.status_code, after=retry.after(headers))
    return Trouble("broken", one_line(error.__cause__ or error))


def in_reply(text: str) -> Trouble:
    """What a body with status 200 means that is no chat completion."""
    try:
        body = json.loads(text)
    except ValueError:
        if text.lstrip()[:1] == "{":
            return Trouble("broken", "the reply breaks off")
        return Trouble("odd", _words(text) or "an empty reply", code="not_a_server" if text.strip() else "")
    if not isinstance(body, dict) or not body.keys() & {"error", "choices", "detail", "message"}:
        return Trouble("odd", _words(text), code="not_a_server")
    error = body.get("error") or body.get("detail") or body.get("message")
    if not error:
        return Trouble("odd", f"no choices: {_words(text)}")
    found = _described(error if isinstance(error, dict) else {"message": error})
    return replace(found, kind="status" if found.status else "odd", code=found.code or "error")


def in_line(line: dict[str, Any]) -> Trouble:
    """What a line of a batch's answers means that has none. Without a status, the request was never carried out."""
    response = line.get("response") or {}
    body = response.get("body")
    error = line.get("error") or (body.get("error") if isinstance(body, dict) else None) or body
    found = _described(error if isinstance(error, dict) else {"message": error or "no answer"})
    return replace(found, status=_status(response.get("status_code")) or found.status)


def _described(error: dict[str, Any]) -> Trouble:
    """An error object: OpenAI's, or like it."""
    code = str(error.get("code") or error.get("type") or "")
    kinds = {code, str(error.get("type") or "")}
    status = next((value for name in ("status", "code") if (value := _status(error.get(name)))), None)
    said = error.get("message") or error.get("detail") or (error if error else "")
    return Trouble("status", one_line(said), status, next(iter(kinds & UNPAID), code), str(error.get("param") or ""))


def _status(value: Any) -> int | None:
    text = str(value)
    return int(text) if text.isdecimal() and 400 <= int(text) < 600 else None


def _words(text: str) -> str:
    """The words of a body, without the tags of a page."""
    return one_line(TAGS.sub(" ", text) if text.lstrip().startswith("<") else text)
