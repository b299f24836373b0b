"""What the tests of clean have in common: the command, single records, and what becomes of them."""

import functools

import running
from chats import shared

from vtools.clean import clean_record
from vtools.records.jsonl import Reject

ENGINES = ("fast", "reference")
run = functools.partial(running.run, "clean")
GOOD = ("A question that is long enough?", "An answer that is long enough.")
LANGUAGES = {
    "en": "The river runs through the old town and under seven bridges before it comes to the sea.",
    "de": "Der Fluss fließt durch die alte Stadt und unter sieben Brücken hindurch, bevor er das Meer erreicht.",
    "zh": "这条河流过古老的城镇，穿过七座桥，然后流入大海。这里的人们每天早上都在河边散步。",
    "ko": "강은 오래된 마을을 지나 일곱 개의 다리 아래로 흘러 바다에 이릅니다. 사람들은 매일 아침 강가를 걷습니다.",
}
QUESTION = "Compose an engaging travel blog post about a recent trip to Hawaii, highlighting cultural experiences and must-see attractions."


def cleaned(*texts: str, **options) -> list[str]:
    return [message["content"] for message in clean_record(shared(*texts), **options)["messages"]]


def answer(text: str, engine: str = "auto") -> str:
    return cleaned("A question long enough?", text, engine=engine)[1]


def rejected(record: dict, **chosen) -> tuple[str, str] | None:
    """The reason and the detail, or None for a record that is kept."""
    try:
        clean_record(record, **chosen)
        return None
    except Reject as reject:
        return reject.reason, reject.detail


def ids(done: running.Result) -> list[str]:
    assert done.returncode == 0, done.errors
    return [record["id"] for record in done.records]
