"""How a byte-level tokenizer.json splits text, and GGUF's name for it.

llama.cpp has these rules built in, by name (src/llama-vocab.cpp); a file can only name one. A name is used only if the
tokenizer's own rules are, character by character, those of the name.
"""

from typing import Any

from vtools.process import Failure

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# From the steps, the normal form, and whether a word that is a token is matched whole, to the name.
NAMES = {
    (("gpt2",), None, False): "gpt-2",
    (("digits", "gpt2"), None, False): "smollm",
    ((_LLAMA3, "bytes"), None, True): "llama-bpe",
    ((_LLAMA3, "bytes"), None, False): "dbrx",
    ((_QWEN2, "bytes"), None, False): "qwen2",
    # llama.cpp does not normalise; its own converter ignores that too. Text is nearly always NFC already.
    ((_QWEN2, "bytes"), "NFC", False): "qwen2",
    ((_TEKKEN, "bytes"), None, True): "tekken",
}


def restore(setup: dict[str, Any], known_as: str) -> bool:
    """Make a byte-level tokenizer.json split text as the name says; False for an unknown name."""
    found = [rules for rules, given in NAMES.items() if given == known_as]
    if not found:
        return False
    steps, normal, whole = found[-1]  # of two, the one that normalises, as in training
    setup["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [_parse(step) for step in steps]}
    setup["normalizer"] = {"type": normal} if normal else None
    setup["model"]["ignore_merges"] = whole
    return True


def name(setup: dict[str, Any], where: object) -> str:
    """llama.cpp's name for the pre-tokenizer of a tokenizer.json. Raises Failure if there is none we know."""
    before = setup.get("pre_tokenizer") or {}
    steps = tuple(_step(step) for step in before.get("pretokenizers", [before]))
    normal = (setup.get("normalizer") or {}).get("type")
    found = NAMES.get((steps, normal, bool(setup["model"].get("ignore_merges"))))
    if found is None:
        raise Failure(
            f"{where}: its pre-tokenizer ({', '.join(map(str, steps))}, normal form {normal}) is not a known one of "
            f"llama.cpp's: {', '.join(sorted(set(NAMES.values())))}"
        )
    return found


def _step(step: dict[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "gpt2" if step.get("use_regex", True) else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return str(pattern)
    return str(step.get("type"))


def _parse(step: str) -> dict[str, Any]:
    """The inverse of `_step`."""
    if step in ("gpt2", "bytes"):
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": step == "gpt2"}
    if step == "digits":
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}
