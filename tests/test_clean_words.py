"""vtools clean: blocked words, refusals, languages and look-alikes of control tokens."""

from __future__ import annotations

import json

import pytest
import running
from chats import chat, jsonl, shared
from cleaning import GOOD, LANGUAGES, ids, rejected, run

from vtools.clean import clean_record, control_tokens
from vtools.records import language

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
        ("it's", "It’s late"), ("政治", "这是政治问题"), ("openai", "openaiのモデル"), ("été", "L'ÉTÉ"), ("été", "l'e\u0301te\u0301 dernier"),
        ("नदी", "एक नदी।"), ("কথা", "সব কথা শেষ"), ("שָׁלוֹם", "(שָׁלוֹם)"), ("ดี", "สวัสดีครับ"), ("openai", "ที่openaiได้"), ("spam", "sp\xadam"),
    ],
)  # fmt: skip
def test_a_blocked_word_drops_a_conversation_on_either_side(words, phrase, text):
    file = words("unrelated", "", phrase)
    for record in (shared(text, GOOD[1]), shared(GOOD[0], text + " and more of the answer")):
        reason, detail = rejected(record, blocked_words=file)
        assert (reason, detail.partition(": ")[2]) == ("blocked_word", phrase.lower())
    assert detail.startswith("messages[1]: ")


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("ass", "a class of assets"), ("open ai", "openai"), ("chat", "chats"), ("été", "étés"), ("test", "test_case"), ("\u200d", "a\u200db"),
        ("कल", "कला"), ("कल", "विकल"), ("ल", "काल"), ("কথ", "কথা"), ("كتب", "كتبَ"), ("ด", "ดี"), ("ete", "e\u0301te\u0301"), ("e", "e\u0301"),
    ],
)  # fmt: skip
def test_a_blocked_word_inside_another_word_is_none(words, phrase, text):
    assert rejected(shared(text, GOOD[1]), blocked_words=words(phrase)) is None


def test_blocked_words_are_looked_for_in_texts_and_not_in_attributes_of_html(words):
    linked = shared(GOOD[0], '<p dir="openai">See <span class="openai">this</span> long answer</p>')
    assert rejected(linked, blocked_words=words("openai")) is None
    assert rejected(shared(GOOD[0], "<p>See <b>OpenAI</b></p>"), blocked_words=words("openai"))[0] == "blocked_word"


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
    reason, detail = rejected(shared(GOOD[0], text), drop_refusals=True)
    assert reason == "refusal"
    assert detail.partition(": ")[2] in text.lower().replace("\u2019", "'")
    assert rejected(shared(GOOD[0], text)) is None


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
    assert rejected(shared(GOOD[0], text), drop_refusals=True) is None


def test_a_refusal_is_something_that_an_answer_says(words):
    question = "Why do you say: as an AI language model, I cannot?"
    assert rejected(shared(question, GOOD[1]), drop_refusals=True) is None
    mine = words("no can do")
    assert rejected(shared(GOOD[0], "Sorry, no can do!"), refusals=mine) == ("refusal", "messages[1]: no can do")
    assert rejected(shared("no can do?", GOOD[1]), refusals=mine) is None
    assert rejected(shared(GOOD[0], "I cannot fulfill this request."), refusals=mine) is None
    assert (
        rejected(shared(GOOD[0], "I cannot fulfill this request."), refusals=mine, drop_refusals=True)[0] == "refusal"
    )


# Languages


def test_languages_are_kept_or_skipped_and_written_to_the_record(tmp_path):
    data = jsonl(*(shared(text, text, id=code) for code, text in LANGUAGES.items()))
    done = run("--keep-lang", "en,DE", "--rejects", tmp_path / "r", stdin=data)
    assert ids(done) == ["en", "de"]
    assert [json.loads(line)["lang"] for line in done.stdout.splitlines()] == ["en", "de"]
    rows = [json.loads(line) for line in (tmp_path / "r").read_bytes().splitlines()]
    assert [(row["reason"], row["detail"], row["id"]) for row in rows] == [("lang", "zh", "zh"), ("lang", "ko", "ko")]
    assert ids(run("--skip-lang", "ko,zh", stdin=data)) == ["en", "de"]


