"""Personal data and secrets in texts: addresses of mail and machines, keys, numbers of cards, accounts and phones.

A cheap test first looks for characters that each kind needs; strict rules then keep version numbers, timestamps,
ISBNs, identifiers and code as they are.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable

Rule = tuple[str, tuple[bytes, ...], re.Pattern[str], Callable[[re.Match[str]], bool]]

# Letters and marks of Latin, Greek, Cyrillic, Armenian, Hebrew, Arabic, Indian, Georgian and Ethiopic scripts. Words of
# scripts without spaces, and Korean ones, stand next to an address without being part of it.
_LETTERS = (
    "a-z0-9\xc0-\xd6\xd8-\xf6\xf8-\u037d\u037f-\u0386\u0388-\u0556\u0561-\u0587\u0591-\u05bd\u05c1-\u05c2\u05c7-\u05ea"
    "\u0610-\u061a\u0620-\u0669\u066e-\u06d3\u06d5-\u06ff\u0750-\u077f\u0900-\u0963\u0966-\u096f\u0971-\u0dff\u10a0-\u10fa"
    "\u1200-\u135f\u1e00-\u1fff"
)
_EMAIL = re.compile(
    rf"(?<![{_LETTERS}_.%+-])[{_LETTERS}_][{_LETTERS}_.%+-]{{0,63}}+(['\u2019][{_LETTERS}_.%+-]{{1,63}}+){{0,2}}"
    rf"@((?:[{_LETTERS}](?:-{{0,2}}[{_LETTERS}]){{0,62}}+\.){{1,8}})"
    rf"(xn--[a-z0-9-]{{2,59}}|[a-z]{{2,24}}|[{_LETTERS[6:]}]{{2,24}}+)(?![a-z0-9_@])"
    r"(?(1)(?!['\u2019]))",  # but x'jo@corp.io' is a text in quotes
    re.IGNORECASE,
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
    # Webhooks of Slack, Discord and Teams: who knows the address may post.
    r"|(?:https://)?(?:hooks\.slack\.com/(?:services|triggers|workflows)/[\w/]{24,120}"
    r"|(?:\w{1,20}\.)?discord(?:app)?\.com/api/(?:v\d{1,2}/)?webhooks/\d{15,22}/[\w-]{40,100}"
    r"|[\w.-]{1,80}\.office(?:365)?\.com/webhook(?:b2)?/[\w@/-]{60,300}"
    r"|[\w.-]{1,80}\.logic\.azure\.com(?::443)?/workflows/[\w/?&=%.-]{60,500})"
    r")(?![\w-])"
    r"|-----BEGIN (?:[A-Z]{1,12} )?PRIVATE KEY-----[\sA-Za-z0-9+/=:,.-]{40,8000}?"
    r"-----END (?:[A-Z]{1,12} )?PRIVATE KEY-----",
    re.ASCII,
)
# What a program or a person names a secret, up to a value that is long enough to be random.
_SECRET = re.compile(
    r"(?P<before>(?:secret|Secret|SECRET|token|Token|TOKEN|passw(?:or)?d|Passw(?:or)?d|PASSW(?:OR)?D"
    r"|api[_ -]?[kK]ey|Api[_ -]?[kK]ey|API[_ -]?(?:[kK]ey|KEY))(?<!KeyToken)"
    r"(?:[_-]?(?:[aA]ccess|ACCESS))?(?:[_-]?(?:[kK]ey|KEY))?"
    r"(?:\\?[\"'`]?\]?[ \t]{0,3}(?P<is>=>|:=|={1,2}|:)[ \t]{0,3}|[ \t]{1,3}(?:is[ \t]{1,3})?)\\?[\"'`]?)"
    r"(?P<value>(?:[\w+/=~.-]|\\_){15,199}[\w+/=~-])(?![\w+/=~-]|\.\w|[(\[{])",
    re.ASCII,
)
_IBAN = re.compile(
    r"(?<!\w)[A-Z]{2}\d\d(?:[A-Z\d]{11,28}"
    r"| [A-Z\d]{4}(?: (?=[A-Z]{0,3}\d)[A-Z\d]{4}){1,6}(?: (?=[A-Z]{0,2}\d)[A-Z\d]{1,3})?)(?!\w)",
    re.ASCII,
)
_SSN = re.compile(r"(?<![\w.-])(?!000|666|9|123-45-6789)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-]|\.\d)", re.ASCII)
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
# Of the blocks that have been given to anybody: 2001 to 2003, 24xx, 26xx, 28xx, 2axx, 2cxx.
_IPV6 = re.compile(
    r"(?<![\w:.-])2(?:00[1-3]|[468ac][0-3][\da-f])(?::[\da-f]{0,4}){2,7}(?![\w:]|\.\d)", re.ASCII | re.IGNORECASE
)
_VERSION = re.compile(r"(?:\bv|\bver\.|version|release|build)[\s:=\"']{0,3}\Z", re.IGNORECASE)


def possible(shape: bytes) -> list[Rule]:
    """The kinds that texts of a shape (`turns.shape`) may contain; many times faster than searching for each."""
    folded = shape.translate(_FOLD)
    rules = [rule for rule in _RULES if any([sign in shape for sign in rule[1]])]
    return rules + [rule for rule in _FOLDED_RULES if any([sign in folded for sign in rule[1]])]


def redacted(text: str, rules: Iterable[Rule], counts: Counter[str]) -> str:
    """The text with [EMAIL], [KEY], [IBAN] or another kind in place of each match; counts them by kind."""
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
    return f"{match.groupdict().get('before', '')}[{kind.upper()}]"


def _is_email(match: re.Match[str]) -> bool:
    domain, last = match[2] + match[3], match[3].lower()
    git = match[0].startswith("git@") and match.string[match.end() : match.end() + 1] in (":", "/")
    return last not in _FILES and not git and not _NOBODYS.fullmatch(domain)


def _is_key(match: re.Match[str]) -> bool:
    """Not a placeholder from documentation, which has no digit, few distinct characters, or says what it is."""
    return _is_random(match[0])


def _is_random(key: str) -> bool:
    return (
        any(character.isdigit() for character in key)
        and len(set(key)) > 9
        and not re.search(r"example|your[_-]|xxxx", key, re.IGNORECASE)
    )


def _is_secret(match: re.Match[str]) -> bool:
    """Random letters and digits; 20 or more, of both cases or hexadecimal, where only a space is between."""
    value = re.sub(r"[\W_]", "", match["value"])
    if not _is_random(value) or value.isdigit() or value.startswith("0x"):
        return False
    if re.search(r"[\da-f]{32}|[\dA-F]{32}", value):
        return True
    kinds = [character.isdigit() + 2 * character.isupper() for character in value]
    # Names change less often between capital letters, small letters and digits.
    changes = sum(map(int.__ne__, kinds, kinds[1:]))
    return 3 * changes >= len(value) and (bool(match["is"]) or (len(value) >= 20 and len(set(kinds)) == 3))


# Countries and the lengths of their account numbers (registry of SWIFT).
_ACCOUNTS = """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18
    FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21
    LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27
    ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20
