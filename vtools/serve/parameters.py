"""The parameters of a request: one table that reads them, refuses what is wrong by name, and describes them.

A value that asks for nothing (`tools: []`, `n: 1`, null for anything) is accepted wherever a client may send it; what
cannot be carried out is refused, never ignored.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from vtools.inference.client import Sampling
from vtools.serve.errors import ApiError, unsupported, wrong

CHAT, COMPLETIONS = "chat", "completions"
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEMPERATURE = 0.7
COMPLETION_TOKENS = 16  # of a completion whose request does not say, as in OpenAI's API
STOP_STRINGS = 4
CHOICES = 128
ALTERNATIVES = 20  # log-probabilities per token
TOKEN_IDS = 1 << 31

Schema = dict[str, Any]


class Kind(NamedTuple):
    """What a value may be: a JSON schema, and a function of a name and a value that returns it or raises ApiError."""

    schema: Schema
    read: Callable[[str, Any], Any]


class Parameter(NamedTuple):
    """A parameter of the routes that have it."""

    name: str
    kind: Kind
    routes: tuple[str, ...] = (CHAT, COMPLETIONS)
    about: str = ""


@dataclass(frozen=True, slots=True)
class Parameters:
    """A valid request: of a chat (`messages`) or of a completion (`prompt`: text or token ids).

    `logprobs` is the number of alternatives wanted beside each token, None for no log-probabilities.
    """

    model: str
    sampling: Sampling
    messages: list[dict[str, str]]
    prompt: str | list[int]
    stream: bool
    include_usage: bool
    n: int
    logprobs: int | None
    return_token_ids: bool
    answer_token_ids: list[int]  # with which an answer begins that goes on


def _kind(schema: Schema, wanted: str, accepts: Callable[[Any], bool]) -> Kind:
    def read(name: str, value: Any) -> Any:
        if not accepts(value):
            raise wrong(name, wanted)
        return value

    return Kind(schema, read)


def _whole(least: int, most: int | None = None) -> Kind:
    limits = {"minimum": least} if most is None else {"minimum": least, "maximum": most}
    return _kind(
        {"type": "integer", **limits},
        f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}",
        lambda value: type(value) is int and value >= least and (most is None or value <= most),
    )


def _number(most: int) -> Kind:
    return _kind(
        {"type": "number", "minimum": 0, "maximum": most},
        f"a number from 0 to {most}",
        lambda value: type(value) in (int, float) and 0 <= value <= most,
    )


def _only(*neutral: Any) -> Kind:
    """A parameter that is not supported, and the values of it that ask for nothing."""
    shown = " or ".join(json.dumps(value) for value in neutral)

    def read(name: str, value: Any) -> None:
        # In Python true is 1 and false is 0; in JSON they are not.
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in neutral):
            raise unsupported(name, f"leave it out, or send {shown}")

    return Kind({"enum": list(neutral)}, read)


def _object(fields: dict[str, Kind], required: tuple[str, ...] = (), wanted: str = "an object") -> Kind:
    """An object with these fields, read in its own order; null is the same as absent."""

    def read(name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise wrong(name, wanted)
        found = {}
        for key, given in value.items():
            where = f"{name}.{key}" if name else key
            if given is None:
                continue
            if key not in fields:
                raise unsupported(where)
            found[key] = fields[key].read(where, given)
        for key in required:
            if key not in found:
                where = f"{name}.{key}" if name else key
                raise ApiError(400, f"{where} is missing", code="missing_required_parameter", param=where)
        return found

    null = {"type": "null"}
    shown = {key: kind.schema if key in required else {"anyOf": [kind.schema, null]} for key, kind in fields.items()}
    needs = {"required": list(required)} if required else {}
    return Kind({"type": "object", "properties": shown, **needs, "additionalProperties": null}, read)


_FLAG = _kind({"type": "boolean"}, "true or false", lambda value: isinstance(value, bool))
_TEXT = _kind({"type": "string"}, "text", lambda value: isinstance(value, str))
_STREAM_OPTIONS = _object({"include_usage": _FLAG, "include_obfuscation": _only(False)})
_STOP = _kind(
    {"anyOf": [{"type": "string", "minLength": 1}, {
        "type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": STOP_STRINGS,
    }]},
    f"a text, or a list of at most {STOP_STRINGS}, none of them empty",
    lambda value: bool(value) if isinstance(value, str) else (
        isinstance(value, list) and len(value) <= STOP_STRINGS and all(isinstance(text, str) and text for text in value)
    ),
)  # fmt: skip
_ID = {"type": "integer", "minimum": 0, "maximum": TOKEN_IDS}
_IDS = _kind(
    {"type": "array", "items": _ID},
    "a list of token ids",
    lambda value: isinstance(value, list) and all(type(number) is int and 0 <= number <= TOKEN_IDS for number in value),
)
_PROMPT = _kind(
    {"anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": _ID, "minItems": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": 1},
    ]},
    "a text, a list of one text, or a list of token ids, none of them empty",
    lambda value: bool(value) and (isinstance(value, str) or (isinstance(value, list) and (
        all(type(number) is int and 0 <= number <= TOKEN_IDS for number in value)
        or (len(value) == 1 and isinstance(value[0], str) and value[0] != "")
    ))),
)  # fmt: skip
_PART = _object({"type": _only("text"), "text": _TEXT}, ("type", "text"))


def _read_content(name: str, value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        return "".join(_PART.read(f"{name}[{place}]", part)["text"] for place, part in enumerate(value))
    if not isinstance(value, str):
        raise wrong(name, "text")
    return value


_MESSAGE = _object(
    {
        "role": _kind({"enum": list(ROLES)}, f"one of {', '.join(ROLES)}", lambda value: value in list(ROLES)),
        "content": Kind({"anyOf": [_TEXT.schema, {"type": "array", "items": _PART.schema}]}, _read_content),
        "name": _TEXT,
        "annotations": _only([]),
        "tool_calls": _only([]),
    },
    ("role",),
    "an object with role and content",
)


def _read_messages(name: str, value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise wrong(name, "a list of at least one message")
    messages = []
    for place, given in enumerate(value):
        where = f"{name}[{place}]"
        message = _MESSAGE.read(where, given)
        if "content" not in message and message["role"] != "assistant":  # an assistant's is null beside tool calls
            raise wrong(f"{where}.content", "text")
        messages.append({"role": ROLES[message["role"]], "content": message.get("content", "")})
    if messages[-1]["role"] == "system":
        raise wrong(f"{name}[{len(messages) - 1}].role", "user or assistant in the last message")
    return messages


_MESSAGES = Kind({"type": "array", "items": _MESSAGE.schema, "minItems": 1}, _read_messages)

PARAMETERS = (
    Parameter("model", _TEXT, about="One of the names that /v1/models lists."),
    Parameter("messages", _MESSAGES, (CHAT,), "The conversation. An assistant message at the end is continued."),
    Parameter("prompt", _PROMPT, (COMPLETIONS,), "The text to continue, or its token ids."),
    Parameter("max_tokens", _whole(1), about="The most tokens of an answer. Default: what the context leaves in a chat,"
              f" {COMPLETION_TOKENS} in a completion."),
    Parameter("max_completion_tokens", _whole(1), (CHAT,), "The newer name of max_tokens."),
    Parameter("temperature", _number(2), about=f"0 is greedy. Default: {TEMPERATURE}."),
    Parameter("top_p", _number(1), about="Sample from the likeliest tokens, up to this probability."),
    Parameter("seed", _whole(-(1 << 63), (1 << 63) - 1), about="The same seed gives the same answer."),
    Parameter("stop", _STOP, about="The answer ends before the first of these."),
    Parameter("stream", _FLAG, about="Send the answer as server-sent events, as it comes."),
    Parameter("stream_options", _STREAM_OPTIONS, about="Only with stream."),
    Parameter("n", _whole(1, CHOICES), about="The number of answers."),
    Parameter("logprobs", _FLAG, (CHAT,), "Give the log-probability of each token."),
    Parameter("top_logprobs", _whole(0, ALTERNATIVES), (CHAT,), "Alternatives to give with each; only with logprobs."),
    Parameter("logprobs", _whole(0, ALTERNATIVES), (COMPLETIONS,), "Give log-probabilities, and so many alternatives."),
    Parameter("return_token_ids", _FLAG, about="Give the answer's token ids, too, and a completion's prompt as ids."),
    Parameter("answer_token_ids", _IDS, (CHAT,), "Go on after these, which another server of the model gave."),
    # No answer depends on these.
    Parameter("user", _TEXT),
    Parameter("safety_identifier", _TEXT),
    Parameter("prompt_cache_key", _TEXT),
    Parameter("parallel_tool_calls", _FLAG, (CHAT,)),
    # Not supported: only the values that ask for nothing.
    Parameter("frequency_penalty", _only(0)),
    Parameter("presence_penalty", _only(0)),
    Parameter("repetition_penalty", _only(1)),
    Parameter("top_k", _only(-1, 0)),
    Parameter("min_p", _only(0)),
    Parameter("logit_bias", _only({})),
    Parameter("metadata", _only({})),
    Parameter("store", _only(False)),
    Parameter("service_tier", _only("auto", "default")),
    Parameter("response_format", _only({"type": "text"})),
    Parameter("modalities", _only(["text"]), (CHAT,)),
    Parameter("tools", _only([]), (CHAT,)),
    Parameter("tool_choice", _only("none"), (CHAT,)),
    Parameter("functions", _only([]), (CHAT,)),
    Parameter("function_call", _only("none"), (CHAT,)),
    Parameter("chat_template_kwargs", _only({}), (CHAT,)),
    Parameter("best_of", _only(1), (COMPLETIONS,)),
    Parameter("echo", _only(False), (COMPLETIONS,)),
    Parameter("suffix", _only(""), (COMPLETIONS,)),
)  # fmt: skip
_REQUIRED = {CHAT: ("model", "messages"), COMPLETIONS: ("model", "prompt")}


def _body(route: str) -> Kind:
    kinds = {
        one.name: Kind(one.kind.schema | ({"description": one.about} if one.about else {}), one.kind.read)
        for one in PARAMETERS
        if route in one.routes
    }
    return _object(kinds, _REQUIRED[route])


_BODIES = {route: _body(route) for route in (CHAT, COMPLETIONS)}


def schemas() -> dict[str, Schema]:
    """The JSON schema of each route's body."""
    return {route: body.schema for route, body in _BODIES.items()}


