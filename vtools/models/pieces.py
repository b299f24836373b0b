"""The pieces of a conversation as a chat template writes it: control tokens, literals, and the messages' texts.

Each answer's pieces are known from those around it: its text, what the template writes before it and not into a prompt,
and what ends it; or what the template's author has marked.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from vtools.models import rendering
from vtools.models.rendering import Program, marked
from vtools.models.tokenizer import Tokenizer
from vtools.records.jsonl import Reject

Messages = Sequence[dict[str, Any]]
ROUND = ("user", "assistant")
_PROBED = (  # the first of these that a template accepts
    ("system", "user", "assistant", "user", "assistant"),
    ("user", "assistant", "user", "assistant"),
    ROUND,
)
_AUTHORS = re.compile(f"([{rendering.BEGIN}{rendering.END}])")


@dataclass(frozen=True, slots=True)
class Piece:
    """A control token (`token`), or text: a literal, or the text of message number `slot`."""

    answer: int | None  # the number of the message that it is trained with
    token: int | None = None
    text: str = ""
    slot: int | None = None

    @property
    def trained(self) -> bool:
        """Whether an answer is trained with it, unless that is context."""
        return self.answer is not None


class Cutter:
    """Cuts what a template writes into pieces."""

    def __init__(self, program: Program, tokenizer: Tokenizer, stop_strings: tuple[str, ...]) -> None:
        self.program, self.tokenizer, self.stop_strings = program, tokenizer, stop_strings
        self.tokens = {
            text: number for text in tokenizer.added if text and (number := tokenizer.id_of(text)) is not None
        }
        self.names = {number: text for text, number in self.tokens.items()}
        alternatives = "|".join(re.escape(text) for text in sorted(self.tokens, key=len, reverse=True))
        self.control = re.compile(f"({alternatives})" if alternatives else r"(?!)")
        # No text becomes one of these: any special token, and the declared end token even if it is not flagged special.
        declared = {*tokenizer.end_ids, self.tokens.get(tokenizer.eos or "")}
        self.finals = {
            number: text
            for text, number in self.tokens.items()
            if number in tokenizer.special_ids or number in declared
        }
        self.skeleton = lru_cache(maxsize=4096)(self._skeleton)
        self.written = lru_cache(maxsize=4096)(lambda roles, more: program.render(marked(roles), more))
        self._prompt_end = lru_cache(maxsize=4096)(lambda roles: rendering.MARK.split(self.written(roles, True))[-1])
        self._end = self._ending({text for number, text in self.finals.items() if number in declared})
        self._trimmed = self._trims()

    def cut(self, messages: Messages, generation: bool) -> list[Piece]:
        """The pieces of a conversation: its skeleton's, or its own where the template looks at texts. Raises Reject."""
        roles = tuple(message["role"] for message in messages)
        if not self.looks:
            return self.skeleton(roles, generation)
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        written = self.program.render(plain, generation)
        with contextlib.suppress(Reject):
            if written == self._expected(plain, generation):
                return self.skeleton(roles, generation)
        rendering.refuse_marks(plain)
        spans = self.program.spans(plain, written, generation)
        placed = {span.slot for span in spans}
        for place, message in enumerate(plain):
            tokens = [token for token in self.control.findall(message["content"]) if token.strip()]
            if place not in placed and tokens:
                raise Reject("template_error", f"messages[{place}]: {tokens[0]} in a text that the template rewrites")
        starts, ends = [span.start for span in spans], [span.end for span in spans]
        texts = [written[span.start : span.end] for span in spans]
        literals = [written[end:start] for end, start in zip([0, *ends], [*starts, len(written)], strict=True)]
        slots = [span.slot for span in spans]
        if self._has_end and not self.program.marks_answers:
            for slot, literal in zip(slots, literals[1:], strict=True):
                if roles[slot] == "assistant" and not self._end.match(literal):
                    raise rendering.changed(slot, self.program.name)
        return self._pieces(roles, literals, slots, texts)

    @property
    def answer_ends(self) -> list[Piece]:
        """What the template writes after an answer and the model learns to write; none if it has no end."""
        probe = self.skeleton(("user", "assistant"), False)
        place = next(place for place, piece in enumerate(probe) if piece.slot == 1)
        return [piece for piece in probe[place + 1 :] if piece.trained]

    @property
    def before_answer(self) -> tuple[str, str]:
        """What the template writes between a question and its answer, untrained and trained. Raises Reject."""
        literal = rendering.MARK.split(self.written(ROUND, False))[-3]
        if self.program.marks_answers:
            before, _, own = literal.partition(rendering.BEGIN)
            return before, own
        return self._opening(ROUND[:1], literal)

    @property
    def untrained_prompt(self) -> str | None:
        """What ends a prompt where what is trained does not follow it; else None."""
        try:
            prompt, (before, own) = self._prompt_end(ROUND[:1]), self.before_answer
        except Reject:
            return None
        begun = self.program.marks_answers and prompt.startswith(before) and (before + own).startswith(prompt)
        return None if not prompt or prompt == before or begun else prompt

    @cached_property
    def _has_end(self) -> bool:
        with contextlib.suppress(Reject):
            return bool(self.answer_ends)
        return False

    @cached_property
    def looks(self) -> bool:
        """Whether what the template writes depends on the texts, in other ways than that it strips them.

        Known by trying texts of all kinds, among them each that the template names.
        """
        for roles in _PROBED:
            try:
                self.skeleton(roles, False)
            except Reject:
                continue
            for text in self.program.probes():
                for role in dict.fromkeys(roles):
                    plain = [
                        {"role": one, "content": text if one == role else f"text {place}"}
                        for place, one in enumerate(roles)
                    ]
                    try:
                        if self.program.render(plain) != self._expected(plain, False):
                            return True
                    except Reject:
                        return True
            return False
        return False

    def _expected(self, messages: Messages, generation: bool) -> str:
        """What the template writes if it does not look at the texts."""
        roles = tuple(message["role"] for message in messages)
        return rendering.MARK.sub(lambda mark: self.text(messages[int(mark[1])]), self.written(roles, generation))

    def text(self, message: dict[str, Any]) -> str:
        """A message's text as the template writes it."""
        text: str = message["content"]
        return text.strip() if message["role"] in self._trimmed else text

    def swallows(self, piece: Piece) -> bool:
        """Whether a piece is a token that swallows the white space after it."""
        return piece.token is not None and self.tokenizer.added[self.names[piece.token]].rstrip

    @property
    def swallowed(self) -> list[tuple[str, str]]:
        """Tokens that swallow white space, with what the template writes after them, and without; longest first."""
        found = set()
        for roles, more in ((_PROBED[0], False), (_PROBED[1], False), (ROUND[:1], True)):
            with contextlib.suppress(Reject):
                parts = self.control.split(rendering.MARK.sub("\ue000", self.written(roles, more)))
                for name, after in zip(parts[1::2], parts[2::2], strict=True):
                    if self.tokenizer.added[name].rstrip and (size := len(after) - len(after.lstrip())):
                        found.add((name + after[:size], name))
        return sorted(found, key=lambda pair: (-len(pair[0]), pair))

    def _skeleton(self, roles: tuple[str, ...], generation: bool) -> list[Piece]:
        """The pieces of a conversation with these roles, whatever its texts."""
        parts = rendering.MARK.split(self.written(roles, generation))
        literals, slots = parts[0::2], [int(number) for number in parts[1::2]]
        if slots != list(range(len(roles))):
            lost = next((index for index in range(len(roles)) if index not in slots), 0)
            raise Reject(
                "template_error", f"messages[{lost}]: the template {self.program.name} does not render this message"
            )
        return self._pieces(roles, literals, slots, [""] * len(slots))

    def _pieces(self, roles: tuple[str, ...], literals: list[str], slots: list[int], texts: list[str]) -> list[Piece]:
        """The pieces of literals with the texts of messages number `slots` between them; "" is the message's own."""
        if self.program.marks_answers:
            return self._marked_pieces(roles, literals, slots, texts)
        pieces: list[Piece] = []
        for index, literal in enumerate(literals):
            before = slots[index - 1] if index else None
            if before is not None and roles[before] == "assistant" and (end := self._end.match(literal)):
                pieces += self._literal(literal[: end.end()], before)
                literal = self._after(pieces, literal[end.end() :])
            if index == len(slots):
                pieces += self._literal(literal)
                break
            slot = slots[index]
            answer = roles[slot] == "assistant"
            prompt, own = self._opening(roles[:slot], literal) if answer else (literal, "")
            pieces += self._literal(prompt) + self._literal(own, slot)
            pieces.append(Piece(slot if answer else None, text=texts[index], slot=slot))
        return pieces

    def _marked_pieces(
        self, roles: tuple[str, ...], literals: list[str], slots: list[int], texts: list[str]
    ) -> list[Piece]:
        """The same where the template's author marks what is trained (`{% generation %}`)."""
        pieces: list[Piece] = []
        inside, owner = False, None
        for index, literal in enumerate(literals):
            for part in _AUTHORS.split(literal):
                if part in (rendering.BEGIN, rendering.END):
                    inside = part == rendering.BEGIN
                    owner = slots[min(index, len(slots) - 1)] if inside else None  # the answer that follows
                elif part := self._after(pieces, part):
                    pieces += self._literal(part, owner)
            if index < len(slots):
                slot = slots[index]
                trained = inside and roles[slot] == "assistant"
                pieces.append(Piece(slot if trained else None, text=texts[index], slot=slot))
        return pieces

    def _opening(self, roles: tuple[str, ...], literal: str) -> tuple[str, str]:
        """Split the literal before an answer where a prompt would end: the model must generate the rest itself."""
        prompt = ""
        with contextlib.suppress(Reject):
            prompt = self._prompt_end(roles)
        own = literal.removeprefix(prompt)
        if not prompt or own == literal or any(name in own for name in self.finals.values()):
            prompt, own = literal, ""
        if not own and prompt.endswith(" "):
            # Tokenizers join a space to the next word, so this one belongs to the answer.
            prompt, own = prompt[:-1], " "
        return prompt, own

    def _ending(self, declared: set[str]) -> re.Pattern[str]:
        """What ends an answer, at the start of what follows it; if nothing does, it matches nothing.

        A declared end token, a special token or the template's own text that follows each answer, the last as well.
        """
        after = [""]
        for roles in _PROBED:
            with contextlib.suppress(Reject):
                parts = rendering.MARK.split(self.written(roles, False))
                if [int(slot) for slot in parts[1::2]] == list(range(len(roles))):
                    literals = [_AUTHORS.sub("", literal) for literal in parts[2::2]]
                    after = [text for text, role in zip(literals, roles, strict=True) if role == "assistant"]
                    break
        ends = {*declared, *self.stop_strings}
        shared = _shared(after)
        token = self.control.search(shared)
        if token and not shared[: token.start()].strip():
            ends.add(token[0])
            self.finals[self.tokens[token[0]]] = token[0]
        elif shared.strip() and not _any_of(ends).match(shared):
            ends.add(shared.strip())
            self.stop_strings = (*self.stop_strings, shared.strip())
        return _any_of(ends)

    def _trims(self) -> frozenset[str]:
        """The roles whose texts the template strips."""
        for roles in (("system", "user", "assistant"), ("user", "assistant")):
            edged = marked(roles, edge="\t")
            try:
                text = self.program.render(edged)
            except Reject:
                continue
            return frozenset(role for role, message in zip(roles, edged, strict=True) if message["content"] not in text)
        return frozenset()

    def _literal(self, literal: str, answer: int | None = None) -> list[Piece]:
        """The control tokens of a literal, and the text between them."""
        pieces = []
        strip = False
        for index, part in enumerate(self.control.split(literal)):
            if index % 2 == 0:
                part = part.lstrip() if strip else part
                if part:
                    pieces.append(Piece(answer, text=part))
                continue
            token = self.tokenizer.added[part]
            if token.lstrip and pieces and pieces[-1].token is None:
                pieces[-1] = Piece(answer, text=pieces[-1].text.rstrip())
            strip = token.rstrip
            pieces.append(Piece(answer, token=self.tokens[part]))
        return pieces

    def _after(self, pieces: list[Piece], literal: str) -> str:
        return literal.lstrip() if pieces and self.swallows(pieces[-1]) else literal


def _any_of(ends: set[str]) -> re.Pattern[str]:
    texts = sorted(filter(None, ends), key=len, reverse=True)
    return re.compile(rf"\s*?(?:{'|'.join(map(re.escape, texts))})" if texts else r"(?!)")


def _shared(texts: list[str]) -> str:
    """What all texts begin with."""
    return os.path.commonprefix(texts)  # noqa: RUF071  it compares characters, as wanted here
