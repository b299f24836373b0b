"""The address of an OpenAI-compatible server: its URL, whether it is this machine, the API key."""

import os
from urllib.parse import urlsplit

from vtools.process import UsageFailure, shown

SERVE = "http://127.0.0.1:8000/v1"  # where `vtools serve` listens unless told otherwise
OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
KEYS = {  # by host, of those whose own variable comes before it: judges of several providers can be asked in one run
    "api.anthropic.com": "ANTHROPIC_API_KEY",
    "generativelanguage.googleapis.com": "GEMINI_API_KEY",
    "api.mistral.ai": "MISTRAL_API_KEY",
    "api.deepseek.com": "DEEPSEEK_API_KEY",
    "openrouter.ai": "OPENROUTER_API_KEY",
}


class Server:
    """A server by its URL. A `loopback` server is reached without a proxy."""

    def __init__(self, url: str) -> None:
        """Add /v1 to a bare host. Raises UsageFailure."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageFailure(f"{url}: not an http(s) URL; for example {SERVE}")
        self.url = url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"
        try:
            self.host, self.port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise UsageFailure(f"{url}: {error}") from None
        self.loopback = self.host in ("localhost", "::1") or self.host.startswith("127.")
        self.is_openai = self.host == urlsplit(OPENAI).hostname
        own = KEYS.get(self.host, KEY)
        self.key_name = own if os.environ.get(own) else KEY
        self.key = os.environ.get(self.key_name) or None


def key() -> str | None:
    """The user's API key, if set."""
    return os.environ.get(KEY) or None


def serves(url: str, model: str) -> bool:
    """Whether a server on this machine lists this model. It is not shown the API key."""
    import httpx2

    try:
        listed = httpx2.get(f"{url}/models", timeout=2.0, trust_env=False).json()["data"]
        return any(each["id"] == model for each in listed)
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return False


def one_line(value: object) -> str:
    """A server's words on one line, at most 300 characters, for a message."""
    return shown(" ".join(str(value).split())[:300])
