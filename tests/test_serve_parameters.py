"""The parameters of a request: read, refused by name, described; who is admitted; how a body is unpacked."""

from __future__ import annotations

import gzip
import json
import re
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from vtools.process import UsageFailure
from vtools.serve import admission, body
from vtools.serve.errors import ApiError
from vtools.serve.keys import Keys
from vtools.serve.openapi import openapi
from vtools.serve.parameters import CHAT, COMPLETIONS, PARAMETERS, parse

ASKED = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
    COMPLETIONS: {"model": "m", "prompt": "Once"},
}


def read(route: str = CHAT, **changes: object):
    return parse(json.dumps(ASKED[route] | changes).encode(), route)


def refused(route: str = CHAT, **changes: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(route, **changes)
    assert caught.value.status == 400
    return caught.value


def said(*messages: object):
    return read(messages=list(messages)).messages


def test_every_parameter_of_a_chat_is_read():
    found = read(
        max_tokens=9, max_completion_tokens=9, temperature=0, top_p=0.5, seed=3, stop="END", stream=True,
        stream_options={"include_usage": True}, n=4, logprobs=True, top_logprobs=20, user="u",
    )  # fmt: skip
    assert found.messages == [{"role": "user", "content": "Hi"}]
    sampling = found.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (9, 0.0, 0.5, 3)
    assert sampling.stop == ("END",)
    assert (found.stream, found.include_usage, found.n, found.logprobs) == (True, True, 4, 20)


def test_every_parameter_of_a_completion_is_read():
    found = read(COMPLETIONS, prompt=[5, 0, 7], max_tokens=3, logprobs=2, return_token_ids=True, stop=["a", "b"], n=2)
    assert (found.prompt, found.sampling.max_tokens, found.logprobs, found.n) == ([5, 0, 7], 3, 2, 2)
    assert found.return_token_ids
    assert found.sampling.stop == ("a", "b")
    assert read(COMPLETIONS).prompt == read(COMPLETIONS, prompt=["Once"]).prompt == "Once"


def test_what_is_left_out_has_the_defaults_of_the_api():
    chat, completion = read(), read(COMPLETIONS)
    assert chat.sampling.max_tokens is completion.sampling.max_tokens is None
    assert (chat.sampling.top_p, chat.n, chat.logprobs, chat.stream) == (1.0, 1, None, False)


NEUTRAL = {
    "tools": [], "tool_choice": "none", "logit_bias": {}, "metadata": {}, "service_tier": "auto", "top_k": -1,
    "safety_identifier": "who", "min_p": 0, "functions": [], "top_logprobs": 0, "parallel_tool_calls": True,
    "prompt_cache_key": "k", "modalities": ["text"], "repetition_penalty": 1.0, "chat_template_kwargs": {},
    "store": False, "response_format": {"type": "text"}, "frequency_penalty": 0, "presence_penalty": 0.0,
    "logprobs": False, "function_call": "none", "n": 1, "stop": [], "stream_options": {},
}  # fmt: skip


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_value_that_asks_for_nothing_changes_nothing(name):
    assert read(**{name: NEUTRAL[name]}) == read()


@pytest.mark.parametrize("route", ASKED)
def test_null_is_the_same_as_absent_for_every_parameter_even_an_unknown_one(route):
    names = {one.name for one in PARAMETERS if route in one.routes} - ASKED[route].keys()
    assert read(route, **dict.fromkeys([*names, "reasoning_effort"])) == read(route)


def test_what_clients_add_to_a_message_is_accepted_where_it_asks_for_nothing():
    user = {"role": "user", "content": "Hi", "name": "Ann", "audio": None}
    answer = {"role": "assistant", "content": None, "annotations": [], "tool_calls": [], "refusal": None}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert said(user, answer, {"role": "developer", "content": parts}, user) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": ""},
        {"role": "system", "content": "ab"},
        {"role": "user", "content": "Hi"},
    ]


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"tools": [{}]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "auto"}, "tool_choice", "unsupported_parameter"),
        ({"top_k": 5}, "top_k", "unsupported_parameter"),
        ({"min_p": False}, "min_p", "unsupported_parameter"),
        ({"store": 0}, "store", "unsupported_parameter"),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"no_such": 0}, "no_such", "unsupported_parameter"),
        ({"prompt": "a"}, "prompt", "unsupported_parameter"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unsupported_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": 1}, "stream", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"top_p": True}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 10**30}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"seed": "1"}, "seed", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"user": 5}, "user", "invalid_value"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [USER, 5]}, "messages[1]", "invalid_value"),
        ({"messages": [{"content": "a"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
        ({"messages": [USER, {"role": "system", "content": "a"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages[0].tool_calls", "unsupported_parameter"),
        ({"messages": [{**USER, "weight": 1}]}, "messages[0].weight", "unsupported_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
            "messages[0].content[0].x",
            "unsupported_parameter",
        ),
    ],
)
def test_what_is_wrong_in_a_chat_is_refused_by_name(changes, param, code):
    error = refused(**changes)
    assert (error.param, error.code) == (param, code)
    assert param in error.message


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"messages": [USER]}, "messages", "unsupported_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [1, -1]}, "prompt", "invalid_value"),
        ({"prompt": [True]}, "prompt", "invalid_value"),
        ({"prompt": ["a", "b"]}, "prompt", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"return_token_ids": 1}, "return_token_ids", "invalid_value"),
    ],
)
def test_what_is_wrong_in_a_completion_is_refused_by_name(changes, param, code):
    error = refused(COMPLETIONS, **changes)
    assert (error.param, error.code) == (param, code)


def test_the_first_of_several_wrong_parameters_is_named():
    raw = b'{"model": "m", "top_p": 9, "seed": "x", "tools": [1], "messages": []}'
    with pytest.raises(ApiError) as caught:
        parse(raw, CHAT)
    assert caught.value.param == "top_p"


def test_a_long_name_is_not_sent_back_whole():
    assert len(refused(**{"x" * 10**6: 1}).message) < 300


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff", b'{"model": "\\ud800"}', b'{"seed": NaN}'])
def test_a_body_that_is_no_json_object_is_a_400(raw):
    with pytest.raises(ApiError) as caught:
        parse(raw, CHAT)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("name", ["messages", "stop", "tools", "no_such"])
@pytest.mark.parametrize("depth", [900, 10_000])
def test_json_nested_very_deep_is_a_400(name, depth):
    for begin, end in ((b"[", b"]"), (b'{"content":', b"}")):
        raw = b'{"model": "m", "messages": [], "%s": %s1%s}' % (name.encode(), begin * depth, end * depth)
        with pytest.raises(ApiError) as caught:
            parse(raw, CHAT)
        assert caught.value.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), lambda inner: st.lists(inner)
)
NAMES = sorted({one.name for one in PARAMETERS})


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=4), st.sampled_from([*ASKED]))
def test_any_value_is_read_or_refused_with_the_parameter_that_was_sent(changes, route):
    asked = ASKED[route] | changes
    try:
        parse(json.dumps(asked).encode(), route)
    except ApiError as error:
        assert error.status == 400
        named = {error.param, re.split(r"[.\[]", error.param or "")[0]}
        assert error.code == "invalid_json" or named & {*asked, "messages", "prompt"}


