"""Prompt templates: a conversation to text, token ids and loss mask, built from pieces.

Every template is a Jinja chat template. It is rendered with a mark in place of each message's text; splitting the
result at the marks gives the literal pieces between the texts. Where a template looks at the texts, each conversation
is rendered for real too, and its texts are found in that. Control tokens are recognised only in the literals, so what a
user typed stays text. The loss mask is known by construction: each answer and what ends it.
"""

import contextlib
import itertools
import json
import re
import textwrap
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from vtools.files.atomic import write
from vtools.models import generation_prompt, rendering, system_messages
from vtools.models.configs import write_json
from vtools.models.pieces import ROUND, Cutter, Piece
from vtools.models.published_templates import SOURCES, STOP_STRINGS
from vtools.models.text_encoders import AFTER_TOKEN, FIRST, INSIDE, encoders
from vtools.models.tokenizer import Tokenizer
from vtools.process import Failure
from vtools.records.jsonl import Reject
from vtools.records.message import is_trained

NAMES = (*SOURCES, "auto")

_LLAMA_VOCABULARY = 32000


class Rendered(NamedTuple):
    """Token ids of a conversation, and its loss mask: whether each token is trained."""

    ids: list[int]
    mask: list[bool]


class Run(NamedTuple):
    """A part of a rendering that is encoded at once: text for one of the encoders, or a control token."""

    encoder: int
    trained: bool
    place: int  # index of its first piece in the skeleton
    text: str = ""
    token: int | None = None


def load_template(
    name: str | None, tokenizer: Tokenizer, system: str | None = None, fold_system: bool = False
) -> "Template":
    """The template `name` for a tokenizer; without a name the stored one, or Vicuna's for LLaMA's vocabulary.

    `system` is the text that it writes where a conversation has no system message; "" empties its own. `fold_system`
    has it write system messages into the first question. Raises Failure if there is no such template, the tokenizer
    lacks a token that it needs, it has no place for a system message, or one and should fold them.
    """
    chosen = _by_name(name, tokenizer)
    if fold_system:
        chosen = chosen.folding_system()
    return chosen if system is None else chosen.with_system(system)


def _by_name(name: str | None, tokenizer: Tokenizer) -> "Template":
    where = tokenizer.folder
    if name in (None, "auto"):
        if tokenizer.chat_template:
            return Template("auto", tokenizer.chat_template, tuple(tokenizer.stop_strings), tokenizer)
        if (
            name is None
            and len(tokenizer) in (_LLAMA_VOCABULARY, _LLAMA_VOCABULARY + 1)
            and tokenizer.id_of("<0x0A>") == 13
        ):
            name = "vicuna-v1.1"
        else:
            raise Failure(f"{where}: the tokenizer has no chat template; choose one: --template {'|'.join(SOURCES)}")
    source = SOURCES.get(name)
    if source is None:
        raise Failure(f"--template {name}: no such template; choose one of {', '.join(NAMES)}")
    if "eos_token" in source and not tokenizer.eos:
        raise Failure(
            f"{where}: the tokenizer has no end token, which {name} needs: set eos_token in tokenizer_config.json"
        )
    if name == "chatml" and "<|im_end|>" not in tokenizer.added:
        raise Failure(f"{where}: the tokenizer has no <|im_end|> token, which chatml needs; choose another --template")
    if not _adds_bos(tokenizer):  # the model was trained without it
        source = source.replace("{{ bos_token }}", "")
    return Template(name, source, STOP_STRINGS.get(name, ()), tokenizer)


def is_continued(messages: list[dict[str, Any]]) -> bool:
    """Whether a prompt ends with the start of an answer: a last assistant message that is not blank."""
    return bool(messages) and messages[-1]["role"] == "assistant" and bool(messages[-1]["content"].strip())


