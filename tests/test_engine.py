"""Token generation with one local model: the same text as `model.generate`, streamed, shared, stopped, cancelled."""

from __future__ import annotations

import json
import queue
import random
import threading
from pathlib import Path

import engines
import pytest
import tiny
from engines import ask, greedy, made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import python, wait_until

from vtools.inference.client import Sampling

QUESTIONS = ["the cat", "one red bird", "seven green hills to find", "some cold rain", "a mat", "that flew over"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("engine") / "tiny")


@pytest.fixture(scope="module")
def engine(folder):
    from vtools.inference import engine as generate

    made_engine = generate.Engine(str(folder), threads=1)
    yield made_engine
    made_engine.close()


def test_greedy_answers_given_together_equal_those_of_generate(engine, folder):
    streams = {question: engine.stream(ask(question), Sampling(max_tokens=48, temperature=0)) for question in QUESTIONS}
    for question, stream in streams.items():
        text = "".join(stream)
        wanted = greedy(folder, engine.template.prompt(ask(question)), 48)
        assert text == engines.text(engine, wanted)
        assert stream.usage["completion_tokens"] == len(wanted)
        assert stream.finish == ("stop" if wanted[-1] == 2 else "length")


def test_threads_that_share_a_full_cache_and_cancel_lose_nothing(folder, monkeypatch):
    """Without the wake-up in `_watch`, a cancelled request leaves the others waiting for ever."""
    from vtools.inference import batching
    from vtools.inference import engine as generate

    monkeypatch.setattr(generate, "TYPICAL", 0)
    monkeypatch.setattr(batching, "PAGE", 16)
    engine = generate.Engine(str(made(folder.parent / "small", context=256)), threads=1)
    answers: queue.Queue = queue.Queue()

    def work(number: int) -> None:
        source = random.Random(number)
        for _ in range(8):
            messages = ask("the cat " * source.randint(1, 50))
            most = source.randint(1, engine.context - len(engine.template.prompt(messages)))
            stream = engine.stream(messages, Sampling(max_tokens=most, temperature=0))
            if source.random() < 0.3:
                for _ in range(source.randint(0, 5)):
                    next(stream, None)
                stream.close()
            else:
                answers.put((messages[0]["content"], most, "".join(stream)))

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    wait_until(lambda: engine._batching.idle())
    assert answers.qsize() > 40
    for _ in range(8):
        content, most, text = answers.get()
        wanted = greedy(folder.parent / "small", engine.template.prompt(ask(content)), most)
        assert text == engines.text(engine, wanted)
    engine.close()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """An endless model with a context of 64 tokens, and a prompt of 14 for it."""
    from vtools.inference import engine as generate

    place = made(tmp_path_factory.mktemp("narrow") / "tiny", context=64, endless=True)
    path = place / "tokenizer_config.json"
    template = "{% for message in messages %}{{ message.content }}{{ '<|im_end|>' }}{% endfor %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    engine = generate.Engine(str(place), threads=1)
    yield engine
    engine.close()


@pytest.mark.parametrize("most", [8, 50])
def test_an_answer_that_fits_has_all_its_tokens_after_the_whole_prompt(narrow, most):
    messages = ask("?" * 13)
    assert len(narrow.template.prompt(messages)) == 14
    stream = narrow.stream(messages, Sampling(max_tokens=most, temperature=0))
    text = "".join(stream)
    assert stream.usage == {"prompt_tokens": 14, "completion_tokens": most}
    assert stream.finish == "length"
    assert text == engines.text(narrow, greedy(narrow.name, narrow.template.prompt(messages), most))


@pytest.mark.parametrize("most", [51, 63, 64, 100])
def test_a_request_larger_than_the_context_is_refused_with_both_numbers(narrow, most):
    from vtools.inference.limits import AnswerTooLong, PromptTooLong

    with pytest.raises(AnswerTooLong, match=rf"is {most}.* 14 tokens.* 50 .* 64"):
        narrow.stream(ask("?" * 13), Sampling(max_tokens=most))
    assert narrow.complete(ask("?" * 13), Sampling(max_tokens=None, temperature=0)).usage == {"in": 14, "out": 50}
    with pytest.raises(PromptTooLong):
        narrow.stream(ask("?" * 63), Sampling(max_tokens=None))


def test_a_stop_string_ends_the_answer_before_it_and_ends_the_generation(narrow):
    whole = narrow.complete(ask("the cat"), Sampling(max_tokens=50, temperature=0)).text
    stop = whole[12:15]
    stream = narrow.stream(ask("the cat"), Sampling(max_tokens=50, temperature=0, stop=("no such text", stop)))
    assert "".join(stream) == whole[: whole.find(stop)]
    assert stream.finish == "stop"
    assert stream.usage["completion_tokens"] < 50
    wait_until(lambda: narrow._batching.idle())


def test_a_continued_answer_joins_its_start_also_where_the_template_writes_a_space_before_answers(folder):
    from vtools.inference import engine as generate

    engine = generate.Engine(str(folder), template="vicuna-v1.1", threads=1)
    assert engine.template.answer_lead == " "
    texts = []
    for start in tiny.WORDS:
        messages = [*ask("the cat"), {"role": "assistant", "content": start}]
        prompt = engine.template.prompt(messages)
        ids = greedy(folder, prompt, 6)
        before, whole = engine.tokenizer.decode(prompt), engine.tokenizer.decode(prompt + ids)
        texts.append("".join(engine.stream(messages, Sampling(max_tokens=6, temperature=0))))
        assert before.endswith(f"ASSISTANT: {start}")
        assert before + texts[-1] == whole.rstrip("\ufffd")  # half a character is left out
    assert any(text.startswith(" ") for text in texts)
    engine.close()


