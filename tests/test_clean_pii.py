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
    "Slack webhook": "https://hooks.slack.com/" + "services/T02QW5RT7YU/B04PL8KJ6HG/" + "zX9cV7bN5mL3kJ1hG8fD6sA4",
    "Discord webhook": "https://discord.com/api/webhooks/" + "1" + "02938475610293847/" + "qW3_eR5-tY7uI9oP" * 4,
    "Teams webhook": "https://corp.webhook.office.com/" + "webhookb2/3f2a91c4-5b7d-4e8f-9a0b-1c2d3e4f5a6b@" + "7e6d5c4b-3a29-4180-9f8e-7d6c5b4a3928/IncomingWebhook/" + "0a1b2c3d" * 4 + "/x",
    "workflow of Teams": "https://prod-12.westus.logic.azure.com:443/" + "workflows/" + "4f3e2d1c" * 4 + "/triggers/manual/paths/invoke?api-version=2016-06-01&sig=aB3-dE5_fG7",
}  # fmt: skip
RANDOM = "q7" + "Rk2vXz9LmT4wYb8NcP1s"  # of letters and digits
HEX = "3e1f" + "9a7c5b2d8046" + "1f3e9c7a5d2b8640"


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
        ("jo.o'neil@corp.io, Ann.O’Hara@corp.io", "[EMAIL], [EMAIL]"),
        ("'jo@corp.io', f'jo@corp.io'; x='jo@corp.io'", "'[EMAIL]', f'[EMAIL]'; x='[EMAIL]'"),
        ("jörg@bücher.de <ольга@почта.рф>, σοφία@ταχυδρομείο.ελ", "[EMAIL] <[EMAIL]>, [EMAIL]"),
        ("जय@डाक.भारत, jose\u0301@corp.io: pósta@corp.hu", "[EMAIL], [EMAIL]: [EMAIL]"),
        ("jo@xn--bcher-kva.de, jo@mail.xn--p1ai", "[EMAIL], [EMAIL]"),
        ("메일은jo@corp.io입니다, เมลjo@corp.ioนะ", "메일은[EMAIL]입니다, เมล[EMAIL]นะ"),
        ("[2a02:c7f:8e0a:1d00:ab12:ff:fe34:9a1]:443, 2A00:1450:4001:82B::200E.", "[[IP]]:443, [IP]."),
        ("2003:ec:4711::1/64 or 240e:3a1:22:3304::5", "[IP]/64 or [IP]"),
        ("DE12 5001 0517 0648 4898 90, gb56bukb20201537498106 GB56BUKB20201537498106", "[IBAN], gb56bukb20201537498106 [IBAN]"),
        ("IT60 X054 2811 1010 0000 0123 456; BE71 0961 2345 6769 is mine", "[IBAN]; [IBAN] is mine"),
        ("SSN 219-40-7613, or 772-01-0001.", "SSN [SSN], or [SSN]."),
        (f'api_key = "{RANDOM}", "client_secret": "{HEX}"', 'api_key = "[KEY]", "client_secret": "[KEY]"'),
        (f"AWS_SECRET_ACCESS_KEY=Ab3/{RANDOM}+x7 --apikey '{RANDOM}'", "AWS_SECRET_ACCESS_KEY=[KEY] --apikey '[KEY]'"),
        (f"accessToken: `{RANDOM}`; my password is {RANDOM}.", "accessToken: `[KEY]`; my password is [KEY]."),
        (f'os.environ["API_KEY"] = "{RANDOM}" {{\\"token\\": \\"{HEX}\\"}}', 'os.environ["API_KEY"] = "[KEY]" {\\"token\\": \\"[KEY]\\"}'),
        (f"api\\_token=ab\\_{RANDOM}", "api\\_token=[KEY]"),
        *((f'key = "{key}"', 'key = "[KEY]"') for key in KEYS.values()),
        (
            "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEow1bAAKCAQEA9s\n" * 5 + "-----END RSA PRIVATE KEY-----\n",
            "[KEY]\n",
        ),
    ],
)  # fmt: skip
def test_personal_data_and_secrets_are_replaced_by_what_they_were(text, wanted):
    messages = clean_record(shared(f"{text} {GOOD[0]}", f"{text} {GOOD[1]}"), pii="redact")["messages"]
    assert [message["content"] for message in messages] == [f"{wanted} {GOOD[0]}", f"{wanted} {GOOD[1]}"]
    assert clean_record({"messages": messages}, pii="redact")["messages"] == messages


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
        "2001:db8::1 fe80::1 ::1 fd12:3456::1 std::abs 2023:12:31:10 2024:1:2 at 20:01:00 00:1A:2b:3c:4d:5e 2a00::max 2001:0:", "2600:1:2:3",
        "DE12 5001 0517 0648 4898 91, DE1250010517064848989, XX12500105170648489890, SKU AB12CDEF34567890, AA11 2222 3333 4444",
        "000-12-3456 666-12-3456 912-12-3456 219-00-7613 219-40-0000 123-45-6789 1219-40-7613 219-40-7613-2 219-40-76134 219.40.7613",
        "token = getTokenFromHeader2(), password = hashlib.sha256Digest2, secret: base64EncodedSha256Digest, api_key: 0123456789abcdef",
        'api_key = "YOUR_API_KEY_123456", token: "<token>", secret = os.environ["SECRET2SECRET2SECRET2"], password: "correct-horse-battery-22"',
        'publicKeyToken="31bf3856ad364e35" token="0x6B175474E89094C44Da98b954EedeAC495271d0F" tokens 50256, token 3e1f9a7c, the secret password2023',
        "f'a' @b.c, a'@corp.io '@' o''@corp.io «@имя», имя@ и @почта.рф", "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX",
        f"sha256:{HEX}{HEX} commit {HEX} id: 550e8400-e29b-41d4-a716-446655440000, key: {RANDOM}, $1,234.56 1234 5678", "price 2600: 100 at 12:30:45",
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
    "a'", "é@é-", "token=", "secret is ", "2a00:", "DE12 ", "AB12", "123-45-", "https://hooks.slack.com/services/",
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
