"""Encoders of plain text: the tokenizer's own, blind to control tokens, one for each position of a text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

    from vtools.models.tokenizer import Tokenizer

# The encoding of a text depends on what precedes it: nothing, a control token, or text.
FIRST, AFTER_TOKEN, INSIDE = range(3)

_PREFIX_PARTS = ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers")


def encoders(tokenizer: Tokenizer) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer, tokenizers.Tokenizer]:
    """Encoders for text at the start, after a control token, and inside text; none recognises control tokens.

    SentencePiece tokenizers put a space before a text: always (LLaMA's, "legacy") or only at the very start.
    """
    import tokenizers

    original = tokenizer.backend
    setup = json.loads(original.to_str())
    # The vocabulary is read once and shared: reading it takes most of the start-up. Added tokens keep their ids.
    vocabulary = {token["content"]: token["id"] for token in setup["added_tokens"]}
    setup["model"] = {"type": "BPE", "vocab": vocabulary, "merges": []}
    first = tokenizers.Tokenizer.from_str(json.dumps(setup))
    inside = tokenizers.Tokenizer.from_str(json.dumps(_without_prefix(setup)))
    for encoder in (first, inside):
        encoder.model = original.model
        encoder.encode_special_tokens = True
    after = first
    probe = next((text for text, token in tokenizer.added.items() if token.special and not token.rstrip and text), None)
    if probe is not None:
        joint = original.encode(probe + "a", add_special_tokens=False).ids[1:]
        if joint != original.encode("a", add_special_tokens=False).ids:
            after = inside
    return first, after, inside


def _without_prefix(value: Any) -> Any:
    """A tokenizer's JSON without the step that adds a space before a text."""
    if isinstance(value, list):
        return [
            _without_prefix(item) for item in value if not (isinstance(item, dict) and item.get("type") == "Prepend")
        ]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "Prepend":
        return None
    changed = {key: _without_prefix(item) if key in _PREFIX_PARTS else item for key, item in value.items()}
    if value.get("type") == "Metaspace":
        changed["prepend_scheme"] = "never"
    if value.get("type") == "ByteLevel":
        changed["add_prefix_space"] = False
    return changed