def test_the_stop_string_of_a_template_ends_the_answer(folder):
    from vtools.inference import engine as generate

    engine = generate.Engine(str(folder), template="vicuna-v0", threads=1)
    assert engine.template.stop_strings == ("###",)
    stream = engine.stream(ask("the cat"), Sampling(max_tokens=9))
    assert stream._text._stops == ("###",)
    stream.close()
    engine.close()


def test_an_answer_depends_on_its_seed_and_not_on_who_else_is_served(engine):
    options = {"max_tokens": 40, "temperature": 1.5, "top_p": 0.9}
    alone = engine.complete(ask("the cat"), Sampling(seed=7, **options))
    others = [engine.stream(ask(text), Sampling(seed=number, **options)) for number, text in enumerate(QUESTIONS)]
    assert engine.complete(ask("the cat"), Sampling(seed=7, **options)).text == alone.text
    assert engine.complete(ask("the cat"), Sampling(seed=8, **options)).text != alone.text
    unseeded = {engine.complete(ask("the cat"), Sampling(**options)).text for _ in range(3)}
    assert len(unseeded) > 1
    for stream in others:
        stream.close()


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
@given(st.text(), st.lists(st.text(min_size=1, max_size=3), max_size=3), st.data())
def test_pieces_are_whole_characters_and_give_nothing_of_a_stop_string(text, stops, data):
    from vtools.inference.detokenize import Detokenizer

    text = text.replace("\ufffd", "")
    raw = list(text.encode("utf-8", "ignore"))
    text = bytes(raw).decode()
    reader = Detokenizer(lambda ids: bytes(ids).decode("utf-8", "replace"), stops)
    pieces = []
    while raw and not reader.stopped:
        size = data.draw(st.integers(1, 4))
        raw, new = raw[size:], raw[:size]
        pieces.append(reader.push(new, last=not raw))
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    assert "".join(pieces) == (text[: min(found)] if found else text)
    assert not any("\ufffd" in piece for piece in pieces)
    assert reader.stopped == bool(found)


def test_text_is_given_as_soon_as_it_is_certain():
    from vtools.inference.detokenize import Detokenizer

    reader = Detokenizer(lambda ids: bytes(ids).decode("utf-8", "replace"), ["###"])
    assert [reader.push([byte], False) for byte in b"a#b##"] == ["a", "", "#b", "", ""]
    assert reader.push([], True) == "##"


@pytest.mark.parametrize(("text", "given"), [(b" ab", "ab"), (b"  ab", " ab"), (b"ab", "ab"), (b" ", ""), (b"", "")])
def test_white_space_before_an_answer_that_a_template_writes_is_no_part_of_it(text, given):
    from vtools.inference.detokenize import Detokenizer

    reader = Detokenizer(lambda ids: bytes(ids).decode(), [], lead=" ")
    assert "".join([reader.push([byte], False) for byte in text] + [reader.push([], True)]) == given


def test_closing_a_stream_ends_its_generation_and_whoever_waits_for_it(tmp_path):
    from vtools.inference import engine as generate

    engine = generate.Engine(str(made(tmp_path / "tiny", context=16384, endless=True)), threads=1)
    stream = engine.stream(ask("the cat"), Sampling(max_tokens=16000, temperature=0))
    first = threading.Event()
    pieces = []

    def read() -> None:
        for piece in stream:
            pieces.append(piece)
            first.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert first.wait(60)
    stream.close()
    reader.join(60)
    assert not reader.is_alive()
    assert stream.finish is None
    assert stream.usage["completion_tokens"] < 16000
    wait_until(lambda: engine._batching.idle())

    dropped = engine.stream(ask("the cat"), Sampling(max_tokens=16000))
    next(dropped)
    del dropped  # as a generator would
    wait_until(lambda: engine._batching.idle())

    left = engine.stream(ask("the cat"), Sampling(max_tokens=16000))
    engine.close()
    with pytest.raises(generate.EngineStopped):
        list(left)
    with pytest.raises(generate.EngineStopped):
        engine.stream(ask("the cat"), Sampling(max_tokens=1))


def test_an_engine_whose_thread_died_reports_it_and_serves_on(engine, monkeypatch):
    from vtools.inference import engine as generate
    from vtools.inference import sampling

    def fail(*arguments):
        raise RuntimeError("the dice fell off the table")

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "draw", fail)
        streams = [engine.stream(ask("the cat"), Sampling(max_tokens=5, temperature=1)) for _ in range(3)]
        for stream in streams:
            with pytest.raises(generate.EngineStopped, match=r"the dice|stopp"):
                list(stream)
    assert engine.complete(ask("the cat"), Sampling(max_tokens=5, temperature=1)).usage["out"] >= 1


def test_a_program_that_does_not_close_its_engine_still_ends(folder):
    script = (
        "from vtools.inference.client import Sampling\n"
        "from vtools.inference.engine import Engine\n"
        f"engine = Engine({str(folder)!r}, threads=1)\n"
        "stream = engine.stream([{'role': 'user', 'content': 'the cat'}], Sampling(max_tokens=400, temperature=0))\n"
        "next(stream)\n"
    )
    done = python(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.slow
def test_a_real_model_answers_as_generate_does(smollm2):
    from vtools.inference import engine as generate

    engine = generate.Engine(smollm2, threads=1)
    questions = ["What is the capital of France?", "Name three colours.", "Who are you?", "Explain gravity."]
    streams = {question: engine.stream(ask(question), Sampling(max_tokens=24, temperature=0)) for question in questions}
    texts = {question: "".join(stream) for question, stream in streams.items()}
    assert "Paris" in texts[questions[0]]
    for question in questions:
        wanted = greedy(smollm2, engine.template.prompt(ask(question)), 24)
        assert texts[question] == engines.text(engine, wanted)
    engine.close()
