"""Rubrics: what a judge is asked to weigh, and what its verdict is made of. One TOML file each, in `rubrics/`.

about = "..."          for readers of the file
[instructions]         general = "...", and others that [categories] gives to questions: coding = "math"
[criteria]             names with what each means; where there is a scale, each gets a score of its own
[pair]                 how two answers are judged, by one of: scale = [LOWEST, HIGHEST]; checklist = true;
                       choices = {A = "a", B = "b", C = "tie"}, whose games = {A = 3} say what a choice is worth;
                       assistants = ["1", "2"] are the answers' names, and scores up to tie = 0 apart are equal
[single]               how one answer is graded: scale or checklist
"""

import hashlib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import orjson

from vtools.judge.verdicts import EXPLANATION, Choice, Form, Scale
from vtools.process import Failure, UsageFailure
from vtools.records.jsonl import Reject
from vtools.records.question import Question

FOLDER = Path(__file__).with_name("rubrics")
GENERAL = "general"  # the instructions for categories without their own
PAIR, SINGLE = "pair", "single"
OUTCOMES = ("a", "b", "tie", "both_bad")
LETTERS = {"A": "a", "B": "b", "C": "tie"}  # one token each, for log-probabilities
DIGITS = Scale(1, 9)
NAME = re.compile(r"\w[\w .-]*")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a verdict says of a pair as it was shown (`a` was first) or of one answer (in the first place of all).

    `scores` are per answer, `criteria` too, by their names; `choice` is the name chosen, worth `games`; `expectation`
    is the share of comparisons that the first would win, ties as halves, by the probabilities of tokens.
    """

    verdict: str | None = None
    scores: tuple[float, ...] | None = None
    criteria: dict[str, tuple[float, ...]] = field(default_factory=dict)
    choice: str | None = None
    games: int = 1
    expectation: float | None = None


@dataclass(frozen=True, slots=True)
class Mode:
    """How a rubric judges pairs, or single answers: by scores on a scale, by a choice or by a checklist.

    Scores of a pair that are no further apart than `tie` are a tie.
    """

    name: str
    assistants: tuple[str, str]
    criteria: tuple[str, ...]
    scale: Scale | None
    choices: dict[str, str]
    games: dict[str, int]
    tie: float

    def form(self, mark: str, question: Question) -> Form:
        """The form for a question. Raises Reject if it has no checklist and needs one."""
        if self.choices:
            return Form(mark, ("Verdict",), self._choice(self.choices))
        parts = list(self.criteria)
        if self.scale is None:
            if not question.checklist:
                raise Reject("bad_schema", f"question {question.id} has no checklist, which the rubric is about")
            parts = [f"question {number}" for number in range(1, len(question.checklist) + 1)]
        value = self.scale or Choice({"yes": "it is so", "no": "it is not so or cannot be told"})
        if self.name == SINGLE:
            return Form(mark, tuple(parts) or ("Grade",), value)
        sides = [f"Assistant {name}" for name in self.assistants]
        return Form(mark, tuple(f"{side} {part}".rstrip() for side in sides for part in parts or [""]), value)

    def one_token_form(self, mark: str) -> Form:
        """A form whose value is one token: a digit for a single answer, a letter for a pair. Raises UsageFailure."""
        if self.name == PAIR:
            return Form(mark, ("Verdict",), self._choice(self._letters))
        if self.criteria or self.scale is None:
            raise UsageFailure("--logprobs reads one value, and the rubric asks for several; leave it out")
        return Form(mark, ("Grade",), DIGITS)

    def outcome(self, form: Form, values: list[Any]) -> Outcome:
        """What the values of a form say."""
        if self.choices:
            (choice,) = values
            return Outcome(self.choices[choice], choice=choice, games=self.games.get(choice, 1))
        numbers = [float(value == "yes") if isinstance(value, str) else value for value in values]
        sides = 1 if self.name == SINGLE else 2
        size = len(numbers) // sides
        rows = [numbers[size * side : size * (side + 1)] for side in range(sides)]
        names = [label.removeprefix(f"Assistant {self.assistants[0]} ") for label in form.labels[:size]]
        scores = tuple(fmean(row) for row in rows)
        criteria = dict(zip(names, zip(*rows, strict=True), strict=True)) if self.criteria or not self.scale else {}
        return Outcome(self._better(*scores) if sides == 2 else None, scores, criteria)

    def expected(self, probabilities: Mapping[Any, float]) -> Outcome:
        """The outcome of probabilities that sum to 1, over the values of `one_token_form`: the mean of a score."""
        if self.name == SINGLE:
            mean = sum(digit * probability for digit, probability in probabilities.items())
            assert self.scale
            share = (mean - DIGITS.lowest) / (DIGITS.highest - DIGITS.lowest)
            return Outcome(scores=(self.scale.lowest + share * (self.scale.highest - self.scale.lowest),))
        worth = {"a": 1.0, "b": 0.0}
        first = sum(worth.get(self._letters[name], 0.5) * probability for name, probability in probabilities.items())
        return Outcome("tie" if first == 0.5 else "a" if first > 0.5 else "b", expectation=first)

    @property
    def _letters(self) -> dict[str, str]:
        return self.choices if self.choices and all(len(name) == 1 for name in self.choices) else LETTERS

    def _better(self, first: float, second: float) -> str:
        apart = round(abs(first - second), 9)  # 3.1 is 0.1 above 3, and not a little more, as in binary
        return "tie" if apart <= self.tie else "a" if first > second else "b"

    def _choice(self, choices: dict[str, str]) -> Choice:
        first, second = (f"Assistant {name} is" for name in self.assistants)
        means = {"a": f"{first} better", "b": f"{second} better", "tie": "both are equal", "both_bad": "both are bad"}
        much = {name: " by far" if self.games.get(name, 1) > 1 else "" for name in choices}
        return Choice({name: means[outcome] + much[name] for name, outcome in choices.items()})


@dataclass(frozen=True, slots=True)
class Rubric:
    """A rubric; `digest` changes with everything that its file says."""

    name: str
    digest: str
    instructions: dict[str, str]
    categories: dict[str, str]
    criteria: dict[str, str]
    modes: dict[str, Mode]

    def mode(self, name: str) -> Mode:
        """How it judges pairs, or single answers. Raises UsageFailure if it does not."""
        if name not in self.modes:
            raise UsageFailure(f"the rubric {self.name} is not for --mode {name}; it has {', '.join(self.modes)}")
        return self.modes[name]

    def instructions_name(self, category: str | None) -> str:
        """Which of the instructions a category gets."""
        return self.categories.get(category or "", GENERAL)


def names() -> list[str]:
    """The rubrics that come with vtools."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> Rubric:
    """A rubric by its name, or from a file. Raises Failure."""
    if name in names():
        path = FOLDER / f"{name}.toml"
    elif "/" in name or name.endswith(".toml"):
        path = Path(name)
    else:
        raise UsageFailure(f"--rubric {name}: there are {', '.join(names())}, or a file, as in my.toml or ./my")
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None
    except ValueError as error:  # neither UTF-8 nor TOML
        raise Failure(f"{path}: not a TOML file ({error})") from None
    return _Reader(str(path)).rubric(path.stem, said)


