"""Texts, conversations and saved files for the tests of split."""

from __future__ import annotations

import json

from hypothesis import HealthCheck
from hypothesis import strategies as st

FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


PIECES = ["Hi", " there", "\n", "\n\n", " \n ", "  ", "      ", "\t", "\r\n", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\u180e", "\ufeff",
          "1. x", " 2023", "½", "'s", "I'LL", "```py\nx = 1\n```", "中文", "é", "e\u0301", "\u0301", "🙂", "👩‍👩‍👧", "a_b", "▁", "▁▁x", " ▁", "слово", "word", "Word,", "…", "—", "!\n\n", ".\n", ". ", "x\n",
          "<|im_end|>", "</s>", "<s>", "<|eot|>", "<|im_start|>", "<think>", "USER:", " ASSISTANT: ", "###", "### Human:", "[INST]", "<unk>", "<0x0A>", "<|head|>", ")", ":"]  # fmt: skip
TEXT = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join), st.text(min_size=1, max_size=30)
)
ANSWER = TEXT.filter(lambda text: text.strip())


WORDS = st.integers(0, 120).map(lambda count: "word " * count + "end")


def new_turns(part, lead):
    return part["messages"][len(lead) + part.get("segment", {}).get("overlap", 0) :]


def saved(tmp_path):
    rejects = [json.loads(line) for line in (tmp_path / "rejects").read_text().splitlines()]
    stats = json.loads((tmp_path / "stats").read_text())
    assert stats["in"] == stats["out"] + stats["rejected"]
    assert stats["turns_in"] == stats["turns_out"] + stats["turns_dropped"] + stats["turns_lost"]
    return rejects, stats