def refuse_empty(messages: list[dict[str, Any]]) -> None:
    """Raise Reject("template_error") for an empty answer, which has nothing to train on."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and not message["content"].strip():
            raise Reject("template_error", f"messages[{index}]: the answer is empty")


def _adds_bos(tokenizer: Tokenizer) -> bool:
    return bool(tokenizer.bos) and tokenizer.backend.encode("a").ids[0] == tokenizer.id_of(tokenizer.bos or "")


class Template:
    """A chat template bound to a tokenizer."""

    def __init__(self, name: str, source: str, stop_strings: tuple[str, ...], tokenizer: Tokenizer) -> None:
        self.name, self.source, self.tokenizer = name, source, tokenizer
        names = {f"{kind}_token": getattr(tokenizer, kind) or "" for kind in ("bos", "eos", "pad")}
        program = rendering.Program(name, source, f"{tokenizer.folder}: chat template", names)
        self._cutter = Cutter(program, tokenizer, stop_strings)
        self.stop_strings = self._cutter.stop_strings  # with the template's own text that ends an answer
        self.skeleton = self._cutter.skeleton
        self.encoders = encoders(tokenizer)
        # Tokens that text must never become: special ones and, for text typed by users, those that the template itself
        # writes. An answer may contain the latter (such as <think> of a reasoning model).
        finals = self._cutter.finals
        self.forbidden = {True: finals, False: finals | self._used()}
        self._ids = lru_cache(maxsize=256)(self._encode)

    @property
    def looks_at_texts(self) -> bool:
        """Whether what it writes depends on the texts, so that a rendering may not be its skeleton's."""
        return self._cutter.looks

    @property
    def answer_ends(self) -> list[Piece]:
        """What it writes after an answer for the model to learn; empty if nothing ends an answer."""
        return self._cutter.answer_ends

    @property
    def system(self) -> str | None:
        """The system text written where a conversation has none; None if the template has no place for one."""
        try:
            without = self._cutter.written(("user",), True)
            given = rendering.MARK.split(self._cutter.written(("system", "user"), True))
        except Reject:
            return None
        if given[1::2] != ["0", "1"]:
            return None
        return system_messages.found(without, given[0], f"{given[2]}\ue0000\ue001{given[4]}")

    def described(self) -> str:
        """Its name, and the system text that it writes where a conversation has none, in words."""
        name = "the model's own template" if self.name == "auto" else f"the template {self.name}"
        return f"{name}, default system text: {textwrap.shorten(self.system or 'none', 60, placeholder=' …')}"

    def with_system(self, text: str) -> "Template":
        """This template with another default system text. Raises Failure if it has no place for one."""
        plain = system_messages.original(self.source)
        made = Template(self.name, plain, self.stop_strings, self.tokenizer)
        if not text and not made.system:
            return made
        made = Template(self.name, system_messages.replaced(plain, text), self.stop_strings, self.tokenizer)
        if made.system is None or made.system.strip() != text.strip():  # some templates strip it
            raise Failure(f"--system: the template {self.name} has no place for a system message")
        return made

    def folding_system(self) -> "Template":
        """This template, writing a system message into the first question. Raises Failure if it has a place for one."""
        if self._has_system_role:
            what = f"the template {self.name} has a place for a system message"
            raise Failure(f"--fold-system: {what}; leave the option out")
        return Template(self.name, system_messages.folded(self.source), self.stop_strings, self.tokenizer)

    @cached_property
    def _has_system_role(self) -> bool:
        with contextlib.suppress(Reject):
            return bool(self.skeleton(("system", "user"), True))
        return False

    def check(self) -> None:
        """Raise Failure if nothing ends an answer, or prompts cannot end where answers begin.

        A model trained so would never stop, or be asked what it has not learned.
        """
        try:
            ends = self.answer_ends
        except Reject as reject:
            raise Failure(f"{self.tokenizer.folder}: {reject.detail}; choose another --template") from None
        if not ends:
            raise Failure(
                f"{self.tokenizer.folder}: its chat template writes nothing that ends an answer, so the model would"
                f" never stop; choose another --template ({', '.join(SOURCES)}), or end each answer with"
                f" {self.tokenizer.eos or 'a token of its own'} in chat_template.jinja"
            )
        self.as_trained()

    @property
    def untrained_prompt(self) -> str | None:
        """What ends a prompt where what is trained does not follow it; else None."""
        return self._cutter.untrained_prompt

    @property
    def answer_lead(self) -> str:
        """White space that the template puts before an answer and the model writes itself; "" if there is none."""
        try:
            own = self._cutter.before_answer[1]
        except Reject:
            return ""
        return own if own.isspace() else ""

    @property
    def swallowed(self) -> list[tuple[str, str]]:
        """What it writes between texts with white space that a token swallows after it, and the same without."""
        return self._cutter.swallowed

    def as_trained(self) -> "Template":
        """This template, or one whose prompts end where its answers begin. Raises Failure where that cannot be."""
        if self.untrained_prompt is None:
            return self
        after = rendering.MARK.split(self._cutter.written(ROUND[:1], False))[-1]
        source = generation_prompt.replaced(self.source, self._cutter.before_answer[0].removeprefix(after))
        made = Template(self.name, source, self.stop_strings, self.tokenizer)
        if made.untrained_prompt is not None or made.skeleton(ROUND, False) != self.skeleton(ROUND, False):
            raise Failure(
                f"{self.tokenizer.folder}: its chat template ends a prompt with {self.untrained_prompt!r} and writes"
                " answers otherwise, so the model would be asked what it has not learned; choose another --template"
            )
        return made

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids of tokens that end an answer: the end tokens of template, tokenizer and generation config."""
        ends = [piece.token for piece in self.answer_ends]
        eos = self.tokenizer.id_of(self.tokenizer.eos) if self.tokenizer.eos else None
        return frozenset(number for number in (*ends, eos, *self.tokenizer.end_ids) if number is not None)

    def render(self, messages: list[dict[str, Any]], context: int = 0) -> Rendered:
        """Ids and mask of a whole conversation: each answer and the token that ends it are trained.

        Not trained are the first `context` messages, and answers that a weight excludes (`message.is_trained`).

        Raises Reject("template_error") for an empty answer or a conversation that the template cannot render.
        """
        try:
            return self._assemble(messages, False, context)
        except Reject as reject:
            if messages[0]["role"] != "system" or self._has_system_role:
                raise
            advice = "--fold-system writes system messages into the first question"
            raise Reject(reject.reason, f"{reject.detail} ({advice})") from None

    def prompt(self, messages: list[dict[str, Any]]) -> list[int]:
        """Ids of a conversation up to the start of the assistant's next answer. Raises Reject.

        An answer that comes last is one to continue: the ids are those of training up to the end of its text. The white
        space there is kept even where the template strips it, so that text and continuation can be joined.
        """
        return self._assemble(messages, True).ids

    def save(self, folder: Path | str) -> None:
        """Store the template with a model: chat_template.jinja, and the end tokens in generation_config.json."""
        folder = Path(folder)
        write(folder / "chat_template.jinja", self.as_trained().source.encode())
        path = folder / "generation_config.json"
        config = json.loads(path.read_text()) if path.exists() else {}
        ends = sorted(self.stop_ids)
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None  # transformers takes no empty list
        config.pop("stop_strings", None)
        if self.stop_strings:
            config["stop_strings"] = list(self.stop_strings)
        write(path, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if config.pop("chat_template", None) is not None:  # it would compete with this one
            write_json(path, config)

    def runs(self, messages: list[dict[str, Any]], generation: bool = False) -> list[Run]:
        """The runs of a rendering, in order: their ids (see `encode`), concatenated, are those of `render`.

        With `generation`, those of `prompt`. Raises Reject as `render` does.
        """
        return self._runs(messages, self._pieces(messages, generation))

    def _pieces(self, messages: list[dict[str, Any]], generation: bool) -> list[Piece]:
        if not generation:
            refuse_empty(messages)
        elif is_continued(messages):
            return self._unfinished(messages)
        elif messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        return self._cutter.cut(messages, generation)

    def _unfinished(self, messages: list[dict[str, Any]]) -> list[Piece]:
        """The pieces of a conversation up to the end of its last text."""
        last = len(messages) - 1
        pieces = self._cutter.cut(messages, False)
        place, piece = next((place, piece) for place, piece in enumerate(pieces) if piece.slot == last)
        given = messages[last]["content"]
        text = (piece.text or self._cutter.text(messages[last])).rstrip() + given[len(given.rstrip()) :]
        return [*pieces[:place], replace(piece, text=text)]

    def _runs(self, messages: list[dict[str, Any]], pieces: list[Piece]) -> list[Run]:
        runs = []
        parts: list[str] = []
        encoder, trained, begun = FIRST, False, 0
        untrained = _untrained(messages)
        skipped = False
        for place, piece in enumerate(pieces):
            skips = piece.answer in untrained
            if piece.token is not None or piece.trained != trained or skips != skipped:
                if text := "".join(parts):
                    runs.append(Run(encoder, trained, begun, text))
                    encoder = INSIDE
                parts, begun = [], place
                trained, skipped = piece.trained, skips
            if piece.token is not None:
                encoder, begun = AFTER_TOKEN, place + 1
                runs.append(Run(encoder, trained, place, token=piece.token))
            else:
                text = piece.text
                if piece.slot is not None:
                    text = text or self._cutter.text(messages[piece.slot])
                    text = text.lstrip() if place and self._cutter.swallows(pieces[place - 1]) else text
                parts.append(text)
        if text := "".join(parts):
            runs.append(Run(encoder, trained, begun, text))
        return runs

    def encode(self, run: Run) -> list[int]:
        """The token ids of one run."""
        return [run.token] if run.token is not None else self._encode(run.encoder, run.text, run.trained)

    def _assemble(self, messages: list[dict[str, Any]], generation: bool, context: int = 0) -> Rendered:
        ids: list[int] = []
        mask: list[bool] = []
        pieces = self._pieces(messages, generation)
        untrained = _untrained(messages).union(range(context))
        for run in self._runs(messages, pieces):
            # Long texts rarely repeat, and caching them would take hundreds of megabytes.
            short = run.token is None and len(run.text) < 1 << 14
            found = self._ids(run.encoder, run.text, run.trained) if short else self.encode(run)
            ids.extend(found)
            mask.extend([run.trained and pieces[run.place].answer not in untrained] * len(found))
        return Rendered(ids, mask)

    def _used(self) -> dict[int, str]:
        """The control tokens that the template writes between texts, by id."""
        try:
            pieces = self.skeleton(("user", "assistant", "user", "assistant"), False)
        except Reject:  # it needs other roles than these
            return {}
        written = {piece.token: self._cutter.names[piece.token] for piece in pieces if piece.token is not None}
        # White space is always text, although Gemma's line breaks are added tokens.
        return {number: name for number, name in written.items() if len(name) > 1 and name.strip()}

    def _encode(self, encoder: int, text: str, answer: bool) -> list[int]:
        """Text to ids, never to a control token: where one results, the text is split inside the token's name."""
        forbidden = self.forbidden[answer]
        ids = self.encoders[encoder].encode(text, add_special_tokens=False).ids
        names = [re.escape(name) for number in dict.fromkeys(ids) if (name := forbidden.get(number))]
        if not names:
            return ids
        cuts = [0, *(found.start() + 1 for found in re.finditer("|".join(names), text)), len(text)]
        ids = []
        for start, end in itertools.pairwise(cuts):
            ids += (
                self.encoders[encoder if start == 0 else INSIDE].encode(text[start:end], add_special_tokens=False).ids
            )
        return ids


def _untrained(messages: list[dict[str, Any]]) -> frozenset[int]:
    """The numbers of the messages that are context."""
    return frozenset([place for place, message in enumerate(messages) if not is_trained(message)])
