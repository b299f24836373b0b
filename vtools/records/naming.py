"""Names of other people's data: `--role THEIRS=OURS` and `--columns OURS=THEIRS,...`."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vtools.process import UsageFailure

ROLES = ("system", "user", "assistant")
COLUMNS = (*ROLES, "id", "messages")


class Names(NamedTuple):
    """Their roles (in lower case) and what they are here; our columns and what they are there. Hashable."""

    roles: dict[str, str]
    columns: dict[str, str]

    def __hash__(self) -> int:
        return len(self.roles) + len(self.columns)  # asked for each record, and hardly ever of two in one process


NONE = Names({}, {})


def parse(roles: Sequence[str] | None, columns: str | None) -> Names:
    """The names that the options give. Raises UsageFailure."""
    known: dict[str, str] = {}
    for given in roles or ():
        theirs, _, ours = given.rpartition("=")
        theirs, ours = theirs.strip().lower(), ours.strip().lower()
        if not theirs:
            raise UsageFailure(f"--role {given}: write THEIRS=OURS, as in --role helper=assistant")
        if ours not in ROLES:
            raise UsageFailure(f"--role {given}: {ours or 'nothing'} is no role; use system, user or assistant")
        if known.setdefault(theirs, ours) != ours:
            raise UsageFailure(f"--role {given}: {theirs} is {known[theirs]} already")
    return Names(known, _columns(columns) if columns is not None else {})


def _columns(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for given in text.split(","):
        ours, _, theirs = given.partition("=")
        ours, theirs = ours.strip().lower(), theirs.strip()
        if not theirs:
            raise UsageFailure(
                f"--columns {text}: write OURS=COLUMN,..., as in --columns user=question,assistant=answer"
            )
        if ours not in COLUMNS:
            raise UsageFailure(f"--columns {text}: {ours or 'nothing'} is none of {', '.join(COLUMNS)}")
        if ours in found:
            raise UsageFailure(f"--columns {text}: {ours} is given twice")
        if theirs in found.values():
            raise UsageFailure(f"--columns {text}: the column {theirs} is given twice")
        found[ours] = theirs
    if ("user" in found and "assistant" in found) == ("messages" in found):
        raise UsageFailure(f"--columns {text}: name user and assistant, or messages alone")
    return found


_ASKED = ("question", "prompt", "instruction", "query", "user", "human", "input", "request")
_ANSWERED = ("answer", "response", "completion", "output", "assistant", "reply", "gpt", "bot")


def suggested(columns: Iterable[str]) -> str:
    """The option for records with these columns, as far as their names tell."""
    names = [name for name in columns if "," not in name]

    def like(words: tuple[str, ...], other: str) -> str:
        found = (name for word in words for name in names if word in name.lower())
        return next(found, other)

    return f"--columns user={like(_ASKED, 'COLUMN')},assistant={like(_ANSWERED, 'COLUMN')}"