def parse(raw: bytes, route: str) -> Parameters:
    """The body of a request of a route to its parameters. Raises ApiError(400) naming the first one that is wrong."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:  # nested too deeply, too
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    given = _BODIES[route].read("", body)
    stream = given.get("stream", False)
    if given.get("stream_options") and not stream:
        raise _conflict("stream_options", "stream_options needs stream")
    prompt = given.get("prompt", [])
    return Parameters(
        model=given["model"],
        sampling=Sampling(
            max_tokens=_max_tokens(given),
            temperature=float(given.get("temperature", TEMPERATURE)),
            top_p=float(given.get("top_p", 1)),
            seed=given.get("seed"),
            stop=_listed(given.get("stop", [])),
        ),
        messages=given.get("messages", []),
        prompt=prompt[0] if isinstance(prompt, list) and prompt and isinstance(prompt[0], str) else prompt,
        stream=stream,
        include_usage=given.get("stream_options", {}).get("include_usage", False),
        n=given.get("n", 1),
        logprobs=_alternatives(given) if route == CHAT else given.get("logprobs"),
        return_token_ids=given.get("return_token_ids", False),
        answer_token_ids=_begun(given),
    )


def _max_tokens(given: dict[str, Any]) -> int | None:
    wanted = {given[name] for name in ("max_tokens", "max_completion_tokens") if name in given}
    if len(wanted) > 1:
        raise _conflict("max_tokens", "max_tokens and max_completion_tokens differ")
    return wanted.pop() if wanted else None


def _begun(given: dict[str, Any]) -> list[int]:
    ids: list[int] = given.get("answer_token_ids", [])
    if ids and (given.get("n", 1) > 1 or given.get("logprobs")):
        raise _conflict("answer_token_ids", "answer_token_ids is for one answer without logprobs")
    return ids


def _alternatives(given: dict[str, Any]) -> int | None:
    alternatives: int = given.get("top_logprobs", 0)
    if given.get("logprobs", False):
        return alternatives
    if alternatives:
        raise _conflict("top_logprobs", "top_logprobs needs logprobs")
    return None


def _listed(stop: str | Iterable[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _conflict(param: str, message: str) -> ApiError:
    return ApiError(400, message, code="invalid_value", param=param)
