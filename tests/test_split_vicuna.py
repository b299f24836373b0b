"""split --preset vicuna: FastChat's cuts and losses, and a word about them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitting import FIXTURES, TEXT, WORDS, saved

from vtools.records.jsonl import Reject
from vtools.split import vicuna


@pytest.fixture(scope="session")
def spaces(tmp_path_factory):
    """A tokenizer that counts words, with a first token of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "word": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = tmp_path_factory.mktemp("spaces")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    return str(folder)


# Rounds of so many words: the samples that FastChat writes (first message, rounds), and the rounds that it loses.
FASTCHAT = [
    ([(10, 10)] * 2, [(0, 2)], 0),
    ([(10, 20)] * 3, [(0, 2)], 1),
    ([(20, 20)] * 2, [(0, 1)], 1),
    ([(50, 100), (5, 5), (5, 5)], [(0, 1), (2, 2)], 0),
    ([(50, 100)], [], 1),
    ([(5, 5), (80, 80), (5, 5), (5, 5)], [(0, 1), (2, 1), (4, 2)], 0),
]


@pytest.mark.parametrize(("rounds", "samples", "lost"), FASTCHAT)
def test_the_preset_cuts_and_loses_as_fastchat_does_and_says_so(vtools, spaces, tmp_path, rounds, samples, lost):
    turns = [
        {"from": role, "value": "word " * count}
        for pair in rounds
        for role, count in zip(("human", "gpt"), pair, strict=True)
    ]
    record = {"id": "X", "conversations": turns, "note": 1}
    args = ["--preset", "vicuna", "--max-tokens", 100, "--rejects", "rejects", "--stats", "stats"]
    done = vtools("split", "--tokenizer", spaces, *args, stdin=json.dumps(record))
    assert done.records == [
        {"id": f"X_{start}", "model": "", "conversations": turns[start : start + 2 * count]} for start, count in samples
    ]
    rejects, stats = saved(tmp_path)
    assert stats["turns_lost"] == 2 * lost
    assert (f"turns_lost {2 * lost}" in done.errors) == bool(lost)
    assert sum(len(row["record"]["conversations"]) for row in rejects) == 2 * lost
    assert all(row["reason"] == "overlong" for row in rejects)


@pytest.fixture(scope="session")
def fastchat(llama):
    """FastChat's own functions, with the LLaMA tokenizer."""
    module = pytest.importorskip("fastchat.data.split_long_conversation")
    module.tokenizer = module.transformers.AutoTokenizer.from_pretrained(llama)

    def run(samples, limit):
        module.max_length = limit
        return module.filter_invalid_roles([made for sample in samples for made in module.split_one_sample(sample)])

    run.tokens = lambda text: len(module.tokenizer(text).input_ids)
    return run


FROM = st.sampled_from(["human", "gpt"] * 9 + ["system", "chatgpt", "tool"])


@settings(max_examples=200, suppress_health_check=FIXTURES)
@given(
    values=st.lists(st.tuples(FROM, st.one_of(st.just(""), TEXT, WORDS)), max_size=9),
    regular=st.booleans(),
    limit=st.integers(20, 300),
)
def test_the_preset_writes_what_fastchats_own_function_writes(fastchat, llama, values, regular, limit):
    turns = [
        {"from": ("human", "gpt")[place % 2] if regular else role, "value": text}
        for place, (role, text) in enumerate(values)
    ]
    sample = {"id": "X", "model": None, "conversations": turns}
    for _, text in values:
        assert vicuna.counter(llama)(text) == fastchat.tokens(text)
    made = vicuna.split(dict(sample), tokenizer=llama, max_tokens=limit)
    expected = fastchat([sample], limit)
    if isinstance(made, Reject):
        assert expected == []
        return
    assert [part for part in made if not part.reject] == expected
    lost = sum(part.counts.get("turns_lost", 0) for part in made)
    assert sum(len(part["conversations"]) for part in made) == len(turns)
    assert len(turns) - sum(len(part["conversations"]) for part in expected) == lost


def test_the_preset_takes_no_other_way_of_cutting(vtools, spaces):
    for more in (["--overlong", "drop"], ["--overlap-turns", 1], ["--template", "alpaca"]):
        done = vtools("split", "--tokenizer", spaces, "--preset", "vicuna", *more)
        assert done.returncode == 2
        assert "--preset vicuna" in done.errors
