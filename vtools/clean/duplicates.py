"""Conversations that occurred before, or are the start of a longer copy of the same chat."""

from vtools.records import conversation
from vtools.records.conversation import Message


class Exact:
    """Detects texts that occurred before, by their key: about 80 bytes each, more if ids are kept."""

    def __init__(self, name_first: bool = False) -> None:
        self.seen: set[int] = set()
        self.first: dict[int, str] | None = {} if name_first else None

    def before(self, key: int, identity: str) -> str | None:
        """The detail of a reject if the key occurred before; remembers the key."""
        if key in self.seen:
            return "the same texts came before" + (f", as record {self.first[key]}" if self.first else "")
        self.seen.add(key)
        if self.first is not None:
            self.first[key] = identity
        return None


class Longer:
    """Detects conversations that another record continues, after all were noted; about 100 bytes per beginning."""

    def __init__(self) -> None:
        self.starts: dict[int, str] = {}

    def note(self, starts: list[int], identity: str) -> None:
        """Remember the keys of a conversation's beginnings."""
        for key in starts:
            self.starts.setdefault(key, identity)

    def goes_on(self, key: int) -> str | None:
        """Which record continues the conversation with this key, if any."""
        return f"record {self.starts[key]} is a longer version of the same chat" if key in self.starts else None


def starts(messages: list[Message]) -> list[int]:
    """For each answer except the last, the `conversation.text_key` of the conversation up to there."""
    import hashlib

    texts, roles, keys = hashlib.blake2b(digest_size=16), b"", []
    for place, message in enumerate(messages[:-1]):
        texts.update((b"\xff" if place else b"") + conversation.bare(message["content"]))
        roles += b"\0" + message["role"].encode()
        if message["role"] == "assistant":
            digest = texts.copy()
            digest.update(roles)
            keys.append(int.from_bytes(digest.digest()))
    return keys
