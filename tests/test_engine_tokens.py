"""The engine's tokens: ids, log-probabilities, answers that go on elsewhere, memory, and the library below."""

from __future__ import annotations

from pathlib import Path

import pytest
from engines import ask, greedy, made, text
from running import python

from vtools.inference.client import Sampling
from vtools.process import Failure

PROMPT = [1, 40, 41, 42, 50, 60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("tokens") / "tiny", context=2048, endless=True)


@pytest.fixture(scope="module")
def engine(folder):
    from vtools.inference.engine import Engine

    made_engine = Engine(str(folder), threads=1, max_requests=4)
    yield made_engine
    made_engine.close()


def ids(stream) -> list[int]:
    return [token.id for tokens in stream for token in tokens]


def test_tokens_come_one_by_one_and_are_those_of_generate(engine, folder):
    stream = engine.tokens(PROMPT, Sampling(max_tokens=20, temperature=0))
    pieces = list(stream)
    assert [len(piece) for piece in pieces] == [1] * 20
    assert [piece[0].id for piece in pieces] == greedy(folder, PROMPT, 20)
    assert all(piece[0].logprob is piece[0].top is None for piece in pieces)
    assert (stream.finish, stream.usage) == ("length", {"prompt_tokens": 6, "completion_tokens": 20})


def test_a_prompt_longer_than_a_batch_beside_others_is_answered_as_by_generate(engine, folder):
    prompts = [[(7 * place + size) % 300 + 5 for place in range(size)] for size in (1300, 9, 700, 70, 1, 130)]
    streams = [engine.tokens(prompt, Sampling(max_tokens=12, temperature=0)) for prompt in prompts]
    assert [ids(stream) for stream in streams] == [greedy(folder, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_an_answer_goes_on_from_its_ids_in_another_process(engine, folder, temperature):
    sampling = {"temperature": temperature, "top_p": 0.95, "seed": 11}
    whole = ids(engine.tokens(PROMPT, Sampling(max_tokens=40, **sampling)))
    script = (
        "import sys\n"
        "from vtools.inference.client import Sampling\n"
        "from vtools.inference.engine import Engine\n"
        f"engine = Engine({str(folder)!r}, threads=1)\n"
        f"for cut in (1, 17, 39):\n"
        f"    stream = engine.tokens({PROMPT + whole}[:6 + cut], Sampling(max_tokens=40 - cut, **{sampling}))\n"
        "    print([token.id for tokens in stream for token in tokens])\n"
        "engine.close()\n"
    )
    done = python(script)
    assert done.stderr == b""
    assert done.stdout.decode().splitlines() == [str(whole[cut:]) for cut in (1, 17, 39)]


def test_log_probabilities_are_those_of_the_model_whatever_the_sampling(engine, folder):
    import torch

    from vtools.models.load import load_model

    model = load_model(str(folder))
    for temperature, count in ((0.0, 5), (1.7, 0), (0.8, 20)):
        sampling = Sampling(max_tokens=15, temperature=temperature, top_p=0.9, seed=3, logprobs=count)
        others = [engine.tokens(PROMPT[:4], Sampling(max_tokens=15)) for _ in range(2)]
        tokens = [token for piece in engine.tokens(PROMPT, sampling) for token in piece]
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT + [token.id for token in tokens]])).logits[0, len(PROMPT) - 1 : -1]
        wanted = torch.log_softmax(logits, -1)
        for token, row in zip(tokens, wanted, strict=True):
            assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
            assert list(token.top.values()) == pytest.approx(row.topk(count).values.tolist(), abs=1e-4)
            assert [row[number].item() for number in token.top] == pytest.approx(list(token.top.values()), abs=1e-4)
            assert temperature or next(iter(token.top)) == token.id
        for stream in others:
            stream.close()


