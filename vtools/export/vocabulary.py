"""A tokenizer as GGUF metadata: pieces, scores or merges, kinds of tokens, special tokens, chat template."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from vtools import pretokenizer, template
from vtools.jsonl import Reject
from vtools.model import Tokenizer
from vtools.process import Failure

# Kinds of tokens; SentencePiece's own numbers are the same.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def metadata(tokenizer: Tokenizer, rows: int, template_name: str | None, quiet: bool) -> dict[str, Any]:
    """The tokenizer's GGUF keys; the vocabulary is padded to the `rows` of the embedding.

    Raises Failure for a tokenizer that llama.cpp cannot follow or that has more ids than there are rows.
    """
    where = tokenizer.folder
    setup = json.loads(tokenizer.backend.to_str())
    words = tokenizer.backend.get_vocab(with_added_tokens=True)
    if (most := max(words.values())) >= rows:
        raise Failure(
            f"{where}: the tokenizer has ids up to {most}, the embedding only {rows} rows: not this model's tokenizer"
        )
    added = tokenizer.backend.get_added_tokens_decoder()
    unknown = _unknown(setup, where)
    if setup["model"]["type"] == "BPE" and setup["model"].get("byte_fallback"):
        keys = _sentencepiece(setup, words, unknown, set(added), where, rows)
    elif setup["model"]["type"] == "BPE" and (setup.get("decoder") or {}).get("type") == "ByteLevel":
        keys = _byte_level(setup, words, where, rows)
    else:
        raise Failure(
            f"{where}: a {setup['model']['type']} tokenizer; SentencePiece BPE with byte fallback and byte-level BPE "
            "can be exported"
        )
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    for number, token in added.items():
        tokens[number] = token.content
        if kinds[number] != UNKNOWN:
            kinds[number] = CONTROL if token.special else USER_DEFINED
    probe = tokenizer.backend.encode("a").ids
    special = {"bos": tokenizer.bos, "eos": tokenizer.eos, "unknown": unknown, "padding": tokenizer.pad}
    ids = {name: tokenizer.id_of(text) for name, text in special.items() if text}
    if ids.get("eos") is None and tokenizer.end_ids:
        ids["eos"] = tokenizer.end_ids[0]
    chat = _template(tokenizer, template_name, quiet)
    if chat:
        end = _end(chat)
        if end is not None and end != ids.get("eos"):
            ids["eot"] = end
        keys["tokenizer.chat_template"] = chat.source
    keys |= {f"tokenizer.ggml.{name}_token_id": number for name, number in ids.items() if number is not None}
    keys["tokenizer.ggml.add_bos_token"] = ids.get("bos") is not None and probe[:1] == [ids["bos"]]
    keys["tokenizer.ggml.add_eos_token"] = ids.get("eos") is not None and len(probe) > 1 and probe[-1] == ids["eos"]
    return keys


def _byte_level(setup: dict[str, Any], words: dict[str, int], where: Path, rows: int) -> dict[str, Any]:
    tokens, kinds = _padded(words, rows)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in setup["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pretokenizer.name(setup, where),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
    }


def _sentencepiece(
    setup: dict[str, Any], words: dict[str, int], unknown: str | None, added: set[int], where: Path, rows: int
) -> dict[str, Any]:
    """Scores come from tokenizer.model; without it they are the ranks of the merges, which order them the same."""
    tokens, kinds = _padded(words, rows)
    scores = [0.0] * rows
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(setup["model"]["merges"]):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    for text, number in words.items():
        scores[number] = -float(ranks.get(text, 0))
        if _BYTE.fullmatch(text):
            kinds[number] = BYTE
        elif text == unknown:
            kinds[number] = UNKNOWN
    source = where / "tokenizer.model"
    if source.is_file():
        for number, piece in enumerate(_pieces(source)):
            if number >= rows or (words.get(piece.piece) != number and number not in added):
                raise Failure(
                    f"{source}: piece {number} is {piece.piece!r}, in tokenizer.json it is not: use one of them"
                )
            scores[number], kinds[number] = piece.score, piece.type
    normal = setup.get("normalizer") or {}
    steps = {step["type"] for step in normal.get("normalizers", [normal] if normal else [])}
    if not steps <= {"Prepend", "Replace"}:
        raise Failure(f"{where}: its tokenizer normalises text ({', '.join(sorted(steps))}), which llama.cpp does not")
    scheme = (setup.get("pre_tokenizer") or {}).get("prepend_scheme", "never")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": "Prepend" in steps or scheme != "never",
    }


def _pieces(source: Path) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # it makes its classes when imported
    parsed = proto.ModelProto()
    try:
        parsed.ParseFromString(source.read_bytes())
    except Exception as error:  # the class moves between releases of protobuf
        raise Failure(f"{source}: not a SentencePiece model: {error}") from None
    if parsed.trainer_spec.model_type != parsed.trainer_spec.BPE:
        raise Failure(f"{source}: a unigram model; llama.cpp's llama models have SentencePiece BPE")
    return parsed.pieces


def _padded(words: dict[str, int], rows: int) -> tuple[list[str], list[int]]:
    """Texts and kinds of all rows; a row without a token is one that nothing produces."""
    tokens, kinds = [f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows
    for text, number in words.items():
        tokens[number], kinds[number] = text, NORMAL
    return tokens, kinds


def _unknown(setup: dict[str, Any], where: Path) -> str | None:
    """The token for what the vocabulary lacks; byte-level tokenizers name one without ever using it."""
    named = setup["model"].get("unk_token")
    path = where / "tokenizer_config.json"
    if named is None and path.is_file():
        named = json.loads(path.read_text(encoding="utf-8")).get("unk_token")
    return named.get("content") if isinstance(named, dict) else named


def _template(tokenizer: Tokenizer, name: str | None, quiet: bool) -> template.Template | None:
    try:
        return template.load(name, tokenizer)
    except Failure:
        if name is not None or tokenizer.chat_template:
            raise
    if not quiet:
        print(
            f"vtools export: {tokenizer.folder}: no chat template, none is stored (right for a base model; "
            "--template gives one)",
            file=sys.stderr,
        )
    return None


def _end(chat: template.Template) -> int | None:
    """The token with which the template ends an answer."""
    try:
        pieces = chat.skeleton(("user", "assistant"), False)
    except Reject:
        return None
    return next((piece.token for piece in pieces if piece.trained and piece.token is not None), None)
