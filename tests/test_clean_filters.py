"""vtools clean's filters: each with what it catches, what it must let pass, and the detail that it gives."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter

import html_corpus
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vtools.clean import clean_record, control_tokens, duplicates, near_duplicates, pii, refusals, steps, turns
from vtools.clean.choices import Choices
from vtools.clean.draft import Draft
from vtools.clean.html import convert
from vtools.records import conversation
from vtools.records.jsonl import Reject

GOOD = ("A question that is long enough?", "An answer that is long enough.")


def chat(*texts: str, **keys) -> dict:
    roles = itertools.cycle(("human", "gpt"))
    return {**keys, "conversations": [{"from": next(roles), "value": text} for text in texts]}


def lines(*values) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def rejected(record: dict, **chosen) -> tuple[str, str] | None:
    """The reason and the detail, or None for a record that is kept."""
    try:
        clean_record(record, **chosen)
        return None
    except Reject as reject:
        return reject.reason, reject.detail


def run(*arguments: object, stdin: bytes = b"", **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vtools", "clean", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120, env=environment, **options)


def ids(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line)["id"] for line in done.stdout.splitlines()]


# The steps as a whole


PASSED_OVER = st.sampled_from(["x", " ", "\n", "é", "1 / 2", "Copy", "&lt;p&gt;", "```", "\t", " words", " chars / ", "a < b", "<p>y</p>", "Copy1 chars / 2 words", "2 / 2 ", "\x1b[1m", "\x00"])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(PASSED_OVER, max_size=4).map("".join), min_size=1, max_size=4))
def test_a_text_that_the_html_step_passes_over_is_one_that_the_converter_leaves_alone(texts):
    roles = ["user", "assistant"] * 2
    made = Draft({"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]})
    next(step for step in steps.pure(Choices()) if step.name == "html").take(made)
    wanted = [
        convert.to_markdown(text, "auto") if place % 2 else convert.without_controls(text)
        for place, text in enumerate(texts)
    ]
    assert [message["content"] for message in made.record["messages"]] == wanted


def test_the_first_reason_that_applies_is_the_one_that_is_given():
    everything = chat("1", "<p>000000000</p>", plugins=[])
    assert rejected(everything)[0] == "plugin"
    assert rejected({**everything, "plugins": None})[0] == "too_short"
    assert rejected(chat("a question", "<p>000000000</p>"))[0] == "rep_digits"
    assert rejected(chat("a question", ""), drop_refusals=True)[0] == "empty"


def test_stats_tell_reasons_redactions_and_languages(tmp_path):
    german = chat(
        "Was ist die Hauptstadt von Frankreich, und warum ist sie das?", "Das ist Paris, seit langer Zeit.", id="de"
    )
    english = chat(
        "What is the capital of France? Write to jo@corp.io or ann@corp.io",
        "It is Paris, as it has long been.",
        id="en",
    )
    done = run(
        "--skip-lang", "de", "--pii", "redact", "--stats", tmp_path / "s", stdin=lines(german, english, chat("1", "2"))
    )
    assert ids(done) == ["en"]
    stats = json.loads((tmp_path / "s").read_bytes())
    assert (stats["in"], stats["out"], stats["rejected"]) == (3, 1, 2)
    assert stats["reasons"] == {"lang": 1, "too_short": 1}
    assert stats["languages"] == {"de": 1, "en": 1}
    assert stats["redacted"] == {"email": 2}


# Blocked words and refusals


@pytest.fixture
def words(tmp_path):
    def write(*phrases: str) -> str:
        file = tmp_path / "words.txt"
        file.write_text("\n".join(phrases) + "\n")
        return str(file)

    return write


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("openai", "OpenAI's models"), ("OpenAI", "made by openai."), ("open ai", "is it OPEN AI?"), ("c++", "I use C++."),
        ("it's", "It’s late"), ("政治", "这是政治问题"), ("openai", "openaiのモデル"), ("été", "L'ÉTÉ"),
    ],
)  # fmt: skip
def test_a_blocked_word_drops_a_conversation_on_either_side(words, phrase, text):
    file = words("unrelated", "", phrase)
    for record in (chat(text, GOOD[1]), chat(GOOD[0], text + " and more of the answer")):
        reason, detail = rejected(record, blocked_words=file)
        assert (reason, detail.partition(": ")[2]) == ("blocked_word", phrase.lower())
    assert detail.startswith("messages[1]: ")


@pytest.mark.parametrize(
    ("phrase", "text"),
    [("ass", "a class of assets"), ("open ai", "openai"), ("chat", "chats"), ("été", "étés"), ("test", "test_case")],
)
def test_a_blocked_word_inside_another_word_is_none(words, phrase, text):
    assert rejected(chat(text, GOOD[1]), blocked_words=words(phrase)) is None


def test_blocked_words_are_looked_for_in_texts_and_not_in_attributes_of_html(words):
    linked = chat(GOOD[0], '<p class="openai">See <span data-x="openai">this</span> long answer</p>')
    assert rejected(linked, blocked_words=words("openai")) is None
    assert rejected(chat(GOOD[0], "<p>See <b>OpenAI</b></p>"), blocked_words=words("openai"))[0] == "blocked_word"


def test_a_list_of_words_that_is_missing_empty_or_no_text_is_a_plain_error(tmp_path, words):
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    for file, said in (
        (tmp_path / "no", "No such file"),
        (words("", " "), "no word or phrase in it"),
        (tmp_path / "latin", "not UTF-8"),
    ):
        done = run("--blocked-words", file)
        assert done.returncode == 1
        assert said in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I cannot have opinions about that.",
        "I'm sorry, but I can't help with hacking.",
        "I’m sorry, but I can’t help with hacking.",
        "<p>I apologize, but I cannot write this.</p>",
        "Well. I CANNOT FULFILL THIS REQUEST.",
        "It is not appropriate for me to say so.",
    ],
)
def test_a_refusal_drops_a_conversation_if_asked_for(text):
    reason, detail = rejected(chat(GOOD[0], text), drop_refusals=True)
    assert reason == "refusal"
    assert detail.partition(": ")[2] in refusals.PHRASES
    assert rejected(chat(GOOD[0], text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that. Here is what you can do.",
        "I'm sorry, but your code has a bug in line 3.",
        "A large language model predicts the next word, as an AI model does in general.",
        "She said: I can't go on. I am unable to sleep.",
        "The verb cannot assist the noun that follows.",
        "Apologize, but do not overdo it.",
    ],
)
def test_an_apology_or_a_talk_about_models_is_no_refusal(text):
    assert rejected(chat(GOOD[0], text), drop_refusals=True) is None


def test_a_refusal_is_something_that_an_answer_says(words):
    question = "Why do you say: as an AI language model, I cannot?"
    assert rejected(chat(question, GOOD[1]), drop_refusals=True) is None
    mine = words("no can do")
    assert rejected(chat(GOOD[0], "Sorry, no can do!"), refusals=mine) == ("refusal", "messages[1]: no can do")
    assert rejected(chat("no can do?", GOOD[1]), refusals=mine) is None
    assert rejected(chat(GOOD[0], "I cannot fulfill this request."), refusals=mine) is None
    assert rejected(chat(GOOD[0], "I cannot fulfill this request."), refusals=mine, drop_refusals=True)[0] == "refusal"


# Language

LANGUAGES = {
    "en": "The river runs through the old town and under seven bridges before it comes to the sea.",
    "de": "Der Fluss fließt durch die alte Stadt und unter sieben Brücken hindurch, bevor er das Meer erreicht.",
    "zh": "这条河流过古老的城镇，穿过七座桥，然后流入大海。这里的人们每天早上都在河边散步。",
    "ko": "강은 오래된 마을을 지나 일곱 개의 다리 아래로 흘러 바다에 이릅니다. 사람들은 매일 아침 강가를 걷습니다.",
}


def test_languages_are_kept_or_skipped_and_written_to_the_record(tmp_path):
    data = lines(*(chat(text, text, id=code) for code, text in LANGUAGES.items()))
    done = run("--keep-lang", "en,DE", "--rejects", tmp_path / "r", stdin=data)
    assert ids(done) == ["en", "de"]
    assert [json.loads(line)["lang"] for line in done.stdout.splitlines()] == ["en", "de"]
    rows = [json.loads(line) for line in (tmp_path / "r").read_bytes().splitlines()]
    assert [(row["reason"], row["detail"], row["id"]) for row in rows] == [("lang", "zh", "zh"), ("lang", "ko", "ko")]
    assert ids(run("--skip-lang", "ko", "--skip-lang", "zh", stdin=data)) == ["en", "de", "ko"]
    assert ids(run("--skip-lang", "ko,zh", stdin=data)) == ["en", "de"]


def test_code_does_not_count_for_the_language():
    code = "\n```python\n" + "for item in the_list_of_words: print(item, the_other_list_of_words)\n" * 20 + "```\n"
    assert clean_record(chat(LANGUAGES["de"], code + LANGUAGES["de"]), keep_lang="de")["lang"] == "de"


def test_what_cannot_be_told_is_un_and_kept_only_where_that_is_listed():
    record = chat("12345678 87654321", "11:22 33:44 \x7f \ufffe \x80")
    assert rejected(record, keep_lang="en") == ("lang", "un")
    assert clean_record(record, keep_lang="en,un")["lang"] == "un"
    assert clean_record(record, skip_lang="en")["lang"] == "un"


@pytest.mark.parametrize("codes", ["english", "en,xx", ",", "iw"])
def test_a_code_that_the_detector_never_gives_is_a_usage_error(codes):
    done = run("--keep-lang", codes)
    assert done.returncode == 2
    assert b"is not a language code" in done.stderr


# Personal data

KEYS = {
    "OpenAI": "sk-" + "aB3dE5gH7jK9mN1pQ3sT5vW7" + "yZ9bC1dE3fG5hJ7kL9nP",
    "OpenAI project": "sk-proj-" + "aB3dE5gH7_jK9mN1pQ3-sT5vW7",
    "AWS": "AKIA" + "Z7Q2M4N6B8V1C3X5",
    "GitHub": "ghp_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5",
    "Google": "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "Slack": "xoxb-" + "2345678901-AbCdEfGhIj",
    "Stripe": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "Hugging Face": "hf_" + "aBcDeFgHiJ1kLmNoPqRsTuVwXyZ2345678",
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("write to Jo.Doe+news@mail.corp.co.uk, please", "write to [EMAIL], please"),
        ("<jo@corp.io>; mailto:jo@corp.io.", "<[EMAIL]>; mailto:[EMAIL]."),
        ("邮箱是jo@corp.io谢谢", "邮箱是[EMAIL]谢谢"),
        ("call (415) 555-2671 or +1 415-555-2671 now", "call [PHONE] or [PHONE] now"),
        ("415-555-2671, 415.555.2671", "[PHONE], [PHONE]"),
        ("+49 30 901820 and +442083661177 too", "[PHONE] and [PHONE] too"),
        ("card 4111 1111 1111 1111 or 5500-0000-0000-0004", "card [CARD] or [CARD]"),
        ("378282246310005; 3782 822463 10005 12/27", "[CARD]; [CARD] 12/27"),
        ("from 91.198.174.192:8080 to 8.8.4.104", "from [IP]:8080 to [IP]"),
        *((f'key = "{key}"', 'key = "[KEY]"') for key in KEYS.values()),
        (
            "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEow1bAAKCAQEA9s\n" * 5 + "-----END RSA PRIVATE KEY-----\n",
            "[KEY]\n",
        ),
    ],
)
def test_personal_data_and_secrets_are_replaced_by_what_they_were(text, wanted):
    messages = clean_record(chat(f"{text} {GOOD[0]}", f"{text} {GOOD[1]}"), pii="redact")["messages"]
    assert [message["content"] for message in messages] == [f"{wanted} {GOOD[0]}", f"{wanted} {GOOD[1]}"]


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4, v112.0.5615.49, 10.0.19041.1, build: 131.2.3.4", "127.0.0.1 192.168.0.101 10.20.30.140 255.255.255.0",
        "2023-04-12T10:11:12.123456Z 1681293072 1681293072123 1681293072123456", "ISBN 978-3-16-148410-0, 0-306-40615-2, 9780306406157",
        "4111 1111 1111 1112 is no card", "0.4111111111111111 and 4111111111111111.5", "3.14159265358979323846",
        "2221 2222 2223 2224 2225", "4000 4001 4002 4003", "256 512 1024 2048", "123-456-7890", "1-800-flowers", "5551234567",
        "+1000 users, +12, C++17, a +1 b, +2147483647", "UTC+02:00, +0200", "phone: 12345", "550e8400-e29b-41d4-a716-446655440000",
        "@app.route('/x') @property user@host git@github.com:a/b.git react@18.2.0 icon@2x.png", "jo@example.com, root@localhost, a@b.test",
        "sk-your-api-key-goes-here, sk-xxxxxxxxxxxxxxxxxxxxxxxx, AKIAIOSFODNN7EXAMPLE", "class='sk-folding-cube' risk-assessment-of-2023-data",
        "sha 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "x = [4, 5, 3, 2, 0, 1, 5, 1, 1, 2, 8, 3, 0, 3, 6, 6]",
        "1.1.1.1 is four parts; 4.18.2.1 too; 300.120.1.1", "arr[415-555] 12-415-555-2671-9", "3/4/2023 4:15.555", "a@b, @, @@, x@.com",
    ],
)  # fmt: skip
def test_code_and_numbers_that_are_not_personal_stay_as_they_are(text):
    counts: Counter[str] = Counter()
    assert pii.redacted(text, pii.RULES, counts) == text
    assert not counts


def test_personal_data_can_drop_or_tag_a_record_instead():
    record = chat("I am jo@corp.io and ann@corp.io", f"My key is {KEYS['AWS']}.")
    assert rejected(record, pii="drop") == ("pii", "email 2, key 1")
    tagged = clean_record(record, pii="tag")
    assert tagged["pii"] == {"email": 2, "key": 1}
    assert [message["content"] for message in tagged["messages"]] == [turn["value"] for turn in record["conversations"]]
    assert "pii" not in clean_record(chat(*GOOD), pii="tag")
    assert rejected(chat(*GOOD), pii="drop") is None


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000 + "@", "a@" * 50_000, "a@" + "a." * 100_000, "1 " * 100_000, "1" * 200_000, "4-" * 100_000, "+1 (1" * 40_000,
     "sk-" * 50_000, "eyJ" + "a" * 100_000, "eyJaaaaaaaaaa.eyJ" * 8_000, "1.1.1.1." * 20_000, "-----BEGIN PRIVATE KEY-----" * 4_000],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_hostile_text_is_searched_for_personal_data_in_linear_time(text):
    seconds = []
    for size in (text, text + text):
        start = time.process_time()
        pii.redacted(size, pii.RULES, Counter())
        seconds.append(time.process_time() - start)
    assert seconds[1] < 3.5 * seconds[0] + 1


# Special tokens

TOKENS = ["</s>", "<s>", "<unk>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<end_of_turn>", "<｜end▁of▁sentence｜>"]  # fmt: skip


@pytest.mark.parametrize("token", TOKENS)
def test_a_look_alike_of_a_control_token_drops_or_is_broken(token):
    record = chat(f"What does {token} mean?", f"It is `{token}`: {token}{token}")
    assert rejected(record) is None
    assert rejected(record, special_tokens="drop") == ("special_token", f"messages[0]: {token}")
    broken = clean_record(record, special_tokens="break")
    for message in broken["messages"]:
        assert not any(token in message["content"] for token in TOKENS)
    assert broken["messages"][0]["content"] == f"What does {token[0]} {token[1:]} mean?"
    assert clean_record(broken, special_tokens="break") == broken


@pytest.mark.parametrize(
    "text",
    ["a < s > b", "<|", "f <| x |> g", "[INSTALL]", "< /s>", "</span> </section>", "|>", "<|a b|>", "S[PADDING]"],
)
def test_what_only_resembles_a_control_token_is_kept(text):
    assert control_tokens.found(text) is None
    assert control_tokens.broken(text) == text


def test_no_tokenizer_reads_a_broken_look_alike_as_a_control_token():
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["some text"], trainer)
    tokenizer.add_special_tokens([AddedToken(token, lstrip=True, rstrip=True) for token in TOKENS])
    control = {tokenizer.token_to_id(token) for token in TOKENS}
    text = "".join(f"a{token} {token}\n" for token in TOKENS)
    assert set(tokenizer.encode(text).ids) & control == control
    assert not set(tokenizer.encode(control_tokens.broken(text)).ids) & control


# Duplicates


def test_the_first_of_equal_conversations_stays_and_white_space_at_the_edges_makes_no_difference(tmp_path):
    done = run(
        "--rejects", tmp_path / "r", stdin=lines(chat(*GOOD, id="a"), chat(GOOD[0] + "\r\n", "  " + GOOD[1], id="b"))
    )
    assert ids(done) == ["a"]
    row = json.loads((tmp_path / "r").read_bytes())
    assert (row["reason"], row["detail"], row["id"]) == ("dup_exact", "the same texts came before", "b")


TEXTS = st.lists(st.sampled_from(["a", "b", " ", "\n", "\r\n"]), max_size=4).map("".join)


@given(st.lists(TEXTS, min_size=1, max_size=4), st.lists(TEXTS, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_two_conversations_have_one_key_only_if_their_roles_and_texts_are_the_same(one, other, system, other_system):
    def messages(texts, system):
        roles = ["system"] * system + ["user", "assistant"] * 2
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]

    def bare(texts):
        return [text.strip().replace("\r\n", "\n") for text in texts]

    first, second = messages(one, system), messages(other, other_system)
    same = bare(one) == bare(other) and [m["role"] for m in first] == [m["role"] for m in second]
    assert (conversation.text_key(first) == conversation.text_key(second)) == same


@given(st.lists(TEXTS, min_size=2, max_size=9), st.booleans())
def test_the_keys_of_the_starts_of_a_conversation_are_those_of_the_shorter_ones(texts, system):
    roles = ["system"] * system + ["user", "assistant"] * 5
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    ends = [end for end in range(1, len(messages)) if messages[end - 1]["role"] == "assistant"]
    assert duplicates.starts(messages) == [conversation.text_key(messages[:end]) for end in ends]


def test_the_longest_share_of_a_chat_stays_wherever_it_stands(tmp_path):
    rounds = [f"text number {number} of a chat" for number in range(6)]
    records = [
        chat(*rounds[:2], id="one"), chat(*rounds[:6], id="three"), chat(*rounds[:4], id="two"), chat(*rounds[:6], id="again"),
        chat(*rounds[:3], "another answer here", id="branch"), chat("another chat", "of its own", id="other"),
    ]  # fmt: skip
    data = lines(*records)
    done = run("--dedupe", "longest", "--rejects", tmp_path / "r", stdin=data)
    assert ids(done) == ["three", "branch", "other"]
    assert b"reads all input before it writes" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "r").read_bytes().splitlines()]
    assert [(row["id"], row["reason"]) for row in rows] == [
        ("one", "dup_exact"),
        ("two", "dup_exact"),
        ("again", "dup_exact"),
    ]
    assert rows[0]["detail"] == "record three is a longer version of the same chat"
    assert rows[2]["detail"] == "the same texts came before"
    (tmp_path / "in.jsonl").write_bytes(data)
    again = run("--dedupe", "longest", "-j", "2", tmp_path / "in.jsonl")
    piped = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m vtools clean -q --dedupe longest <(cat '{tmp_path}/in.jsonl')"],
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert again.stdout == done.stdout == piped.stdout
    assert ids(run(stdin=data)) == ["one", "three", "two", "branch", "other"]


def test_broken_input_is_told_once_and_in_its_place_by_two_passes(tmp_path):
    data = lines(chat(*GOOD, id="a")) + b"not json\n" + lines(chat(*GOOD, "more of it", "and more", id="b"))
    done = run("--dedupe", "longest", stdin=data)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"stdin:2:" in done.stderr
    done = run("--dedupe", "longest", "--rejects", tmp_path / "r", stdin=data)
    assert ids(done) == ["b"]
    assert len((tmp_path / "r").read_bytes().splitlines()) == 2


def variant(words: list[str], changed: int, dice: random.Random) -> list[str]:
    words = list(words)
    for place in dice.sample(range(len(words)), changed):
        words[place] = f"other{place}"
    return words


def test_a_near_duplicate_is_dropped_with_the_record_that_it_is_like(tmp_path):
    dice = random.Random(5)
    words = [f"w{dice.randrange(10_000)}" for _ in range(300)]
    near_one, far = variant(words, 3, dice), variant(words, 60, dice)
    records = [
        chat("the same question?", " ".join(text), id=name)
        for name, text in zip("anf", (words, near_one, far), strict=True)
    ]
    done = run("--near-duplicates", "0.8", "--rejects", tmp_path / "r", stdin=lines(*records))
    assert ids(done) == ["a", "f"]
    row = json.loads((tmp_path / "r").read_bytes())
    assert (row["reason"], row["id"]) == ("dup_near", "n")
    assert row["detail"].endswith(" similar to record a")
    assert 0.8 <= float(row["detail"].split()[0]) < 1
    assert ids(run("--near-duplicates", "0.99", stdin=lines(*records))) == ["a", "n", "f"]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_near_duplicates_above_the_threshold_are_found_and_those_well_below_never(threshold):
    dice = random.Random(7)
    found = missed = wrong = 0
    for _ in range(150):
        words = [f"w{dice.randrange(100_000)}" for _ in range(200)]
        other = variant(words, dice.randrange(round(60 * (1.05 - threshold))), dice)
        one, two = ({tuple(text[at : at + near_duplicates.SHINGLE]) for at in range(196)} for text in (words, other))
        truth = len(one & two) / len(one | two)
        seen = near_duplicates.Near(threshold)
        sketches = [near_duplicates.sketch([{"role": "user", "content": " ".join(text)}]) for text in (words, other)]
        assert seen.before(sketches[0], "a") is None
        hit = seen.before(sketches[1], "b") is not None
        found += hit and truth >= threshold
        missed += not hit and truth >= min(1, threshold + 0.08)
        wrong += hit and truth < threshold - 0.15
    assert found > 10
    assert missed <= found * 0.1
    assert wrong == 0


def test_a_sketch_is_the_same_in_every_process():
    code = "from vtools.clean import near_duplicates; print(near_duplicates.sketch([{'role': 'user', 'content': 'a b c d e f g h'}]).digest())"
    seen = {
        subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(seen) == 1


def test_texts_shorter_than_a_shingle_are_near_duplicates_only_of_themselves():
    seen = near_duplicates.Near(0.8)
    sketches = [
        near_duplicates.sketch([{"role": "user", "content": text}])
        for text in ("one two", "One, two!", "one three", "")
    ]
    assert [seen.before(sketch, "") is None for sketch in sketches] == [True, False, True, True]


# Decontamination

QUESTION = "Compose an engaging travel blog post about a recent trip to Hawaii, highlighting cultural experiences and must-see attractions."


def test_a_conversation_that_holds_a_question_is_dropped_and_the_question_named(tmp_path):
    (tmp_path / "mt.jsonl").write_bytes(
        lines({"question_id": 81, "turns": [QUESTION, "Rewrite your previous response."]})
    )
    (tmp_path / "own.jsonl").write_bytes(
        lines({"id": "x", "text": "What is the airspeed velocity of an unladen swallow?"})
    )
    records = [
        chat(f"Hi! {QUESTION.lower()}", GOOD[1], id="asked"), chat(GOOD[0], f"For example: {QUESTION}", id="quoted"),
        chat("Write a travel blog post about Hawaii.", GOOD[1], id="near"), chat("What is the airspeed velocity of an unladen swallow", GOOD[1], id="short"),
        chat(GOOD[0], GOOD[1], "Rewrite your previous response. Now!", GOOD[1], id="later"),
    ]  # fmt: skip
    files = ["--decontaminate", tmp_path / "mt.jsonl", "--decontaminate", tmp_path / "own.jsonl"]
    done = run(*files, "--rejects", tmp_path / "r", stdin=lines(*records))
    assert ids(done) == ["near", "later"]
    rows = [json.loads(line) for line in (tmp_path / "r").read_bytes().splitlines()]
    assert {row["reason"] for row in rows} == {"contaminated"}
    assert rows[0]["detail"].startswith(f"question 81 of {tmp_path / 'mt.jsonl'}: compose an engaging travel blog post")
    assert (
        rows[2]["detail"]
        == f"question x of {tmp_path / 'own.jsonl'}: what is the airspeed velocity of an unladen swallow"
    )
    assert ids(run(*files[:2], "--decontaminate-ngram", "4", stdin=lines(*records)))[0] == "short"


def test_a_questions_file_that_cannot_be_read_ends_the_run_before_it_begins(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": 1}\n')
    done = run("--decontaminate", tmp_path / "q.jsonl", stdin=lines(chat(*GOOD)))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"q.jsonl: question 1: no turns" in done.stderr


# Moderation


class Moderation:
    """A moderation server on loopback that flags the word `bad`; `failures` are given first, as (status, headers)."""

    def __init__(self, failures=(), reply=None) -> None:
        self.failures, self.reply = list(failures), reply
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append({"path": self.path, **body})
                outer.times.append(time.monotonic())
                outer.keys.append(self.headers.get("Authorization"))
                status, headers = outer.failures.pop(0) if outer.failures else (200, {})
                results = [
                    {"flagged": "bad" in text, "categories": {"violence": "bad" in text, "new/kind": False},
                     "category_scores": {"violence": 0.9 if "bad" in text else len(text) / 1000, "new/kind": 0.001}}
                    for text in body["input"]
                ]  # fmt: skip
                answer = {"id": "m", "model": body["model"], "results": results} if outer.reply is None else outer.reply
                data = json.dumps(answer if status == 200 else {"error": {"message": "not today"}}).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


FLAGGED = [
    chat(*GOOD, id="good"),
    chat("a bad question, that is", GOOD[1], id="bad"),
    chat(GOOD[0], "fine and long enough", id="fine"),
]


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_what_the_moderation_server_flags_is_dropped_with_its_raw_scores(tmp_path, jobs):
    with Moderation() as server:
        options = ["--moderation", server.url, "--moderation-model", "guard", "-j", jobs, "--rejects", tmp_path / "r"]
        done = run(*options, stdin=lines(*FLAGGED), env={"OPENAI_API_KEY": "secret"})
    assert ids(done) == ["good", "fine"]
    row = json.loads((tmp_path / "r").read_bytes())
    scores = {"violence": 0.9, "new/kind": 0.001}
    assert (row["reason"], row["detail"]) == (
        "moderation",
        f"messages[0]: violence; category_scores {json.dumps(scores)}",
    )
    kept = json.loads(done.stdout.splitlines()[0])["moderation"]
    assert kept == {"model": "guard", "category_scores": {"violence": len(GOOD[0]) / 1000, "new/kind": 0.001}}
    assert {(request["path"], request["model"]) for request in server.requests} == {("/v1/moderations", "guard")}
    assert list(GOOD) in [request["input"] for request in server.requests]
    assert set(server.keys) == {"Bearer secret"}


def test_a_busy_moderation_server_is_asked_again_as_late_as_it_says():
    with Moderation([(429, {"Retry-After": "2"}), (503, {}), (500, {"Retry-After": "0"})]) as server:
        assert ids(run("--moderation", server.url, stdin=lines(FLAGGED[0]))) == ["good"]
    assert len(server.times) == 4
    assert server.times[1] - server.times[0] >= 2


def test_a_moderation_server_that_goes_down_ends_the_run_after_all_that_came_before():
    with Moderation([(200, {}), (401, {})]) as server:
        for jobs in ("1", "2"):
            server.failures = [(200, {}), (401, {})]
            done = run("--moderation", server.url, "-j", jobs, stdin=lines(FLAGGED[0], FLAGGED[2], FLAGGED[2]))
            assert done.returncode == 1
            assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["good"]
            assert done.stderr.count(b"\n") == 1
            assert b"/v1/moderations: HTTP 401" in done.stderr
            assert b"OPENAI_API_KEY" in done.stderr
        url = server.url
    done = run("--moderation", url, stdin=lines(FLAGGED[0]))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"is the server running?" in done.stderr


def test_texts_that_the_server_will_not_judge_are_rejected_and_the_run_goes_on(tmp_path):
    with Moderation([(413, {})]) as server:
        done = run("--moderation", server.url, "--rejects", tmp_path / "r", stdin=lines(*FLAGGED[::2]))
    assert ids(done) == ["fine"]
    row = json.loads((tmp_path / "r").read_bytes())
    assert (row["reason"], row["detail"][:21]) == ("moderation", "not judged: HTTP 413:")


@pytest.mark.parametrize("reply", [{}, {"results": []}, [], {"results": [{}, {}]}, {"choices": []}])
def test_a_server_that_is_no_moderation_endpoint_is_said_to_be_none(reply):
    with Moderation(reply=reply) as server:
        done = run("--moderation", server.url, stdin=lines(FLAGGED[0]))
    assert done.returncode == 1
    assert b"not one of a moderation endpoint" in done.stderr
    assert run("--moderation", "localhost:1", stdin=b"").returncode == 2


# --explain


def explained(*arguments: object, stdin: bytes) -> list[dict]:
    done = run(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_explain_tells_each_step_that_a_record_went_through():
    record = chat("Mail jo@corp.io", "<p>An <b>answer</b> of some length</p>", "and then", "", id="x")
    told = explained("--explain", "x", "--pii", "redact", stdin=lines(chat(*GOOD, id="other"), record))
    assert [line["step"] for line in told] == ["read", "plugin", "html", "turns", "pii", "too_short", "blocked_response", "rep_digits", "wrong_list", "dup_exact", "write"]  # fmt: skip
    by_step = {line["step"]: line for line in told}
    assert {line["outcome"] for line in told} == {"passed", "changed", "kept"}
    assert (by_step["html"]["outcome"], by_step["html"]["detail"]) == ("changed", "turbohtml: changed messages 1")
    assert (by_step["html"]["before"], by_step["html"]["after"]) == (61, 51)
    assert (by_step["turns"]["detail"], by_step["pii"]["detail"]) == ("4 messages to 2", "email 1: changed messages 0")
    assert told[-1] == {"id": "x", "file": "stdin", "line": 2, "step": "write", "outcome": "kept", "detail": "", "before": 40, "after": 40}  # fmt: skip
    assert "markdownify" in explained("--explain", "x", "--engine", "reference", stdin=lines(record))[2]["detail"]


def test_explain_ends_at_the_step_that_drops_a_record_and_names_the_one_before_it():
    data = lines(chat(*GOOD, id="first"), chat("1", "2", id="x"), chat(*GOOD, id="x"), chat(*GOOD, id="x2"))
    told = explained("--explain", "x", stdin=data)
    dropped = [line for line in told if line["outcome"] == "dropped"]
    assert [(line["line"], line["step"], line["reason"], line["detail"]) for line in dropped] == [
        (2, "too_short", "too_short", "2 characters in all"),
        (3, "dup_exact", "dup_exact", "the same texts came before, as record first"),
    ]
    assert {line["id"] for line in told} == {"x"}
    told = explained(
        "--explain", "first", "--dedupe", "longest", stdin=data + lines(chat(*GOOD, "go", "on", id="long"))
    )
    assert told[-1]["detail"] == "record long is a longer version of the same chat"


def test_explain_agrees_with_the_run_itself(tmp_path):
    dice = random.Random(1)
    records = [chat(*dice.choices(["a", "000000000", "the answer to it", "</s>", "", "x" * 20], k=dice.randrange(5)), id=str(n)) for n in range(40)]  # fmt: skip
    options = ["--special-tokens", "drop", "--near-duplicates", "0.8"]
    run(*options, "--rejects", tmp_path / "r", stdin=lines(*records))
    reasons = {row["id"]: row["reason"] for row in map(json.loads, (tmp_path / "r").read_bytes().splitlines())}
    assert len(set(reasons.values())) > 3
    for name in [*list(reasons)[::6], *[record["id"] for record in records if record["id"] not in reasons][:2]]:
        told = explained(*options, "--explain", name, stdin=lines(*records))
        assert told[-1].get("reason") == reasons.get(name)


def test_explain_of_an_id_that_no_record_has_fails_and_says_so():
    done = run("--explain", "nobody", stdin=lines(chat(*GOOD)))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"vtools clean: --explain nobody: no record has this id\n"
    assert run("--explain", "x", "--rejects", "r").returncode == 2


# --preset vicuna

CODES = {1: {"too_short"}, 2: {"role_order"}, 3: {"blocked_word", "blocked_response"}, 4: {"html_parse"}}
VECTORS = {
    "15 characters": (chat("123456789", "012345"), 1),
    "16 characters": (chat("123456789", "0123456"), 0),
    "gpt first": ({"conversations": [{"from": "gpt", "value": "x"}, *chat(*GOOD)["conversations"]]}, 0),
    "two gpt first": ({"conversations": [{"from": "gpt", "value": "x"}] * 2 + chat(*GOOD)["conversations"]}, 2),
    "human last": (chat(*GOOD, "left open"), 0),
    "other roles": ({"conversations": [{"from": "user", "value": GOOD[0]}, {"from": "chatgpt", "value": GOOD[1]}]}, 1),
    "system first": ({"conversations": [{"from": "system", "value": "x"}, *chat(*GOOD)["conversations"]]}, 0),
    "bing answers": ({"conversations": [{"from": "human", "value": GOOD[0]}, {"from": "bing", "value": GOOD[1]}]}, 2),
    "second answer empty": (chat(*GOOD, "and", ""), 0),
    "zero-width answer": (chat(*GOOD, "and", "\u200bx"), 0),
    "first answer empty": (chat(GOOD[0], ""), 1),
    "blocked word": (chat("who made chatGPT?", GOOD[1]), 3),
    "blocked word in a link": (chat(GOOD[0], '<p>see <a href="https://chat.openai.com/">here</a></p>'), 3),
    "blocked word in an attribute": (chat(GOOD[0], '<p class="openai">see here, it is long enough</p>'), 3),
    "blocked after the end": (chat(*GOOD, "", "ChatGPT"), 0),
    "short without a dropped question": (chat("a", "b", "a question of some length", ""), 0),
    "empty": ({"conversations": []}, 1),
    "one": (chat("alone and long enough"), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_the_vicuna_preset_gives_fastchats_published_codes(name):
    record, code = VECTORS[name]
    found = rejected({"id": "x", **record}, preset="vicuna")
    assert (found[0] in CODES[code]) if code else found is None, found


def test_the_vicuna_preset_drops_rate_limit_answers_as_fastchat_does_since_2024():
    for mark in ("", "!"):
        record = chat("a long question", f"<p>{mark}Too many requests in 1 hour. Try again later.</p>")
        assert rejected(record, preset="vicuna")[0] == "blocked_response"


def fastchat():
    return pytest.importorskip("fastchat.data.clean_sharegpt", reason="FastChat is not installed")


def theirs(records: list[dict], module) -> dict[int, set[str]]:
    """By place, the reasons that FastChat's own functions give; its last pass is `clean_html_all`, run on one process."""
    found, seen = {}, {}
    for place, record in enumerate(records):
        sample, code = module.clean_html_one_sample(json.loads(json.dumps(record)))
        if code:
            found[place] = CODES[code]
            continue
        pair = tuple(turn["value"] for turn in sample["conversations"][:2])
        if sample["id"] in seen:
            found[place] = {"dup_id"}
        elif sample.get("plugins") is not None:
            found[place] = {"plugin"}
        elif pair in seen:
            found[place] = {"dup_exact"}
        else:
            seen[sample["id"]] = seen[pair] = sample["id"]
    return found


