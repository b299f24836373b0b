"""Pages that stand where data was asked for: challenges for browsers and login forms."""

import re
from collections.abc import Mapping

HEAD = 1 << 16  # bytes of a page that are looked at
_SCRIPTS = re.compile(rb"<(script|style|noscript)\b.*?(?:</\1>|$)", re.DOTALL | re.IGNORECASE)
_CHALLENGE = re.compile(
    rb"<title>\s*(?:\w+ a moment|attention required|access denied|are you a robot|verify you are human|"
    rb"one more step|ddos-guard|checking your browser)"
    rb"""|\bid=["'](?:challenge-form|challenge-error-text|px-captcha|cf-wrapper|sec-if-cpt-container)"""
    rb"""|\bclass=["'](?:[^"']* )?(?:g-recaptcha|h-captcha|cf-turnstile)\b"""
    rb"""|\bsrc=["'][^"']*captcha-delivery\.com""",
    re.IGNORECASE,
)
_LOGIN = re.compile(rb"""<input\b[^>]*\btype=["']?password\b""", re.IGNORECASE)


def in_headers(headers: Mapping[str, str]) -> str | None:
    """What a response says it is, if that is no data."""
    return "a challenge page" if headers.get("cf-mitigated") == "challenge" else None


def is_page(head: bytes) -> bool:
    """Whether this is the beginning of a page."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def in_page(head: bytes) -> str | None:
    """What the beginning of a page is, if that is no data. Text in scripts, where pages hold chats, does not count."""
    if not is_page(head):
        return None
    shown = _SCRIPTS.sub(b"", head)
    if _CHALLENGE.search(shown):
        return "a challenge page"
    return "a login page" if _LOGIN.search(shown) else None
