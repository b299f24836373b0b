"""The body of a chat request: known parameters are checked, unknown ones refused by name."""

import math
from dataclasses import dataclass
from typing import Any

import orjson

from vtools.inference.client import Sampling

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEMPERATURE = 0.7
STOP_STRINGS = 4
# Unsupported parameters of the API, with the values that request nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logprobs": (False,),
    "store": (False,),
    "response_format": ({"type": "text"},),
}


class ApiError(Exception):
    """An error response in the API's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def body(self) -> dict[str, Any]:
        """The error object that clients read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class Parameters:
    """A valid chat request."""

    model: str
    messages: list[dict[str, str]]
    sampling: Sampling
    stream: bool
    include_usage: bool


def parse(raw: bytes) -> Parameters:
    """A request body to its parameters. Raises ApiError(400) naming the first one that is wrong."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    given = {name: value for name, value in body.items() if value is not None}
    model = given.pop("model", None)
    if not isinstance(model, str):
        raise _wrong("model", "the name of a model")
    messages = _messages(given.pop("messages", None))
    limits = {name: _whole(given, name, 1) for name in ("max_tokens", "max_completion_tokens")}
    wanted = {limit for limit in limits.values() if limit is not None}
    if len(wanted) > 1:
        raise ApiError(400, "max_tokens and max_completion_tokens differ", code="invalid_value", param="max_tokens")
    temperature = _number(given, "temperature", 2)
    top_p = _number(given, "top_p", 1)
    stream = _flag(given, "stream")
    parameters = Parameters(
        model=model,
        messages=messages,
        sampling=Sampling(
            max_tokens=wanted.pop() if wanted else None,
            temperature=TEMPERATURE if temperature is None else temperature,
            top_p=1.0 if top_p is None else top_p,
            seed=_whole(given, "seed", None),
            stop=_stop(given.pop("stop", [])),
        ),
        stream=stream,
        include_usage=_include_usage(given.pop("stream_options", {}), stream),
    )
    given.pop("user", None)  # identifies the end user; no answer depends on it
    for name, value in given.items():
        if not any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL.get(name, ())):
            raise _unsupported(name)
    return parameters


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _wrong("messages", "a list of at least one message")
    messages = []
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise _wrong(where, "an object with role and content")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise _wrong(f"{where}.role", f"one of {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            texts = [part.get("text") for part in content]
            content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
        if not isinstance(content, str):
            raise _wrong(f"{where}.content", "text")
        for name, extra in message.items():
            if name not in ("role", "content") and extra is not None:
                param = f"{where}.{name}"
                raise ApiError(
                    400, f"{param} is not supported by this server", code="unsupported_parameter", param=param
                )
        messages.append({"role": ROLES[role], "content": content})
    if messages[-1]["role"] != "user":
        raise _wrong(f"messages[{len(messages) - 1}].role", "user in the last message")
    return messages


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > STOP_STRINGS or not all(isinstance(s, str) and s for s in stops):
        raise _wrong("stop", f"a text, or a list of at most {STOP_STRINGS}, none of them empty")
    return tuple(stops)


def _include_usage(value: Any, stream: bool) -> bool:
    if not isinstance(value, dict):
        raise _wrong("stream_options", "an object")
    if value and not stream:
        raise ApiError(400, "stream_options needs stream", code="invalid_value", param="stream_options")
    options = dict(value)
    wanted = _flag(options, "include_usage", "stream_options.")
    for name, extra in options.items():
        if extra is not None:
            raise _unsupported(f"stream_options.{name}")
    return wanted


def _flag(given: dict[str, Any], name: str, where: str = "") -> bool:
    value = given.pop(name, False)
    if not isinstance(value, bool):
        raise _wrong(where + name, "true or false")
    return value


def _whole(given: dict[str, Any], name: str, least: int | None) -> int | None:
    value = given.pop(name, None)
    if value is None:
        return None
    if type(value) is not int or (least is not None and value < least):
        raise _wrong(name, "a whole number" + (f" of at least {least}" if least is not None else ""))
    return value


def _number(given: dict[str, Any], name: str, most: float) -> float | None:
    value = given.pop(name, None)
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= most:
        raise _wrong(name, f"a number from 0 to {most}")
    return float(value)


def _wrong(param: str, wanted: str) -> ApiError:
    return ApiError(400, f"{param} must be {wanted}", code="invalid_value", param=param)


def _unsupported(param: str) -> ApiError:
    return ApiError(400, f"{param} is not supported by this server", code="unsupported_parameter", param=param)