def ours(records: list[dict]) -> dict[int, str]:
    ends = steps.ordered(Choices(preset="vicuna"))
    found = {}
    for place, record in enumerate(records):
        try:
            made = steps.draft(Choices(preset="vicuna"), json.loads(json.dumps(record)))
            for step in ends:
                step.take(made)
        except Reject as reject:
            found[place] = reject.reason
    return found


def generated(count: int, seed: int) -> list[dict]:
    """Conversations of made-up HTML answers, with everything that the rules are about."""
    dice = random.Random(seed)
    answers = [made.html for made in html_corpus.answers(60, seed)]
    answers += [
        "<p>short</p>",
        "",
        "\u200bx",
        "<p>Ask OpenAI.</p>",
        "ok",
        '<p><a href="https://chat.openai.com">x</a></p>',
        "plain words",
    ]
    questions = ["why?", "Write a longer text, please", "", "who is ChatGPT", "a", "\u200b", "What about 3 / 4 of it"]
    roles = ["human", "gpt"] * 3
    records = []
    for number in range(count):
        turns = [
            {
                "from": role,
                "value": dice.choice(answers if role == "gpt" else questions[:2] if dice.random() < 0.8 else questions),
            }
            for role in roles[: dice.randrange(7)]
        ]
        if turns and dice.random() < 0.15:
            turns[dice.randrange(len(turns))]["from"] = dice.choice(["system", "user", "gpt", "human", "bing"])
        if dice.random() < 0.15:
            turns.insert(0, {"from": dice.choice(["gpt", "system", "human"]), "value": "hello"})
        record = {"id": f"r{dice.randrange(count)}" if dice.random() < 0.2 else f"r{number}", "conversations": turns}
        records.append(record | ({"plugins": [1]} if dice.random() < 0.05 else {}))
        if dice.random() < 0.1:
            records.append({**record, "id": f"copy{number}"})
    return records


