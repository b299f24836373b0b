"""Questions and answers: the shapes that are read, and the shape of a written answer."""

import unicodedata
from dataclasses import dataclass, field
from typing import Any

from vtools.process import Failure
from vtools.records import conversation, jsonl
from vtools.records.jsonl import Record, Reject

CONVERSATIONS = ("messages", "conversations", "conversation", "items")


@dataclass(frozen=True, slots=True)
class Question:
    """A question: user turns to ask one by one, after an optional conversation so far (`context`).

    `checklist` has questions about an answer, to answer with yes or no.
    """

    id: str
    turns: list[str]
    context: list[dict[str, Any]] = field(default_factory=list)
    category: str | None = None
    reference: list[str] | None = None
    checklist: list[str] | None = None

    def fields(self) -> Record:
        """The fields of the question in an answer record."""
        names = {"category": "category", "context": "context", "turns": "question", "reference": "reference"}
        names["checklist"] = "checklist"
        return {name: value for field, name in names.items() if (value := getattr(self, field))}


@dataclass(frozen=True, slots=True)
class Answered:
    """A model's answers to the turns of one question; `question` is None if the record does not carry it."""

    id: str
    model: str | None
    turns: list[str]
    question: Question | None


def read_question(value: Record) -> Question:
    """Read a question. Raises Reject("bad_schema").

    Shapes: `turns` (ours, FastChat) or `question`, `text`, `prompt` with one text or several; an answer that carries
    its question; any conversation that `conversation.read` knows, asked up to its last user turn.
    """
    if "question" in value:
        name = "question"
    elif any(name in value for name in CONVERSATIONS) or ("prompt" in value and "completion" in value):
        return _from_messages(value)
    elif "instruction" in value:
        return _from_messages({"output": "", **value})
    else:
        name = next((name for name in ("turns", "text", "prompt") if name in value), "")
        if not name:
            keys = ", ".join(list(value)[:6]) or "no keys"
            raise Reject("bad_schema", f"no turns, text, prompt, question, messages or other question ({keys})")
    asked = value[name]
    if isinstance(asked, list) and asked and isinstance(asked[0], dict):
        return _from_messages({**{key: item for key, item in value.items() if key != name}, "messages": asked})
    context = value.get("context") or []
    if not isinstance(context, list) or not all(_is_message(message) for message in context):
        raise Reject("bad_schema", "context is not a list of messages")
    return _question(value, _texts(asked, name), context)


def read_questions(file: str) -> dict[str, Question]:
    """The questions of a file by their ids. Raises Failure."""
    found: dict[str, Question] = {}
    lines: dict[str, int] = {}
    for value in jsonl.values([file]):
        try:
            record = jsonl.parse(value)[0]
            if isinstance(record, Reject):
                raise record
            question = read_question(record)
        except Reject as reject:
            raise Failure(f"{file}:{value.number}: {reject.detail or reject.reason}") from None
        if question.id in found:
            raise Failure(f"{file}:{value.number}: question {question.id} is in line {lines[question.id]} already")
        found[question.id], lines[question.id] = question, value.number
    return found


def read_answer(value: Record) -> Answered:
    """Read an answer. Raises Reject("bad_schema").

    Shapes: ours (`turns`), FastChat's (`choices[0].turns`), the Vicuna blog's (`text`), a conversation that ends with
    the assistant.
    """
    model = value.get("model") or value.get("model_id")
    model = model if isinstance(model, str) else None
    choices = value.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict) and "turns" in choices[0]:
        turns = _answers(choices[0]["turns"], "choices[0].turns")
    elif "turns" in value or "text" in value:
        name = "turns" if "turns" in value else "text"
        turns = _answers(value[name], name)
    else:
        record = conversation.read(value)
        answers = [message["content"] for message in record["messages"] if message["role"] == "assistant"]
        if not answers or record["messages"][-1]["role"] != "assistant":
            raise Reject("bad_schema", "the conversation does not end with an answer")
        question = _from_messages(value)
        return Answered(question.id, model, answers[-1:], question)
    identity = _identity(value)
    if identity is None:
        raise Reject("bad_schema", "an answer has no id or question_id")
    return Answered(identity, model, turns, read_question(value) if "question" in value else None)


def _answers(value: Any, name: str) -> list[str]:
    """Texts, of which those that were never written are empty."""
    if value is None or value == []:
        return [""]
    return _texts(["" if text is None else text for text in value] if isinstance(value, list) else value, name)


def _from_messages(value: Record) -> Question:
    record = conversation.read({k: v for k, v in value.items() if k != "question_id"})
    messages = record["messages"]
    last = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise Reject("bad_schema", "the conversation has no user turn")
    context = [{"role": message["role"], "content": message["content"]} for message in messages[:last]]
    return _question({**value, "id": _identity(value) or record["id"]}, [messages[last]["content"]], context)


def _question(value: Record, turns: list[str], context: list[dict[str, Any]]) -> Question:
    messages = [*context, *({"role": "user", "content": turn} for turn in turns)]
    category = value.get("category")
    reference, checklist = value.get("reference"), value.get("checklist")
    return Question(
        _identity(value) or conversation.content_id(messages),
        turns,
        context,
        category if isinstance(category, str) else None,
        _texts(reference, "reference") if reference else None,
        _texts(checklist, "checklist") if checklist else None,
    )


def spelled(given: object) -> str:
    """An id as text. Spellings of one id are one: a number or its digits, Unicode's forms, with blanks around it."""
    text = str(int(given) if isinstance(given, float) and given.is_integer() else given)
    return unicodedata.normalize("NFC", text).strip()


def _identity(value: Record) -> str | None:
    """The id as text."""
    for name in ("id", "question_id"):
        given = value.get(name)
        if given is None:
            continue
        if text := spelled(given):
            return text
    return None


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
    )


def _texts(value: Any, name: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise Reject("bad_schema", f"{name} is neither a text nor a list of texts")
    return texts