def accepts(schema: dict, value: object) -> bool:
    """Whether a value has a JSON schema, as far as ours go (json-schema.org, 2020-12)."""
    if "anyOf" in schema:
        return any(accepts(one, value) for one in schema["anyOf"])
    if "enum" in schema:
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in schema["enum"])
    kinds = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "object": dict, "array": list}
    kinds["null"] = type(None)
    if not isinstance(value, kinds[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return False
    if schema["type"] == "array":
        sizes = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return sizes and all(accepts(schema["items"], one) for one in value)
    if schema["type"] == "object":
        fields = schema["properties"]
        return all(name in value for name in schema.get("required", [])) and all(
            accepts(fields.get(name, schema["additionalProperties"]), one) for name, one in value.items()
        )
    if schema["type"] == "string":
        return len(value) >= schema.get("minLength", 0)
    if schema["type"] in ("integer", "number"):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return True


VALUES = [
    None, True, False, 0, 1, -1, 2, 2.5, 0.5, 20, 21, 128, 129, 1 << 40, "", "a", "none", "auto", "text", [], [""], ["a"],
    ["text"], ["a", "b"], ["a"] * 5, [1, 2], [-1], [True], [None], {}, {"a": 1}, {"type": "text"}, {"include_usage": True},
    {"include_usage": 1}, [{"role": "user", "content": "a"}], [{"role": "user", "content": "a", "x": None, "y": 1}],
    [{"role": "user", "content": [{"type": "text", "text": "a"}]}], [{"role": "bot", "content": "a"}],
]  # fmt: skip


@pytest.mark.parametrize("route", ASKED)
def test_the_description_accepts_what_the_parser_accepts(route):
    document = openapi()
    path = "/v1/chat/completions" if route == CHAT else "/v1/completions"
    reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    names = {one.name for one in PARAMETERS if route in one.routes}
    assert schema["properties"].keys() == names
    together = {"stream_options": {"stream": True}, "top_logprobs": {"logprobs": True}}  # rules that no schema has
    for name in [*names, "no_such"]:
        for value in VALUES:
            asked = ASKED[route] | together.get(name, {}) | {name: value}
            try:
                parse(json.dumps(asked).encode(), route)
                read = True
            except ApiError:
                read = False
            assert accepts(schema, asked) == read, (name, value)


def test_the_description_has_every_route_and_is_json():
    document = json.loads(json.dumps(openapi()))
    assert document["openapi"].startswith("3.1")
    assert {*document["paths"]} == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{name}", "/openapi.json", "/health",
        "/metrics", "/ready",
    }  # fmt: skip
    example = ApiError(429, "later", code="queue_full").body()
    assert accepts(document["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["type"], example["error"]["type"])  # fmt: skip


def request(**headers: bytes) -> Request:
    return Request({"type": "http", "headers": [(name.encode(), value) for name, value in headers.items()]})


def admitted(door: admission.Admission, **headers: bytes) -> bool:
    try:
        door.check(request(**headers))
    except ApiError as error:
        assert error.status in (401, 403)
        return False
    return True


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        (b"localhost", True), (b"localhost:8000", True), (b"LocalHost:8000", True), (b"127.0.0.1", True),
        (b"127.0.0.2:80", True), (b"127.255.1.1", True), (b"[::1]", True), (b"[::1]:8000", True),
        (b"my-pc.lan:8000", True), (b"MY-PC.lan", True), (b"", False), (b"evil.example", False),
        (b"localhost.evil.example", False), (b"127.0.0.1.evil.example:8000", False), (b"192.168.0.1", False),
        (b"0.0.0.0:8000", False), (b"localhost:8000:evil", False), (b"[::2]", False), (b"2130706433", False),
    ],
)  # fmt: skip
def test_without_a_key_only_the_names_of_this_machine_are_let_in(host, ours):
    assert admitted(admission.Admission(Keys({}), "My-PC.lan"), host=host) == ours


@pytest.mark.parametrize(
    "key", [b"k", "schlüssel à".encode(), "钥匙🔑".encode(), b"\xff\xfe not utf-8", b"a b", "ends in à".encode()]
)
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_key_is_read_without_its_line_end_and_may_be_any_text(key, end):
    door = admission.Admission(Keys({b"VTOOLS_API_KEY": key + end}), "0.0.0.0")
    assert admitted(door, authorization=b"Bearer " + key, host=b"anything")
    assert admitted(door, authorization=b"bearer  " + key + b" ")
    for wrong in (b"", b"Bearer ", b"Bearer " + key[:-1], b"Bearer " + key + b"x", key, b"Basic " + key):
        assert not admitted(door, authorization=wrong)
    assert not admitted(door)


def test_a_key_is_also_known_as_browsers_send_it():
    door = admission.Admission(Keys({b"VTOOLS_API_KEY": "schlüssel".encode()}), "0.0.0.0")
    assert admitted(door, authorization="Bearer schlüssel".encode("latin-1"))


@pytest.mark.parametrize("value", [{}, {b"VTOOLS_API_KEY": b""}, {b"VTOOLS_API_KEY": b"\n"}])
def test_an_empty_key_is_none(value):
    assert not Keys(value)


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("*", "set VTOOLS_API_KEY"),
        ("localhost:3000", "not an origin"),
        ("http://a.b/", "not an origin"),
        ("", "origin"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin, said):
    with pytest.raises(UsageFailure, match=said):
        admission.check_origins([origin], False)


def test_a_gzip_body_is_unpacked_up_to_the_limit_and_no_further():
    assert body.unpacked(gzip.compress(b"{}", mtime=0)) == b"{}"
    assert len(body.unpacked(gzip.compress(b" " * body.LIMIT))) == body.LIMIT
    bomb = gzip.compress(b" " * (64 << 20))
    tracemalloc.start()
    for large in (gzip.compress(b" " * (body.LIMIT + 1)), bomb):
        with pytest.raises(ApiError) as caught:
            body.unpacked(large)
        assert caught.value.status == 413
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        b"{}",
        gzip.compress(b"{}", mtime=0)[:-1],
        gzip.compress(b"{}", mtime=0) + b"x",
        zlib.compress(b"{}"),
        b"\x1f\x8b\x08",
    ],
)
def test_a_body_that_is_not_one_whole_gzip_is_a_400(torn):
    with pytest.raises(ApiError) as caught:
        body.unpacked(torn)
    assert (caught.value.status, caught.value.code) == (400, "invalid_gzip")