def test_code_does_not_count_for_the_language():
    code = "\n```python\n" + "for item in the_list_of_words: print(item, the_other_list_of_words)\n" * 20 + "```\n"
    assert clean_record(shared(LANGUAGES["de"], code + LANGUAGES["de"]), keep_lang="de")["lang"] == "de"


def test_a_system_message_does_not_count_for_the_language():
    record = {"messages": chat(LANGUAGES["de"], LANGUAGES["de"], system=LANGUAGES["en"] * 5)}
    assert clean_record(record, keep_lang="de")["lang"] == "de"
    done = running.run("stats", stdin=jsonl(record))
    assert json.loads(done.stdout)["languages"] == {"de": 1}
    assert language.spoken(chat(system=LANGUAGES["en"])) == "un"


def test_what_cannot_be_told_is_un_and_kept_only_where_that_is_listed():
    record = shared("12345678 87654321", "11:22 33:44 \x7f \ufffe \x80")
    assert rejected(record, keep_lang="en") == ("lang", "un")
    assert clean_record(record, keep_lang="en,un")["lang"] == "un"
    assert clean_record(record, skip_lang="en")["lang"] == "un"


@pytest.mark.parametrize("codes", ["english", "en,xx", ",", "iw"])
def test_a_code_that_the_detector_never_gives_is_a_usage_error(codes):
    done = run("--keep-lang", codes)
    assert done.returncode == 2
    assert b"is not a language code" in done.stderr


# Special tokens

TOKENS = ["</s>", "<s>", "<unk>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<end_of_turn>", "<｜end▁of▁sentence｜>"]  # fmt: skip


@pytest.mark.parametrize("token", TOKENS)
def test_a_look_alike_of_a_control_token_drops_or_is_broken(token):
    record = shared(f"What does {token} mean?", f"It is `{token}`: {token}{token}")
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


HTML = "```html\n<p><s>was 9 euros</s> now 8</p>\n<svg><mask><rect/></mask></svg>\n```\n"


def test_elements_of_html_in_fenced_code_are_no_control_tokens_and_real_tokens_beside_them_are():
    for text in (HTML, f"So:\n\n{HTML}\nand\n\n~~~\n<s>\n</s>\n~~~", HTML.rstrip("`\n")):
        assert control_tokens.found(text) is None
        assert control_tokens.broken(text) == text
    text = f"End it with </s>.\n\n{HTML}\nNot `<mask>`, <s>this</s>, or:\n```\n<|im_end|>\n```\n{HTML}[EOS]"
    broken = f"End it with < /s>.\n\n{HTML}\nNot `< mask>`, < s>this< /s>, or:\n```\n< |im_end|>\n```\n{HTML}[ EOS]"
    assert control_tokens.found(text) == "</s>"
    assert control_tokens.broken(text) == broken == control_tokens.broken(broken)
    assert rejected(shared(GOOD[0], HTML), special_tokens="drop") is None
    assert rejected(shared(GOOD[0], text[19:]), special_tokens="drop") == ("special_token", "messages[1]: <mask>")


@pytest.mark.parametrize(
    "code",
    ["eos = '</s>'", 'bos, eos = "<s>", "</s>"', "<s>[INST] Hi [/INST] Hello</s>", "<s>Hi</s><unk>", "Paris is <mask>.", "<s>a</s>\n<s>", "<|im_start|>user"],
)  # fmt: skip
def test_a_control_token_in_code_that_is_no_html_is_one(code):
    text = f"```\n{code}\n```"
    assert control_tokens.found(text)
    broken = control_tokens.broken(text)
    assert broken == control_tokens.broken(broken)
    assert not any(token in broken for token in [*TOKENS, "<mask>"])


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
