"""The record: every shape that is read comes out as one shape."""

from __future__ import annotations

import pytest
from chats import chat

from vtools.records import conversation
from vtools.records.jsonl import Reject

SHAPES = {
    "openai": {"messages": chat("Q", "A")},
    "openai parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, {"role": "assistant", "content": ["A"]}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "sharegpt site": {"items": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "chatgpt role": {"conversations": [{"from": "user", "value": "Q"}, {"from": "chatgpt", "value": "A"}]},
    "bard role": {"conversations": [{"from": "Human", "value": "Q"}, {"from": "bard", "value": "A"}]},
    "conversation": {"conversation": [{"role": "prompter", "text": "Q"}, {"role": "model", "text": "A"}]},
    "alpaca": {"instruction": "Q", "input": "", "output": "A"},
    "pair": {"prompt": "Q", "completion": "A"},
    "pair of messages": {"prompt": chat("Q"), "completion": [{"role": "assistant", "content": "A"}]},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_becomes_the_same_messages(shape):
    assert conversation.read(SHAPES[shape])["messages"] == chat("Q", "A")


def test_an_alpaca_input_follows_its_instruction():
    record = conversation.read({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert record["messages"][0]["content"] == "Add.\n\n1 2"


def test_null_columns_of_other_shapes_change_nothing():
    """Tables made of several shapes have a column for each, null where it is not used."""
    row = {"id": "a", "messages": None, "items": None, "prompt": None, "conversations": [{"from": "human", "role": None, "value": "Q"}, {"from": "gpt", "text": None, "value": "A"}]}  # fmt: skip
    record = conversation.read(row)
    assert [(m["role"], m["content"]) for m in record["messages"]] == [("user", "Q"), ("assistant", "A")]
    assert conversation.shape(row) == "sharegpt"


def test_other_keys_pass_through_in_order_after_id_and_messages():
    record = conversation.read({"b": 1, "conversations": [], "id": 7, "a": 2, "vtools": []})
    assert list(record) == ["id", "messages", "b", "a", "vtools"]
    assert record["id"] == "7"


def test_an_id_made_from_the_content_depends_on_roles_and_texts_alone():
    one = conversation.read({"messages": chat("Q", "A"), "source": "x"})
    two = conversation.read({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]})
    assert one["id"] == two["id"]
    assert len(one["id"]) == 32
    assert conversation.read({"messages": chat("Q", "B")})["id"] != one["id"]


def test_sharegpt_shape_and_back_is_the_same_record():
    record = conversation.read({"id": "x", "messages": chat("Q", "A", system="S"), "lang": "en"})
    written = conversation.to_sharegpt(record)
    assert [turn["from"] for turn in written["conversations"]] == ["system", "human", "gpt"]
    assert conversation.read(written) == record


BAD = [
    ({}, "bad_schema", "no keys"),
    ({"messages": None, "text": "x"}, "bad_schema", "messages"),
    ({"messages": "text"}, "bad_schema", "messages is not a list"),
    ({"messages": ["text"]}, "bad_schema", r"messages\[0\] is not an object"),
    ({"messages": [{"role": "user"}]}, "bad_schema", r"messages\[0\] has no content"),
    ({"messages": [{"role": "user", "content": None}]}, "bad_schema", "null"),
    ({"messages": [{"role": "user", "content": 3}]}, "bad_schema", "int"),
    ({"messages": [{"role": "user", "content": [{"image": "x"}]}]}, "bad_schema", "not text"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "unknown_role", "tool"),
    ({"messages": [{"role": "", "content": "x"}]}, "unknown_role", "''"),
    ({"messages": [{"content": "x"}]}, "unknown_role", "None"),
]


@pytest.mark.parametrize(("value", "reason", "detail"), BAD)
def test_what_cannot_be_read_says_where_and_why(value, reason, detail):
    with pytest.raises(Reject, match=detail) as caught:
        conversation.read(value)
    assert caught.value.reason == reason


def test_a_reason_outside_the_fixed_list_cannot_be_given():
    with pytest.raises(ValueError, match="made_up"):
        Reject("made_up")