class _Reader:
    """Reads what a rubric's file says, and names the file and the place of what is wrong."""

    def __init__(self, file: str) -> None:
        self.file = file

    def rubric(self, name: str, said: dict[str, Any]) -> Rubric:
        self.known("", said, ("about", "instructions", "categories", "criteria", PAIR, SINGLE))
        instructions = self.texts("instructions", said)
        categories, criteria = self.texts("categories", said), self.texts("criteria", said)
        if GENERAL not in instructions:
            raise self.wrong("[instructions] has no general, which is for questions of every other category")
        for category, wanted in categories.items():
            if wanted not in instructions:
                raise self.wrong(f"[categories] {category}: [instructions] has no {wanted}")
        modes = {mode: self.mode(mode, said[mode], criteria) for mode in (PAIR, SINGLE) if mode in said}
        if not modes:
            raise self.wrong("neither [pair] nor [single], which say how it judges")
        digest = hashlib.blake2b(orjson.dumps(said, option=orjson.OPT_SORT_KEYS), digest_size=8).hexdigest()
        return Rubric(name, digest, instructions, categories, criteria, modes)

    def mode(self, mode: str, said: Any, criteria: dict[str, str]) -> Mode:
        where = f"[{mode}]"
        own = ("assistants", "choices", "games", "tie") if mode == PAIR else ()
        self.known(where, said, ("scale", "checklist", *own))
        given = [name for name in ("scale", "choices", "checklist") if name in said]
        if len(given) != 1 or said.get("checklist", True) is not True:
            raise self.wrong(
                f"{where} needs one of scale = [LOWEST, HIGHEST], checklist = true and, in [pair], choices"
            )
        choices = self.texts("choices", said)
        games = said.get("games", {})
        assistants = said.get("assistants", ["1", "2"])
        scale = None
        if "scale" in said:
            ends = said["scale"]
            if not (isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends)) and ends[0] < ends[1]):
                raise self.wrong(f"{where} scale: it must be two numbers, the lowest and the highest")
            scale = Scale(*ends)
        if not all(outcome in OUTCOMES for outcome in choices.values()):
            raise self.wrong(f"{where} choices: each must mean one of {', '.join(OUTCOMES)}")
        if any(re.search(r"[\s*_`]", name) or not name for name in choices):
            raise self.wrong(f"{where} choices: a name must have neither blanks nor any of * _ `")
        if not isinstance(games, dict) or any(
            name not in choices or type(count) is not int or count < 1 for name, count in games.items()
        ):
            raise self.wrong(f"{where} games: it must be whole numbers of at least 1, by the names of choices")
        if not (isinstance(assistants, list) and len(assistants) == 2 and all(map(_is_name, assistants))
                and assistants[0] != assistants[1]):  # fmt: skip
            raise self.wrong(f"{where} assistants: it must be two different names, of letters and digits")
        tie = said.get("tie", 0)
        if not _is_number(tie) or tie < 0 or ("tie" in said and choices):
            raise self.wrong(f"{where} tie: it must be a number of at least 0, and is for scores")
        if not all(map(_is_name, criteria)) or EXPLANATION in criteria:
            raise self.wrong(
                f"[criteria]: a name must have only letters, digits, blanks, dots and dashes, and not be {EXPLANATION}"
            )
        scored = tuple(criteria) if scale else ()
        return Mode(mode, (assistants[0], assistants[1]), scored, scale, choices, games, tie)

    def known(self, where: str, said: Any, names: tuple[str, ...]) -> None:
        if not isinstance(said, dict):
            raise self.wrong(f"{where} must be a table")
        for name in said:
            if name not in names:
                raise self.wrong(f"{f'{where} {name}'.strip()}: unknown; there are {', '.join(names)}")

    def texts(self, name: str, said: dict[str, Any]) -> dict[str, str]:
        found = said.get(name, {})
        if not isinstance(found, dict) or not all(isinstance(text, str) and text for text in found.values()):
            raise self.wrong(f"{name} must be a table of texts")
        return found

    def wrong(self, what: str) -> Failure:
        return Failure(f"{self.file}: {what}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(NAME.fullmatch(value)) and "_" not in value
