"""Personal data and secrets in texts: email addresses, API keys, card and phone numbers, public IP addresses.

A cheap test first looks for characters that each kind needs; strict rules then keep version numbers, timestamps,
ISBNs, identifiers and code as they are.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable

Rule = tuple[str, tuple[bytes, ...], re.Pattern[str], Callable[[re.Match[str]], bool]]

_EMAIL = re.compile(
    r"(?<![\w.%+-])\w[\w.%+-]{0,63}@((?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8})([a-z]{2,24})(?![\w@])",
    re.ASCII | re.IGNORECASE,
)
# Names that RFC 2606 and RFC 6761 reserve for examples belong to nobody, and image@2x.png is a file.
_NOBODYS = re.compile(r"(?:.*\.)?(?:example\.(?:com|net|org)|example|test|invalid|local|localhost)", re.IGNORECASE)
_FILES = frozenset(("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "json", "html", "txt"))
# Recognised by the prefixes that their issuers publish.
_KEY = re.compile(
    r"(?<![\w-])(?:"
    r"sk-(?:proj|svcacct|admin|ant)-[\w-]{20,200}|sk-[A-Za-z0-9]{20,64}|[sr]k_live_[A-Za-z0-9]{16,128}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}|glpat-[\w-]{20,64}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}"
    r"|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,1000}"
    r")(?![\w-])"
    r"|-----BEGIN (?:[A-Z]{1,12} )?PRIVATE KEY-----[\sA-Za-z0-9+/=:,.-]{40,8000}?"
    r"-----END (?:[A-Z]{1,12} )?PRIVATE KEY-----",
    re.ASCII,
)
_CARD = re.compile(
    r"(?<![\w.,+-])(?<!\d{4}[ -])(?:\d{13,19}|\d{4}([ -])\d{4}(?:\1\d{4}){2}|\d{4}([ -])\d{6}\2\d{4,5})"
    r"(?!\w|[.,-]\d| \d{4}(?![\d/]))",  # nor in a list of numbers of four digits
    re.ASCII,
)
_PHONE = re.compile(
    r"(?<![\w.+-])(?:"
    r"(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?[2-9]\d\d[ .-]\d{4}|[2-9]\d\d([.-])[2-9]\d\d\1\d{4})"  # North America
    r"|\+[1-9]\d{9,14}|\+[1-9]\d{0,2}(?:[ .-]\(?\d{1,8}\)?|\(\d{1,5}\)){1,6}"  # E.164, and with separators
    r")(?![\w]|[.,:-]\d)",
    re.ASCII,
)
_IP = re.compile(r"(?<![\w.:/-])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w-]|\.\d)", re.ASCII)
_VERSION = re.compile(r"(?:\bv|\bver\.|version|release|build)[\s:=\"']{0,3}\Z", re.IGNORECASE)


def possible(shape: bytes) -> list[Rule]:
    """The kinds that texts of a shape (`turns.shape`) may contain; many times faster than searching for each."""
    return [rule for rule in RULES if any([sign in shape for sign in rule[1]])]


def redacted(text: str, rules: Iterable[Rule], counts: Counter[str]) -> str:
    """The text with [EMAIL], [KEY], [CARD], [PHONE] or [IP] in place of each match; counts them by kind."""
    while True:
        before = text
        for kind, _, pattern, is_one in rules:
            text = pattern.sub(functools.partial(_token, kind, is_one, counts), text)
        if text == before:  # a replacement may have uncovered a match beside it
            return text


def _token(kind: str, is_one: Callable[[re.Match[str]], bool], counts: Counter[str], match: re.Match[str]) -> str:
    if not is_one(match):
        return match[0]
    counts[kind] += 1
    return f"[{kind.upper()}]"


def _is_email(match: re.Match[str]) -> bool:
    domain, last = match[1] + match[2], match[2].lower()
    git = match[0].startswith("git@") and match.string[match.end() : match.end() + 1] in (":", "/")
    return last not in _FILES and not git and not _NOBODYS.fullmatch(domain)


def _is_key(match: re.Match[str]) -> bool:
    """Not a placeholder from documentation, which has no digit, few distinct characters, or says what it is."""
    key = match[0]
    return (
        any(character.isdigit() for character in key)
        and len(set(key)) > 9
        and not re.search(r"example|your[_-]|xxxx", key, re.IGNORECASE)
    )


def _is_card(match: re.Match[str]) -> bool:
    """A known issuer's prefix and length, and a valid Luhn checksum (ISO/IEC 7812-1)."""
    digits = [int(character) for character in match[0] if character.isdigit()]
    first = int("".join(map(str, digits[:4])))
    lengths: tuple[int, ...] = ()
    if first // 1000 == 4:
        lengths = (13, 16, 19)
    elif 5100 <= first <= 5599 or 2221 <= first <= 2720 or first == 6011 or first // 100 == 65 or 3528 <= first <= 3589:
        lengths = (16,)
    elif first // 100 in (34, 37):
        lengths = (15,)
    elif 3000 <= first <= 3059 or first // 100 in (36, 38):
        lengths = (14,)
    if len(digits) not in lengths:
        return False
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_phone(match: re.Match[str]) -> bool:
    if match[0] == "+2147483647":  # the largest 32-bit integer
        return False
    return 8 <= sum(character.isdigit() for character in match[0]) <= 15


def _is_ip(match: re.Match[str]) -> bool:
    """A public address with a three-digit part: four small numbers are as likely a version."""
    parts = match[0].split(".")
    if any(part != str(int(part)) or int(part) > 255 for part in parts) or max(map(int, parts)) < 100:
        return False
    import ipaddress

    return ipaddress.IPv4Address(match[0]).is_global and not _VERSION.search(
        match.string, max(0, match.start() - 12), match.start()
    )


# Byte strings of which each kind needs one; every digit is written as 0.
_KEY_SIGNS = (
    b"sk-", b"k_live_", b"AKIA", b"ASIA", b"AIza", b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_",
    b"glpat-", b"xox", b"hf_", b"npm_", b".eyJ", b" PRIVATE KEY-----",
)  # fmt: skip
RULES: tuple[Rule, ...] = (
    ("key", _KEY_SIGNS, _KEY, _is_key),
    ("email", (b"@",), _EMAIL, _is_email),
    ("card", (b"0" * 13, b"0000 0000", b"0000-0000"), _CARD, _is_card),
    ("phone", (b"000-0000", b"000.0000", b"000 0000", b"+0"), _PHONE, _is_phone),
    ("ip", (b"000.", b".000"), _IP, _is_ip),
)
