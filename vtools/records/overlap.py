"""Decontamination: whether texts contain the questions of a test, found by n-grams of words that both share.

A question counts as found where a text shares n consecutive words with it. n = 13 and the normalisation (lower case,
punctuation as space) are those of GPT-3 (Brown et al. 2020, appendix C). A question of fewer than n words must occur as
a whole; one of fewer than 8 words (their smallest n) must be the whole text, operators included: `3 + 4?` is not
`3 - 4?`. An n-gram that occurs in more than ten questions of a file is boilerplate and ignored (they ignored n-grams
found in more than ten documents).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vtools.process import Failure
from vtools.records import jsonl
from vtools.records.jsonl import Reject
from vtools.records.question import Question, read_question
from vtools.records.words import with_operators, words

N = 13
SHORTEST = 8  # words; shorter questions occur in texts by chance
COMMON = 10  # questions
SHOWN = 40  # words


@dataclass(frozen=True, slots=True)
class Hit:
    """A question found in a text: its file and id, and the shared words."""

    file: str
    id: str
    words: str

    def __str__(self) -> str:
        return f"question {self.id} of {self.file}: {self.words}"


class Index:
    """An index of questions by their n-grams; about 300 bytes per word."""

    def __init__(self, questions: Iterable[tuple[str, Question]], n: int = N) -> None:
        self.questions: list[tuple[str, str, list[str]]] = []  # file, id, words of one turn
        self.whole: dict[tuple[str, ...], int] = {}  # questions of fewer than SHORTEST words
        self.runs: dict[tuple[str, ...], list[tuple[int, int]]] = {}  # number in `questions`, place
        self.anchors: dict[str, list[tuple[int, int]]] = {}  # place in a run, length of the run
        for file, question in questions:
            for turn in question.turns:
                asked = words(turn)
                if len(asked) < min(n, SHORTEST) and (whole := tuple(with_operators(turn))):
                    self.whole.setdefault(whole, len(self.questions))
                self.questions.append((file, question.id, asked))
        common = self._common(n)
        for number, (_, _, asked) in enumerate(self.questions):
            if len(asked) < min(n, SHORTEST):
                continue
            runs = [(place, tuple(asked[place : place + n])) for place in range(max(1, len(asked) - n + 1))]
            runs = [(place, run) for place, run in runs if run not in common] or [(0, tuple(asked))]
            for place, run in runs:
                self.runs.setdefault(run, []).append((number, place))
        anchored: dict[str, set[tuple[int, int]]] = {}
        for run in self.runs:
            # Texts are searched for the longest (so rarest) word of each n-gram, and only there for all of it.
            longest = max(range(len(run)), key=lambda place: (len(run[place]), run[place]))
            anchored.setdefault(run[longest], set()).add((longest, len(run)))
        self.anchors = {word: sorted(places, reverse=True) for word, places in anchored.items()}

    def _common(self, n: int) -> set[tuple[str, ...]]:
        counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
        for file, _, asked in self.questions:
            counts.update({(file, tuple(asked[place : place + n])) for place in range(len(asked) - n + 1)})
        return {run for (_, run), count in counts.items() if count > COMMON}

    def hits(self, texts: Iterable[str]) -> Iterator[Hit]:
        """Every question found in the texts, once for each place."""
        for text in texts:
            found = words(text)
            if len(found) < SHORTEST and self.whole:
                whole = tuple(with_operators(text))
                if (number := self.whole.get(whole)) is not None:
                    file, identity, _ = self.questions[number]
                    yield Hit(file, identity, " ".join(whole))
            if self.anchors.keys().isdisjoint(found):
                continue
            past = 0  # everything before was part of the last hit
            for place, word in enumerate(found):
                for before, length in self.anchors.get(word, ()):
                    start = place - before
                    if start < past or not (named := self.runs.get(tuple(found[start : start + length]))):
                        continue
                    ends = []
                    for number, position in named:
                        file, identity, asked = self.questions[number]
                        end = start + _shared(found, start, asked, position)
                        ends.append(end)
                        yield Hit(file, identity, " ".join(found[start : min(end, start + SHOWN)]))
                    past = max(ends)


def read(files: Sequence[str], n: int = N) -> Index:
    """The index of the questions in files of any shape that `question` knows. Raises Failure."""
    return Index(_questions(files), n)


def _questions(files: Sequence[str]) -> Iterator[tuple[str, Question]]:
    for file in files:
        number = 0
        for number, record in enumerate(jsonl.records([file]), 1):
            try:
                yield file, read_question(record)
            except Reject as reject:
                raise Failure(f"{file}: question {number}: {reject.detail}") from None
        if not number:
            raise Failure(f"{file}: no questions in it")


def _shared(first: Sequence[str], start: int, second: Sequence[str], position: int) -> int:
    """How many consecutive words two lists share from these positions on."""
    count, most = 0, min(len(first) - start, len(second) - position)
    while count < most and first[start + count] == second[position + count]:
        count += 1
    return count
