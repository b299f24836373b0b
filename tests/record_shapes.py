"""Random records of every shape, and of none: what people's files may hold, right and wrong mixed."""

from __future__ import annotations

from hypothesis import strategies as st

TEXT = st.one_of(
    st.sampled_from(["", " ", "Why?", "Because.", "<p>So</p>", "1. a\n1. b", "a &lt; b", "\u0300", "0" * 30, "नमस्ते", "\x00x"]),
    st.text(max_size=12),
)  # fmt: skip
NOISE = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False), TEXT, st.just([]), st.just({})
)
ROLE = st.one_of(
    st.sampled_from(["user", "assistant", "system", "human", "gpt", "developer", "AI", "bot", "tool", "thinking", "Human "]),
    TEXT,
    NOISE,
)  # fmt: skip
PART = st.one_of(
    TEXT,
    NOISE,
    st.fixed_dictionaries(
        {}, optional={"type": st.sampled_from(["text", "image_url", "thinking", "refusal", "tool_use", "x", None]), "text": st.one_of(TEXT, NOISE), "value": TEXT, "refusal": TEXT}
    ),
)  # fmt: skip
CONTENT = st.one_of(
    TEXT, TEXT, NOISE, st.lists(PART, max_size=3), st.fixed_dictionaries({"parts": st.lists(PART, max_size=2)})
)
TURN = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXT}),
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": TEXT}),
    st.fixed_dictionaries(
        {},
        optional={"role": ROLE, "from": ROLE, "sender": ROLE, "content": CONTENT, "value": CONTENT, "text": CONTENT, "weight": NOISE, "train": NOISE, "tool_calls": NOISE, "name": NOISE},
    ),
    NOISE,
)  # fmt: skip


def _alternating(texts: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


TURNS = st.one_of(st.lists(TEXT, min_size=2, max_size=6).map(_alternating), st.lists(TURN, max_size=5))
LIST = st.one_of(
    TURNS,
    st.lists(TEXT, max_size=4),
    st.fixed_dictionaries({"from": st.lists(ROLE, max_size=3), "value": st.lists(CONTENT, max_size=3)}),
    st.sampled_from(["[", "[]", '[{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]', "{}"]),
    NOISE,
)
ANSWER = st.one_of(CONTENT, TURN, TURNS)
RECORD = st.one_of(
    st.fixed_dictionaries({"messages": TURNS}),
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("messages", "conversations", "conversation", "items", "data"), LIST),
            **dict.fromkeys(("instruction", "prompt", "question", "input", "context", "history"), st.one_of(CONTENT, LIST)),
            **dict.fromkeys(("output", "completion", "response", "answer", "chosen", "rejected", "chosen_messages"), ANSWER),
            **dict.fromkeys(("system", "system_prompt", "image", "images", "label", "kto_tag", "plugins", "tools"), NOISE),
            **dict.fromkeys(("id", "uuid", "conversation_id", "source", "segment", "vtools", "model", "meta"), NOISE),
        },
    ),
)  # fmt: skip