@pytest.mark.filterwarnings("ignore")
def test_the_vicuna_preset_keeps_what_fastchats_own_functions_keep_and_drops_the_rest_for_their_reasons():
    """FastChat runs as it is installed; what its own conversion of our HTML blocks changes is no decision here."""
    module = fastchat()
    records = generated(400, seed=11)
    found, wanted = ours(records), theirs(records, module)
    assert found.keys() == wanted.keys()
    assert [(place, found[place]) for place in found if found[place] not in wanted[place]] == []
    assert set(found.values()) == {"too_short", "role_order", "blocked_word", "dup_id", "plugin", "dup_exact"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", VECTORS)
def test_fastchats_own_function_gives_the_code_of_the_vector(name):
    record, code = VECTORS[name]
    assert fastchat().clean_html_one_sample({"id": "x", **json.loads(json.dumps(record))})[1] == code


def test_the_preset_is_a_whole_and_the_filters_that_are_off_by_default_come_after_it(tmp_path):
    assert b"fixed set" in run("--preset", "vicuna", "--keep", "plugin").stderr
    german = chat(LANGUAGES["de"], LANGUAGES["de"], id="de")
    assert ids(run("--preset", "vicuna", "--skip-lang", "de", stdin=lines(german, chat(*GOOD, id="en")))) == ["en"]


# Everything together

PIECES = st.sampled_from(
    [
        "a@corp.io", "@", "415-555-2671", "4111 1111 1111 1111", "4111111111111111", "sk-aB3dE5gH7jK9mN1pQ3sT5vW7", "91.198.174.192", "+49 30 901820",
        "</s>", "<s>", "<|im_end|>", "<|", "|>", "[INST]", "[", "<p>", "</p>", "<b>", "&lt;/s&gt;", "&#60;", "000000000", "0", "1", "\n1. ", "2", "- ",
        "openai", "Open", "AI", "I cannot fulfill this request", "word", "der Fluss und die Stadt", " ", "\n", "-", ".", "x", "é", "这条河", "\u200b", "\x00",
        "Compose an engaging travel blog post", "about a recent trip to Hawaii", "Copy1 chars / 2 words", "2 / 2\n\n", "```\n",
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES | st.text("0123456789.+-( )@ab_", max_size=20), max_size=6).map("".join))
def test_a_text_that_is_passed_over_holds_no_personal_data(text):
    found: Counter[str] = Counter()
    pii.redacted(text, pii.RULES, found)
    assert found.keys() <= {rule[0] for rule in pii.possible(turns.shape([{"role": "user", "content": text}]))}


MESSAGES = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "gpt", "human", "system"]), "value": st.lists(PIECES, max_size=8).map("".join)}),
    max_size=6,
)  # fmt: skip
OPTIONS = {
    "--merge-same-role": [], "--blocked-words": ["words"], "--drop-refusals": [], "--keep-lang": ["en,un", "de,en"], "--skip-lang": ["zh"],
    "--pii": ["redact", "drop", "tag"], "--special-tokens": ["drop", "break"], "--dedupe": ["longest"], "--near-duplicates": ["0.6", "0.9"],
    "--decontaminate": ["questions"], "--decontaminate-ngram": ["5"], "--keep": ["rep_digits", "too_short", "plugin"], "--format": ["sharegpt"],
}  # fmt: skip
CHOSEN = st.lists(st.sampled_from(list(OPTIONS)), unique=True, max_size=6).flatmap(
    lambda names: st.tuples(
        *(st.tuples(st.just(name), *([st.sampled_from(OPTIONS[name])] if OPTIONS[name] else [])) for name in names)
    )
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MESSAGES, st.booleans(), st.sampled_from(["keep", "break"]), st.sampled_from([None, "redact", "tag"]))
def test_cleaning_a_record_twice_with_the_same_choices_changes_nothing(turns, merge, special_tokens, pii):
    chosen = {"merge_same_role": merge, "special_tokens": special_tokens, "pii": pii, "skip_lang": "zh"}
    try:
        once = clean_record({"conversations": turns}, **chosen)
    except Reject:
        return
    assert clean_record(json.loads(json.dumps(once)), **chosen) == once
    if special_tokens == "break":
        assert not any(control_tokens.found(message["content"]) for message in once["messages"])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MESSAGES, max_size=25), CHOSEN)
