"""What a model's name says: of which family it is, and whether it means the same model tomorrow."""

import re

# The words by which the models of one maker are named, and fine-tunes by their base; patterns between letters.
FAMILIES = {
    "OpenAI": r"openai|chatgpt|gpt(?!-?(?:j|neo)|4all)|davinci|(?<![^/.])o[1-9](?!\w)",
    "Anthropic": r"anthropic|claude",
    "Google": r"google|gemini|gemma|palm|bard|bison|t5",
    "Llama": r"(?:code)?llama|vicuna|alpaca|koala|guanaco|wizardlm|longchat|tulu",
    "Mistral": r"mistral|mixtral|ministral|codestral|magistral|devstral|pixtral|zephyr",
    "Qwen": r"(?:code)?qwen|qwq",
    "DeepSeek": r"deepseek",
    "xAI": r"xai|grok",
    "Cohere": r"cohere|command-[ar]|aya",
    "Zhipu": r"(?:chat)?glm",
    "Moonshot": r"moonshot|kimi",
    "MiniMax": r"minimax",
    "Amazon": r"nova|titan",
    "Microsoft": r"phi",
    "NVIDIA": r"nemotron",
    "IBM": r"granite",
    "Ai2": r"olmo",
    "01.AI": r"yi",
    "TII": r"falcon",
    "Hugging Face": r"smollm",
}
_FAMILIES = {family: re.compile(rf"(?<![a-z])(?:{words})(?![a-z])") for family, words in FAMILIES.items()}
# As in -2024-08-06, -20241022, -0613, -2411 and -002.
DATED = re.compile(r"(?<!\d)(?:20\d\d-\d\d-\d\d|20\d{6}|[0-2]\d[0-3]\d|00\d)(?!\d)")
# OpenAI's names without a date; those of Anthropic from Claude 4.6 on, and of Google, mean one model each.
MOVED = re.compile(r"(?<![a-z])latest(?![a-z])|(?<![^/.])(?:gpt-\d|o[1-9](?!\w)|deepseek-(?:chat|reasoner)$)")


def families(name: str) -> set[str]:
    """The families that a name speaks of, as two for a model of one that learned from another; else the bare name."""
    name = name.lower().rstrip("/")
    return {family for family, words in _FAMILIES.items() if words.search(name)} or {name.rpartition("/")[2]}


def unpinned(name: str, told: str | None = None) -> str | None:
    """A warning about a name that may mean another model tomorrow, given what the server called its model, if any."""
    if DATED.search(name):
        return None
    if told and DATED.search(told):
        return f"warning: {name} means {told} today and may mean another model tomorrow: name that one"
    if MOVED.search(name.lower()):
        return f"warning: {name} may mean another model tomorrow: name one with a date"
    return None