"""


def _is_iban(match: re.Match[str]) -> bool:
    """A country's code and length, and check digits (ISO 13616: the remainder by 97 is 1)."""
    account = match[0].replace(" ", "")
    if f"{account[:2]}{len(account)}" not in _ACCOUNTS:
        return False
    return int("".join(str(int(character, 36)) for character in account[4:] + account[:4])) % 97 == 1


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


def _is_ipv6(match: re.Match[str]) -> bool:
    import ipaddress

    try:
        return ipaddress.IPv6Address(match[0]).is_global
    except ValueError:
        return False


# Byte strings of which each kind needs one; every digit is written as 0.
_KEY_SIGNS = (
    b"sk-", b"k_live_", b"AKIA", b"ASIA", b"AIza", b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_",
    b"glpat-", b"xox", b"hf_", b"npm_", b".eyJ", b" PRIVATE KEY-----", b"hooks.slack.com/", b"/webhooks/0",
    b".com/webhook", b".logic.azure.com",
)  # fmt: skip
_RULES: tuple[Rule, ...] = (
    ("key", _KEY_SIGNS, _KEY, _is_key),
    ("email", (b"@",), _EMAIL, _is_email),
    ("iban", (b"0" * 10, b"0000 0000"), _IBAN, _is_iban),
    ("ssn", (b"000-00-0000",), _SSN, bool),
    ("card", (b"0" * 13, b"0000 0000", b"0000-0000"), _CARD, _is_card),
    ("phone", (b"000-0000", b"000.0000", b"000 0000", b"+0"), _PHONE, _is_phone),
    ("ip", (b"000.", b".000"), _IP, _is_ip),
)
# To need fewer signs, these are looked for in small letters, with hexadecimal digits as a, and one kind of gap.
_FOLD = bytes.maketrans(b"bcdefABCDEFGHIJKLMNOPQRSTUVWXYZ-", b"aaaaaaaaaaaghijklmnopqrstuvwxyz ").replace(b"_", b" ")
_FOLDED_RULES: tuple[Rule, ...] = (
    ("key", (b"saarat", b"tokan", b"passw", b"api kay", b"apikay"), _SECRET, _is_secret),
    ("ip", (b"0000:", b"000a:", b"0a00:", b"0a0a:"), _IPV6, _is_ipv6),
)
RULES = _RULES + _FOLDED_RULES