def test_with_any_options_nothing_vanishes_twice_is_once_and_two_processes_write_the_same_bytes(
    tmp_path_factory, conversations, chosen
):
    folder = tmp_path_factory.mktemp("clean")
    (folder / "words").write_text("openai\nopen ai\n")
    (folder / "questions").write_bytes(lines({"id": 1, "turns": [QUESTION]}))
    options = [word for option in chosen for word in option]
    data = lines(*({"conversations": turns} for turns in [*conversations, *conversations[:5]]))
    one = run(*options, "--rejects", "r1", "--stats", "s1", stdin=data, cwd=folder)
    two = run(
        *options, "--rejects", "r2", "--stats", "s2", "-j", "2", stdin=data, cwd=folder, env={"PYTHONHASHSEED": "7"}
    )
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert one.stdout == two.stdout
    assert (folder / "r1").read_bytes() == (folder / "r2").read_bytes()
    assert (folder / "s1").read_bytes() == (folder / "s2").read_bytes()
    stats = json.loads((folder / "s1").read_bytes())
    assert stats["in"] == len(data.splitlines()) == stats["out"] + stats["rejected"]
    assert stats["out"] == len(one.stdout.splitlines())
    assert stats["rejected"] == len((folder / "r1").read_bytes().splitlines())
    again = run(*options, "--rejects", "r3", stdin=one.stdout, cwd=folder)
    assert again.stdout == one.stdout
