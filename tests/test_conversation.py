"""The record: every shape that is read comes out as one shape."""

from __future__ import annotations

import copy

import pytest
from chats import chat
from hypothesis import given, settings
from record_shapes import RECORD

from vtools.records import conversation, jsonl, preferences, streams
from vtools.records.jsonl import Reject

Q, A = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}
SHAPES = {
    "openai": {"messages": chat("Q", "A")},
    "openai parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, {"role": "assistant", "content": ["A"]}]},
    "parts of other APIs": {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "Q"}]}, {"role": "assistant", "content": [{"type": "text", "value": "A"}]}]},
    "sharegpt": {"conversations": [Q, A]},
    "sharegpt site": {"items": [Q, A]},
    "chatgpt role": {"conversations": [{"from": "user", "value": "Q"}, {"from": "chatgpt", "value": "A"}]},
    "bard role": {"conversations": [{"from": "Human", "value": "Q"}, {"from": "bard", "value": "A"}]},
    "AI role": {"conversations": [{"from": "human", "value": "Q"}, {"from": "AI", "value": "A"}]},
    "bot role": {"conversations": [{"from": "human", "value": "Q"}, {"from": "Bot", "value": "A"}]},
    "claude role": {"conversation": [{"sender": "human", "text": "Q"}, {"sender": "claude", "text": "A"}]},
    "conversation": {"conversation": [{"role": "prompter", "text": "Q"}, {"role": "model", "text": "A"}]},
    "texts in turn": {"data": ["Q", "A"]},
    "JSON text": {"conversations": '[{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]'},
    "struct of lists": {"conversations": {"from": ["human", "gpt"], "value": ["Q", "A"]}},
    "alpaca": {"instruction": "Q", "input": "", "output": "A"},
    "dolly": {"instruction": "Q", "context": "", "response": "A"},
    "pair": {"prompt": "Q", "completion": "A"},
    "prompt, response": {"prompt": "Q", "response": "A"},
    "question, answer": {"question": "Q", "answer": "A"},
    "question, response": {"question": "Q", "response": "A", "answer": None},
    "instruction, response": {"instruction": "Q", "response": "A"},
    "input, output": {"input": "Q", "output": "A"},
    "pair of messages": {"prompt": chat("Q"), "completion": [{"role": "assistant", "content": "A"}]},
    "empty beside text": {"conversations": [{**Q, "content": "", "role": ""}, {**A, "content": None, "role": None}]},
    "empty list beside turns": {"messages": [], "conversations": [Q, A]},
    "empty lists beside a pair": {"messages": [], "conversations": "", "items": None, "prompt": "Q", "completion": "A"},
    "other things under our names": {"conversation": "support-17", "items": [{"sku": 3}], "data": [1], "prompt": "Q", "completion": "A"},
    "chosen turns": {"prompt": "Q", "chosen": chat("Q", "A"), "rejected": chat("Q", "B")},
    "chosen text": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "chosen answer": {"prompt": chat("Q"), "chosen": chat("Q", "A")[1:], "rejected": chat("Q", "B")[1:]},
    "chosen messages": {"chosen_messages": chat("Q", "A"), "rejected_messages": chat("Q", "B")},
    "chosen turn": {"conversations": [Q], "chosen": A, "rejected": {"from": "gpt", "value": "B"}},
    "chosen beside messages": {"messages": chat("Q", "A"), "chosen": chat("Q", "A"), "rejected": chat("Q", "B")},
    "chosen for an instruction": {"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"},
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


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "openai parts"])  # texts beside lists: no column
def test_every_shape_is_read_from_parquet(shape, tmp_path):
    """In a table, each row has the columns of all others, and each turn the keys of all others: null where unused."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    other = {"conversations": [{"from": "human", "value": "R", "name": "Vi", "weight": 1.0}], "lang": "en"}
    tables = [pyarrow.Table.from_pylist([row]) for row in (SHAPES[shape], other)]
    try:
        table = pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException:  # a column of two types
        table = tables[0]
    parquet.write_table(table, tmp_path / "rows")
    first = jsonl.parse(next(streams.values(str(tmp_path / "rows"))))[0]
    messages = conversation.read(first)["messages"]
    assert [(message["role"], message["content"]) for message in messages] == [("user", "Q"), ("assistant", "A")]
    assert all(conversation.is_trained(message) for message in messages)


@pytest.mark.parametrize("shape", [name for name in SHAPES if name.startswith("chosen")])
def test_the_rejected_answer_stays_beside_the_chosen_one(shape):
    record = conversation.read(SHAPES[shape])
    assert record["rejected"] == [{"role": "assistant", "content": "B"}]
    assert record.keys().isdisjoint({"chosen", "chosen_messages", "rejected_messages"})
    assert conversation.read(record) == record
    assert conversation.read(conversation.to_sharegpt(record)) == record


@pytest.mark.parametrize("shape", SHAPES)
def test_a_record_read_again_is_the_same(shape):
    record = conversation.read(SHAPES[shape])
    assert conversation.read(record) == record
    assert conversation.read(conversation.to_sharegpt(record)) == record


SYSTEM = [
    {"system": "S", "conversations": [Q, A]},
    {"system_prompt": "S", "question": "Q", "response": "A"},
    {"system": "S", "system_prompt": "", "instruction": "Q", "output": "A"},
    {"system": "S", "messages": chat("Q", "A", system="S")},
    {"messages": [{"role": "developer", "content": "S"}, *chat("Q", "A")]},
]


@pytest.mark.parametrize("row", SYSTEM)
def test_a_system_column_becomes_the_system_message(row):
    record = conversation.read(row)
    assert record["messages"] == chat("Q", "A", system="S")
    assert record.keys() == {"id", "messages"}


def test_system_messages_in_a_row_become_one_and_others_stay():
    two = [{"role": "system", "content": "S"}, {"role": "system", "content": "T"}]
    record = conversation.read({"system": "R", "messages": [*two, *chat("Q", "A"), two[1], *chat("R", "B")]})
    assert [message["content"] for message in record["messages"]] == ["R\n\nS\n\nT", "Q", "A", "T", "R", "B"]
    empty = conversation.read({"system": None, "system_prompt": "", "messages": chat("Q", "A")})
    assert empty["messages"] == chat("Q", "A")
    assert empty.keys() == {"id", "messages"}


def test_what_a_question_is_about_follows_it_and_its_history_comes_before():
    record = conversation.read({"instruction": "When?", "context": "It opened in May.", "response": "In May."})
    assert record["messages"][0]["content"] == "When?\n\nIt opened in May."
    row = {"instruction": "R", "input": "", "output": "B", "system": "S", "history": [["Q", "A"]]}
    assert conversation.read(row)["messages"] == [*chat("Q", "A", system="S"), *chat("R", "B")]
    assert conversation.read({**row, "history": []})["messages"] == chat("R", "B", system="S")


def test_the_texts_of_a_message_stand_on_lines_of_their_own():
    parts = [
        {"type": "text", "text": "one"},
        {"type": "text", "text": ""},
        {"type": "refusal", "refusal": "two"},
        "three",
    ]
    record = conversation.read({"messages": [{"role": "user", "content": parts}]})
    assert record["messages"][0]["content"] == "one\ntwo\nthree"


def test_ids_have_many_names_and_are_always_text():
    given = [
        {"conversation_id": "c"},
        {"conversation_hash": "c"},
        {"uuid": "c"},
        {"id": "", "uuid": "c"},
        {"id": {"$oid": "c"}},
    ]
    for row in given:
        record = conversation.read({**row, "messages": chat("Q", "A")})
        assert record == {"id": "c", "messages": chat("Q", "A")}
    for identity, text in ((0, "0"), (7.5, "7.5"), (["a", 1], '["a",1]'), ({"a": True}, '{"a":true}')):
        assert conversation.read({"id": identity, "messages": chat("Q", "A")})["id"] == text


def test_sharegpt_output_has_the_turns_of_the_record_and_their_other_keys():
    turns = [{"from": "human", "value": "Q", "name": "Vi"}, {"from": "gpt", "value": "A", "weight": 0}]
    record = conversation.read({"id": "x", "conversations": turns})
    record["messages"][1]["content"] = "B"
    written = conversation.to_sharegpt({**record, "conversations": [Q]})
    assert written == {"id": "x", "conversations": [turns[0], {**turns[1], "value": "B"}]}


@pytest.mark.parametrize("key", ["weight", "loss_weight", "train", "training", "loss"])
def test_an_answer_can_be_context(key):
    assert conversation.is_trained({"role": "assistant", "content": "A"})
    for value, trained in (
        (0, False),
        (0.0, False),
        (False, False),
        (1, True),
        (True, True),
        (None, True),
        (0.5, True),
    ):
        assert conversation.is_trained({"role": "assistant", "content": "A", key: value}) == trained


ANSWER = {"role": "assistant", "content": "A"}
BAD = [
    (
        {"messages": [{"role": "user", "content": "Q"}, {**ANSWER, "content": None, "tool_calls": [{"id": "c"}]}]},
        "tool",
        r"messages\[1\]",
    ),
    ({"conversations": [Q, {"from": "function_call", "value": "{}"}]}, "tool", "function_call"),
    ({"conversations": [Q, {"from": "observation", "value": "{}"}]}, "tool", "observation"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "", "image_url": {"url": "u"}}]}]},
        "media",
        "image_url",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "input_audio"}]}]},
        "media",
        "input_audio",
    ),
    (
        {
            "messages": [
                {
                    **ANSWER,
                    "content": [{"type": "thinking", "thinking": "x", "text": ""}, {"type": "text", "text": "A"}],
                }
            ]
        },
        "thinking",
        "thinking",
    ),
    ({"messages": [{**ANSWER, "content": [{"type": "tool_use", "name": "x"}]}]}, "tool", "tool_use"),
    ({"messages": [{**ANSWER, "content": [{"type": "chart", "text": "x"}]}]}, "bad_schema", "of type chart"),
    ({"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nQ"}, A]}, "media", "<image>"),
    ({"prompt": "Q", "completion": "A", "label": False}, "bad_label", "label is false"),
    ({"conversations": [Q, A], "kto_tag": False}, "bad_label", "kto_tag is false"),
    ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "bad_label", "rejected answer is the chosen one"),
    ({"chosen": "A", "rejected": "B"}, "bad_schema", "no question"),
    ({"prompt": "Q", "chosen": chat("Q"), "rejected": "B"}, "bad_schema", "does not end with an answer"),
    ({"messages": chat("Q", "A"), "chosen": "C", "rejected": "B"}, "bad_schema", "another answer"),
    ({"messages": chat("Q"), "rejected": chat("Q", "B")}, "empty", "no chosen one"),
    ({}, "bad_schema", "no keys"),
    ({"messages": None, "text": "x"}, "bad_schema", "messages"),
    ({"messages": "text"}, "bad_schema", "messages is not a list"),
    ({"messages": ["text"]}, "bad_schema", r"messages\[0\] is not an object"),
    ({"messages": [{"role": "user"}]}, "bad_schema", r"messages\[0\] has no content"),
    ({"messages": [{"role": "user", "content": None}]}, "bad_schema", "null"),
    ({"messages": [{"role": "user", "content": 3}]}, "bad_schema", "a number"),
    ({"messages": [{"role": "user", "content": [{"image": "x"}]}]}, "bad_schema", "not text"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "tool", "tool"),
    ({"messages": [{"role": "", "content": "x"}]}, "unknown_role", "no role"),
    ({"messages": [{"content": "x"}]}, "unknown_role", "no role"),
]


@pytest.mark.parametrize(("value", "reason", "detail"), BAD)
def test_what_cannot_be_read_says_where_and_why(value, reason, detail):
    with pytest.raises(Reject, match=detail) as caught:
        conversation.read(value)
    assert caught.value.reason == reason


def test_a_reason_outside_the_fixed_list_cannot_be_given():
    with pytest.raises(ValueError, match="made_up"):
        Reject("made_up")


@settings(max_examples=200)
@given(RECORD)
def test_any_object_becomes_a_valid_record_or_a_reject(value):
    before = copy.deepcopy(value)
    try:
        record = conversation.read(value)
    except Reject:
        return
    finally:
        assert value == before  # the rejects file holds it as it was
    assert isinstance(record["id"], str) and record["id"]
    for message in [*record["messages"], *preferences.of(record)]:
        assert message["role"] in ("system", "user", "assistant")
        assert isinstance(message["content"], str)
        assert message.keys().isdisjoint({"from", "value"})
    assert record.keys().isdisjoint({"conversations", "chosen", "chosen_messages"})
    assert conversation.read(record) == record
    assert conversation.read(conversation.to_sharegpt(record)) == record
