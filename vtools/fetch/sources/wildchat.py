"""WildChat's rows, without what identifies a user.

    {"conversation_hash", "model", "timestamp", "language", "toxic", "redacted", "turn", "openai_moderation",
     "detoxify_moderation", "hashed_ip", "header", "state", "country",
     "conversation": [{"role", "content", "timestamp", "language", "toxic", "redacted", "turn_identifier",
                       "hashed_ip", "header", "state", "country"}]}

The keys of the second and fourth line, an address, a browser and a place, are dropped.
"""

from vtools.fetch import turns
from vtools.records import message
from vtools.records.jsonl import Record, Reject

NAME = "wildchat"
KEYS = ("conversation_hash",)
_PRIVATE = ("hashed_ip", "header", "state", "country")
_TURN = ("timestamp", "turn_identifier", "language", "toxic", "redacted")


def sniff(value: Record) -> bool:
    return isinstance(value.get("conversation"), list)


def read(value: Record, branches: str) -> list[Record]:
    rest = {key: item for key, item in value.items() if key not in _PRIVATE}
    given, identity, created = rest.pop("conversation"), rest.pop("conversation_hash"), rest.pop("timestamp", None)
    if not all(isinstance(turn, dict) for turn in given):
        raise Reject("bad_schema", "conversation: a turn is not an object")
    dropped = {*_PRIVATE, *_TURN}
    bare = [{key: item for key, item in turn.items() if key not in dropped} for turn in given]
    return [turns.record(identity, message.messages_of(bare, "conversation"), created=created, **rest)]
