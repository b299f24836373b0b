"""Conversations that came before, or are the start of a longer share of the same chat."""

from vtools.records import conversation
from vtools.records.conversation import Message


class Exact:
    """Tells which texts came before, by their key: about 80 bytes for each one seen, more where ids are wanted."""

    def __init__(self, name_first: bool = False) -> None:
        self.seen: set[int] = set()
        self.first: dict[int, str] | None = {} if name_first else None

    def before(self, key: int, identity: str) -> str | None:
        """What came before, if it did; from now on this has."""
        if key in self.seen:
            return "the same texts came before" + (f", as record {self.first[key]}" if self.first else "")
        self.seen.add(key)
        if self.first is not None:
            self.first[key] = identity
        return None


class Longer:
    """Tells which conversations go on in another record, all noted first; about 100 bytes for each start of one."""

    def __init__(self) -> None:
        self.starts: dict[int, str] = {}

    def note(self, starts: list[int], identity: str) -> None:
        """Remember the keys of the starts of a conversation."""
        for key in starts:
            self.starts.setdefault(key, identity)

    def goes_on(self, key: int) -> str | None:
        """Which record goes on where the conversation with this key ends."""
        return f"record {self.starts[key]} is the same chat and goes on" if key in self.starts else None


def starts(messages: list[Message]) -> list[int]:
    """For each answer but the last, the `conversation.text_key` of the conversation up to there."""
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
