"""vtools clean --pii: personal data and secrets, and what only resembles them."""

from __future__ import annotations

from collections import Counter

import pytest
from chats import shared
from cleaning import GOOD, rejected

from vtools.clean import clean_record, pii

KEYS = {
    "OpenAI": "sk-" + "aB3dE5gH7jK9mN1pQ3sT5vW7" + "yZ9bC1dE3fG5hJ7kL9nP",
    "OpenAI project": "sk-proj-" + "aB3dE5gH7_jK9mN1pQ3-sT5vW7",
    "AWS": "AKIA" + "Z7Q2M4N6B8V1C3X5",
    "GitHub": "ghp_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5",
    "Google": "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "Slack": "xoxb-" + "2345678901-AbCdEfGhIj",
    "Stripe": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "Hugging Face": "hf_" + "aBcDeFgHiJ1kLmNoPqRsTuVwXyZ2345678",
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("write to Jo.Doe+news@mail.corp.co.uk, please", "write to [EMAIL], please"),
        ("<jo@corp.io>; mailto:jo@corp.io.", "<[EMAIL]>; mailto:[EMAIL]."),
        ("邮箱是jo@corp.io谢谢", "邮箱是[EMAIL]谢谢"),
        ("call (415) 555-2671 or +1 415-555-2671 now", "call [PHONE] or [PHONE] now"),
        ("415-555-2671, 415.555.2671", "[PHONE], [PHONE]"),
        ("+49 30 901820 and +442083661177 too", "[PHONE] and [PHONE] too"),
        ("card 4111 1111 1111 1111 or 5500-0000-0000-0004", "card [CARD] or [CARD]"),
        ("378282246310005; 3782 822463 10005 12/27", "[CARD]; [CARD] 12/27"),
        ("from 91.198.174.192:8080 to 8.8.4.104", "from [IP]:8080 to [IP]"),
        *((f'key = "{key}"', 'key = "[KEY]"') for key in KEYS.values()),
        (
            "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEow1bAAKCAQEA9s\n" * 5 + "-----END RSA PRIVATE KEY-----\n",
            "[KEY]\n",
        ),
    ],
)
def test_personal_data_and_secrets_are_replaced_by_what_they_were(text, wanted):
    messages = clean_record(shared(f"{text} {GOOD[0]}", f"{text} {GOOD[1]}"), pii="redact")["messages"]
    assert [message["content"] for message in messages] == [f"{wanted} {GOOD[0]}", f"{wanted} {GOOD[1]}"]


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4, v112.0.5615.49, 10.0.19041.1, build: 131.2.3.4", "127.0.0.1 192.168.0.101 10.20.30.140 255.255.255.0",
        "2023-04-12T10:11:12.123456Z 1681293072 1681293072123 1681293072123456", "ISBN 978-3-16-148410-0, 0-306-40615-2, 9780306406157",
        "4111 1111 1111 1112 is no card", "0.4111111111111111 and 4111111111111111.5", "3.14159265358979323846",
        "2221 2222 2223 2224 2225", "4000 4001 4002 4003", "256 512 1024 2048", "123-456-7890", "1-800-flowers", "5551234567",
        "+1000 users, +12, C++17, a +1 b, +2147483647", "UTC+02:00, +0200", "phone: 12345", "550e8400-e29b-41d4-a716-446655440000",
        "@app.route('/x') @property user@host git@github.com:a/b.git react@18.2.0 icon@2x.png", "jo@example.com, root@localhost, a@b.test",
        "sk-your-api-key-goes-here, sk-xxxxxxxxxxxxxxxxxxxxxxxx, AKIAIOSFODNN7EXAMPLE", "class='sk-folding-cube' risk-assessment-of-2023-data",
        "sha 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "x = [4, 5, 3, 2, 0, 1, 5, 1, 1, 2, 8, 3, 0, 3, 6, 6]",
        "1.1.1.1 is four parts; 4.18.2.1 too; 300.120.1.1", "arr[415-555] 12-415-555-2671-9", "3/4/2023 4:15.555", "a@b, @, @@, x@.com",
    ],
)  # fmt: skip
def test_code_and_numbers_that_are_not_personal_stay_as_they_are(text):
    counts: Counter[str] = Counter()
    assert pii.redacted(text, pii.RULES, counts) == text
    assert not counts


def test_personal_data_can_drop_or_tag_a_record_instead():
    record = shared("I am jo@corp.io and ann@corp.io", f"My key is {KEYS['AWS']}.")
    assert rejected(record, pii="drop") == ("pii", "email 2, key 1")
    tagged = clean_record(record, pii="tag")
    assert tagged["pii"] == {"email": 2, "key": 1}
    assert [message["content"] for message in tagged["messages"]] == [turn["value"] for turn in record["conversations"]]
    assert "pii" not in clean_record(shared(*GOOD), pii="tag")
    assert rejected(shared(*GOOD), pii="drop") is None


HOSTILE = [
    "a@", "a@a.", "1 ", "1", "4-", "+1 (1", "sk-", "eyJaaaaaaaaaa.eyJ", "1.1.1.1.", "-----BEGIN PRIVATE KEY-----",
]  # fmt: skip


class Counted:
    """A pattern that counts the characters it searches."""

    characters = 0

    def __init__(self, pattern):
        self.pattern = pattern

    def sub(self, replace, text):
        Counted.characters += len(text)
        return self.pattern.sub(replace, text)


@pytest.mark.timeout(100)
@pytest.mark.parametrize("text", [
    "a" * 400_000 + "@", "a@" + "a." * 200_000, "eyJ" + "a" * 400_000, *(text * (400_000 // len(text)) for text in HOSTILE),
], ids=lambda text: text[:12])  # fmt: skip
def test_hostile_text_is_searched_for_personal_data_in_linear_time(text):
    """Each pattern searches all of it a few times, and no search takes the hours that the square of its length would."""
    Counted.characters = 0
    rules = [(kind, signs, Counted(pattern), is_one) for kind, signs, pattern, is_one in pii.RULES]
    pii.redacted(text, rules, Counter())
    assert Counted.characters <= 3 * len(rules) * len(text)
