"""A tokenizer as GGUF metadata: pieces, scores or merges, kinds of tokens, special tokens, chat template."""

import json
import re
from pathlib import Path
from typing import Any

from vtools.models import pretokenizer
from vtools.models.template import Template, load_template
from vtools.models.tokenizer import Tokenizer
from vtools.process import Failure, say
from vtools.records.jsonl import Reject

# Token types; SentencePiece uses the same numbers.
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
            f"{where}: the tokenizer has ids up to {most}, but the embedding only {rows} rows: wrong tokenizer"
        )
    added = tokenizer.backend.get_added_tokens_decoder()
    unknown = _unknown(setup, where)
    scheme = None
    if setup["model"]["type"] == "BPE" and not setup["model"]["merges"]:
        raise Failure(f"{where}: its tokenizer has no merges, which llama.cpp requires")
    if setup["model"]["type"] == "BPE" and setup["model"].get("byte_fallback"):
        keys = _sentencepiece(setup, words, unknown, set(added), where, rows)
        scheme = _space_prefix(setup, where)
    elif setup["model"]["type"] == "BPE" and (setup.get("decoder") or {}).get("type") == "ByteLevel":
        keys = _byte_level(setup, words, where, rows)
    else:
        raise Failure(
            f"{where}: a {setup['model']['type']} tokenizer; only SentencePiece BPE with byte fallback and byte-level "
            "BPE can be exported"
        )
    chat = _template(tokenizer, template_name, quiet)
    if scheme:
        keys["tokenizer.ggml.add_space_prefix"] = scheme == "always" or (scheme == "first" and not chat)
    if scheme == "first":
        # Chats mostly begin with a control token, so none of their texts comes first; plain texts do.
        stored = "the latter is stored: plain texts" if chat else "the former is stored: texts after control tokens"
        _tell(
            f"{where}: its tokenizer adds a space before the first text only, llama.cpp before every text after a "
            f"control token, or before none: {stored} get different ids",
            quiet,
        )
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    ends = chat.stop_ids if chat else frozenset()
    for number, token in added.items():
        tokens[number] = token.content
        if kinds[number] != UNKNOWN:  # what is no control token is shown, an end as well
            kinds[number] = CONTROL if token.special or number in ends else USER_DEFINED
    if odd := [token.content for token in added.values() if _matched_otherwise(token, tokenizer.backend.normalizer)]:
        names = ", ".join(odd[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
        _tell(
            f"{where}: llama.cpp ignores lstrip, rstrip, single_word and normalized of tokens: texts with {names} may "
            "get different ids there",
            quiet,
        )
    probe = tokenizer.backend.encode("a").ids
    special = {"bos": tokenizer.bos, "eos": tokenizer.eos, "unknown": unknown, "padding": tokenizer.pad}
    ids = {name: tokenizer.id_of(text) for name, text in special.items() if text}
    if ids.get("eos") is None and tokenizer.end_ids:
        ids["eos"] = tokenizer.end_ids[0]
    if chat:
        end = _end(chat)
        if end is not None and end != ids.get("eos"):
            ids["eot"] = end
        keys["tokenizer.chat_template"] = _stripped(chat)
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
    """Scores come from tokenizer.model; without it, from the ranks of the merges, which give the same order."""
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
                    f"{source}: piece {number} is {piece.piece!r}, but not in tokenizer.json; keep only one of them"
                )
            scores[number], kinds[number] = piece.score, piece.type
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
    }


def _space_prefix(setup: dict[str, Any], where: Path) -> str:
    """Which texts get a "▁" in front: "always", "first" or "never". Raises Failure for other changes to texts."""
    normal, before = setup.get("normalizer"), setup.get("pre_tokenizer")
    changes = normal.get("normalizers", [normal]) if normal else []
    cuts = before.get("pretokenizers", [before]) if before else []
    match changes, cuts:
        case [*prepend, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}], []:
            if prepend in ([], [{"type": "Prepend", "prepend": "▁"}]):
                return "always" if prepend else "never"
        case [], [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}]:
            return str(scheme)
    names = ", ".join(step["type"] for step in [*changes, *cuts]) or "nothing"
    raise Failure(
        f"{where}: its tokenizer prepares text by {names}; llama.cpp supports only Prepend '▁' and Replace ' ' with "
        "'▁', or one Metaspace that does not split"
    )


def _matched_otherwise(token: Any, normalizer: Any) -> bool:
    """Whether an added token matches differently from a plain search for its characters."""
    changed = token.normalized and normalizer and normalizer.normalize_str(token.content) != token.content
    return bool(token.lstrip or token.rstrip or token.single_word or changed)


def _pieces(source: Path) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # its classes are created on import
    parsed = proto.ModelProto()
    try:
        parsed.ParseFromString(source.read_bytes())
    except Exception as error:  # the class's module differs between releases of protobuf
        raise Failure(f"{source}: not a SentencePiece model: {error}") from None
    if parsed.trainer_spec.model_type != parsed.trainer_spec.BPE:
        raise Failure(f"{source}: a unigram model; llama.cpp's llama models need SentencePiece BPE")
    return parsed.pieces


def _padded(words: dict[str, int], rows: int) -> tuple[list[str], list[int]]:
    """Texts and types of all rows; rows without a token become unused tokens."""
    tokens, kinds = [f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows
    for text, number in words.items():
        tokens[number], kinds[number] = text, NORMAL
    return tokens, kinds


def _unknown(setup: dict[str, Any], where: Path) -> str | None:
    """The unknown token; byte-level tokenizers name one without ever using it."""
    named = setup["model"].get("unk_token")
    path = where / "tokenizer_config.json"
    if named is None and path.is_file():
        named = json.loads(path.read_text(encoding="utf-8")).get("unk_token")
    return named.get("content") if isinstance(named, dict) else named


def _template(tokenizer: Tokenizer, name: str | None, quiet: bool) -> Template | None:
    try:
        return load_template(name, tokenizer)
    except Failure:
        if name is not None or tokenizer.chat_template:
            raise
    _tell(f"{tokenizer.folder}: no chat template, none is stored (right for a base model; else use --template)", quiet)
    return None


def _tell(text: str, quiet: bool) -> None:
    if not quiet:
        say("export", f"{text}")


def _stripped(chat: Template) -> str:
    """The template's source, without the white space that tokens swallow after them: llama.cpp reads it as text."""
    source = chat.source
    for pair in chat.swallowed:
        # Jinja reads these string escapes as JSON writes them.
        written, kept = (json.dumps(text, ensure_ascii=False) for text in pair)
        source = f"{{% filter replace({written}, {kept}) %}}\n{source}{{% endfilter %}}"
    return source


def _end(chat: Template) -> int | None:
    """The token with which the template ends an answer."""
    try:
        return next((piece.token for piece in chat.answer_ends if piece.token is not None), None)
    except Reject:
        return None
