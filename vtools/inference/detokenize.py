"""Token ids to text, incrementally."""

from collections.abc import Callable, Iterable, Sequence


class Detokenizer:
    """Token ids to text in pieces: whole characters only, holding back a possible start of a stop string.

    `lead` is what the text leaves out if it begins so; `before` are the ids of a text that it continues.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stops: Iterable[str], lead: str = "", before: Sequence[int] = ()
    ) -> None:
        self.stopped = False
        self._decode, self._stops, self._lead = decode, tuple(stops), lead
        self._ids = list(before)
        self._start, self._read = 0, len(self._ids)
        self._held = ""

    def push(self, ids: list[int], last: bool, cut: bool = False) -> str:
        """Take new ids and return the text that is now certain; with `last`, all of it.

        With `cut` too, the answer ends because it reached its limit: half a character at its end is left out.
        """
        text = self._characters(ids, last)
        self._held += text.rstrip("\ufffd") if cut else text
        if self._lead and self._held:
            if not last and self._lead != self._held and self._lead.startswith(self._held):
                return ""
            self._held, self._lead = self._held.removeprefix(self._lead), ""
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        keep = 0 if last else max((_overlap(self._held, stop) for stop in self._stops), default=0)
        piece, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return piece

    def _characters(self, ids: list[int], last: bool) -> str:
        # A token's text depends on earlier tokens (spaces, bytes of one character), so a few are decoded again.
        self._ids += ids
        before = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        if text.endswith("\ufffd") and not last:
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(before) :]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of the text that is a prefix of the stop string."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
