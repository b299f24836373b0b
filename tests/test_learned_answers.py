"""A tiny model of each template family, trained on three conversations, answers them and stops: with us and elsewhere."""

from __future__ import annotations

import json

import llama_cpp
import pytest
import tiny
from chat_templates import FAMILIES, GENERATION, Family, made
from chats import chat
from running import good

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LOOP = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ 'Q: ' + message.content + '\\n' }}"
    "{% else %}{{ 'A: ' + message.content + '<reply_over>\\n' }}{% endif %}{% endfor %}"
    + GENERATION.replace("PROMPT", "{{ 'A:' }}")
)
KINDS = FAMILIES | {
    "an end of plain text": Family(LOOP, {}, "<reply_over>", {}),
    "a prompt that ends in a space": Family(
        LOOP.replace("{{ 'A:' }}", "{{ 'A: ' }}"), {"<reply_over>": {}}, "<reply_over>", {}
    ),
    "an end without a flag": Family(LOOP, {"<reply_over>": {}}, "<reply_over>", {}),
}
TALKS = [
    chat("Who are you?", "I am a small model."),
    chat("What is a pipe?", "It joins two programs:\n\n  one | two", "And then?", "Nothing more."),
    chat("Grüß Gott! 👋", "Servus 👋🏽, 你好."),
]
LIMIT = 40  # tokens; the longest answer has fewer


def trained(folder, eot, kind):
    """A model of two layers, tuned for 200 steps."""
    family = KINDS[kind]
    base = made(eot, folder / "base", family.template, family.tokens, **family.settings)
    rows = len(transformers.AutoTokenizer.from_pretrained(base))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=rows, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(base)
    data = tiny.write(folder / "talks.jsonl", [{"id": str(n), "messages": talk} for n, talk in enumerate(TALKS)])
    options = ("--max-steps", 200, "--batch", 3, "--lr", 3e-3, "--schedule", "constant", "--save-dtype", "fp32")
    good("train", "--model", base, "--data", data, "--out", folder / "tuned", *options, "-q")
    return folder / "tuned"


def thoughtless(text):
    """An answer without the empty thought that templates of reasoning models put before it."""
    return text.removeprefix("<think>\n\n</think>").lstrip()


@pytest.mark.slow
@llama_cpp.needs_llama_cpp
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_answers_what_it_learned_and_stops_here_and_elsewhere(kind, eot, tmp_path):
    tuned = trained(tmp_path, eot, kind)
    asked = [talk[:-1] for talk in TALKS]
    answers = [talk[-1]["content"] for talk in TALKS]

    # Here, in several turns: the model's own first answer is part of its second prompt.
    turns = [[message["content"] for message in talk if message["role"] == "user"] for talk in TALKS]
    questions = tiny.write(tmp_path / "asked.jsonl", [{"id": str(n), "turns": turn} for n, turn in enumerate(turns)])
    said = good("chat", questions, "--model", tuned, "--temperature", 0, "--max-tokens", LIMIT, "-q")
    assert [thoughtless(reply["turns"][-1]) for reply in said] == answers
    assert {reason for reply in said for reason in reply["finish"]} == {"stop"}

    # In transformers, with nothing but what is saved.
    tokenizer = transformers.AutoTokenizer.from_pretrained(tuned)
    model = transformers.AutoModelForCausalLM.from_pretrained(tuned)
    for chat_, answer in zip(asked, answers, strict=True):
        prompt = tokenizer.apply_chat_template(chat_, add_generation_prompt=True, return_tensors="pt")
        found = model.generate(**prompt, max_new_tokens=LIMIT, tokenizer=tokenizer)[0, prompt["input_ids"].shape[1] :]
        text = tokenizer.decode(found, skip_special_tokens=False)
        assert text.endswith(KINDS[kind].end) and len(found) < LIMIT
        assert thoughtless(text.removesuffix(KINDS[kind].end)) == answer

    # In llama.cpp; no GGUF file can hold a text that stops.
    stop = json.loads((tuned / "generation_config.json").read_text()).get("stop_strings", [])
    good("export", tuned, "--type", "f32", "-o", tmp_path / "tuned.gguf", "-q")
    heard = llama_cpp.ask(tmp_path / "tuned.gguf", asked=asked, limit=LIMIT, stop=stop)["answers"]
    assert [(thoughtless(text), why) for text, why in heard] == [(answer, "stop") for answer in answers]