def test_a_stream_of_text_has_the_log_probabilities_of_its_tokens(engine):
    stream = engine.stream(ask("the cat"), Sampling(max_tokens=7, temperature=0, logprobs=2))
    written = "".join(stream)
    assert text(engine, [token.id for token in stream.logprobs]) == written
    assert [len(token.top) for token in stream.logprobs] == [2] * 7
    whole = engine.complete(ask("the cat"), Sampling(max_tokens=7, temperature=0, logprobs=2))
    assert [token for token, _ in whole.logprobs] == [engine.tokenizer.decode([token.id]) for token in stream.logprobs]
    for (chosen, likeliest), token in zip(whole.logprobs, stream.logprobs, strict=True):
        assert likeliest[0] == (chosen, pytest.approx(token.logprob, abs=1e-4)) and len(likeliest) == 2
    assert engine.complete(ask("the cat"), Sampling(max_tokens=7, temperature=0)).logprobs is None


def test_an_answer_that_ends_at_once_still_has_the_log_probabilities_of_that_place(engine):
    draws = (Sampling(max_tokens=1, temperature=2.0, seed=seed, logprobs=2) for seed in range(4000))
    ended = next(answer for each in draws if (answer := engine.complete(ask("the cat"), each)).finish == "stop")
    ((name, likeliest),) = ended.logprobs
    assert (ended.text, name, len(likeliest)) == ("", "<|im_end|>", 2)


@pytest.mark.parametrize("prompt", [[], [5, 400], [-1]])
def test_ids_that_the_model_does_not_have_are_refused_and_end_nothing(engine, prompt):
    running = engine.tokens(PROMPT, Sampling(max_tokens=30, temperature=0))
    with pytest.raises(Failure, match="token ids from 0 to"):
        engine.tokens(prompt, Sampling(max_tokens=3))
    assert len(ids(running)) == 30


def test_an_answer_that_is_cut_off_does_not_end_in_half_a_character():
    from vtools.inference.detokenize import Detokenizer

    raw = list("na 🙂".encode())
    for given, whole in ((3, "na "), (4, "na "), (6, "na "), (7, "na 🙂")):
        reader = Detokenizer(lambda ids: bytes(ids).decode("utf-8", "replace"), [])
        assert "".join(reader.push([byte], False) for byte in raw[:given]) + reader.push([], True, cut=True) == whole


def test_text_needs_neither_torch_nor_transformers():
    done = python(
        "import sys, vtools.inference.text\n"
        "print({'torch', 'transformers', 'numpy', 'tokenizers'} & {name.partition('.')[0] for name in sys.modules})"
    )
    assert done.stdout == b"set()\n"


def test_on_a_cpu_the_model_is_computed_in_fp32_unless_told_otherwise(engine, folder):
    import torch

    from vtools.inference.engine import Engine

    assert engine._model.dtype == torch.float32
    halved = Engine(str(folder), dtype="bf16", threads=1)
    assert len(ids(halved.tokens(PROMPT, Sampling(max_tokens=3, temperature=0)))) == 3
    assert halved._model.dtype == torch.bfloat16
    halved.close()


def test_the_cache_grows_with_the_requests_and_shrinks_with_the_memory(folder, monkeypatch):
    from vtools import machine
    from vtools.inference.batching import PAGE
    from vtools.inference.engine import Engine

    def tokens(requests: int, free: int) -> int:
        monkeypatch.setattr(machine, "available_memory", lambda device: free)
        engine = Engine(str(folder), threads=1, max_requests=requests)
        engine.close()
        return (engine._pages - 2) * PAGE

    assert tokens(2, 1 << 30) == 2048  # the context of one
    assert tokens(32, 1 << 30) == 32 * 512
    assert 2048 <= tokens(32, 40 << 20) < 32 * 512
    with pytest.raises(Failure, match=r"tiny: the cache for one text of 2048 tokens takes .* free"):
        tokens(32, 4 << 20)
    with pytest.raises(Failure, match=r"tiny: its weights take .* as fp32, and .* free; --dtype bf16 halves it"):
        tokens(32, 1 << 10)


def test_a_library_that_differs_is_a_failure_which_names_the_versions(folder, monkeypatch):
    from vtools.inference import batching
    from vtools.inference.engine import Engine

    monkeypatch.setattr(batching.OutputRouter, "deliver_batch", lambda self, several: None)
    with pytest.raises(Failure, match=r"transformers .* 5\.17 to 5\.23 .*has no outputs.*install"):
        Engine(str(folder), threads=1)
