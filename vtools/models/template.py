"""Prompt templates: a conversation to text, token ids and loss mask, built from pieces.

Every template is a Jinja chat template. It is rendered with a marker in place of each message's text; splitting the
result at the markers gives the literal pieces between the texts. Control tokens are recognised only in the literals, so
what a user typed stays text. The loss mask is known by construction: each answer and the token that ends it.
"""

import itertools
import json
import re
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from vtools.files.atomic import write
from vtools.models import default_system
from vtools.models.published_templates import SOURCES, STOP_STRINGS
from vtools.models.text_encoders import AFTER_TOKEN, FIRST, INSIDE, encoders
from vtools.models.tokenizer import Tokenizer
from vtools.process import Failure
from vtools.records.jsonl import Reject
from vtools.records.message import is_trained

NAMES = (*SOURCES, "auto")

_MARK = re.compile("\ue000(\\d+)\ue001")
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


def load_template(name: str | None, tokenizer: Tokenizer, system: str | None = None) -> "Template":
    """The template `name` for a tokenizer; without a name the stored one, or Vicuna's for LLaMA's vocabulary.

    `system` is the text that it writes where a conversation has no system message; "" empties its own.
    Raises Failure if there is no such template, the tokenizer lacks a token that it needs, or it has no place for a
    system message.
    """
    chosen = _by_name(name, tokenizer)
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
        self.name, self.source, self.stop_strings, self.tokenizer = name, source, stop_strings, tokenizer
        self._jinja = _compile(source, f"{tokenizer.folder}: chat template")
        self._tokens = {
            text: number for text in tokenizer.added if text and (number := tokenizer.id_of(text)) is not None
        }
        self._names = {number: text for text, number in self._tokens.items()}
        alternatives = "|".join(re.escape(text) for text in sorted(self._tokens, key=len, reverse=True))
        self._control = re.compile(f"({alternatives})" if alternatives else r"(?!)")
        # What ends an answer: any special token, and the declared end token even if it is not flagged special.
        self._finals = {number: text for text, number in self._tokens.items() if number in tokenizer.special_ids}
        declared = {*tokenizer.end_ids, self._tokens.get(tokenizer.eos or "")}
        self._finals |= {number: text for text, number in self._tokens.items() if number in declared}
        ends = [*self._finals.values(), *stop_strings]
        self._end = re.compile(rf"\s*?(?:{'|'.join(re.escape(text) for text in sorted(ends, key=len, reverse=True))})")
        self._has_ends = bool(ends)
        self.skeleton = lru_cache(maxsize=4096)(self._build)
        self._prompt_end = lru_cache(maxsize=4096)(
            lambda roles: _MARK.split(self._render_jinja(_marked(roles), True))[-1]
        )
        self.encoders = encoders(tokenizer)
        # Tokens that text must never become: special ones and, for text typed by users, those that the template itself
        # writes. An answer may contain the latter (such as <think> of a reasoning model).
        self._trimmed = self._trims()
        self.forbidden = {True: self._finals, False: self._finals | self._written()}
        self._ids = lru_cache(maxsize=256)(self._encode)

    @property
    def system(self) -> str | None:
        """The system text written where a conversation has none; None if the template has no place for one."""
        try:
            without = self._render_jinja(_marked(("user",)), True)
            given = _MARK.split(self._render_jinja(_marked(("system", "user")), True))
        except Reject:
            return None
        if given[1::2] != ["0", "1"]:
            return None
        return default_system.found(without, given[0], f"{given[2]}\ue0000\ue001{given[4]}")

    def with_system(self, text: str) -> "Template":
        """This template with another default system text. Raises Failure if it has no place for one."""
        plain = default_system.original(self.source)
        made = Template(self.name, plain, self.stop_strings, self.tokenizer)
        if not text and not made.system:
            return made
        made = Template(self.name, default_system.replaced(plain, text), self.stop_strings, self.tokenizer)
        if made.system is None or made.system.strip() != text.strip():  # some templates strip it
            raise Failure(f"--system: the template {self.name} has no place for a system message")
        return made

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids of tokens that end an answer: the end tokens of template, tokenizer and generation config."""
        probe = self.skeleton(("user", "assistant"), False)
        ends = {piece.token for piece in probe if piece.trained and piece.token is not None}
        eos = self.tokenizer.id_of(self.tokenizer.eos) if self.tokenizer.eos else None
        return frozenset(number for number in (*ends, eos, *self.tokenizer.end_ids) if number is not None)

    def render(self, messages: list[dict[str, Any]], context: int = 0) -> Rendered:
        """Ids and mask of a whole conversation: each answer and the token that ends it are trained.

        Not trained are the first `context` messages, and answers that a weight excludes (`message.is_trained`).

        Raises Reject("template_error") for an empty answer or a conversation that the template cannot render.
        """
        return self._assemble(messages, False, context)

    def prompt(self, messages: list[dict[str, Any]]) -> list[int]:
        """Ids of a conversation up to the start of the assistant's next answer. Raises Reject."""
        return self._assemble(messages, True).ids

    def save(self, folder: Path | str) -> None:
        """Store the template with a model: chat_template.jinja, and the end tokens in generation_config.json."""
        folder = Path(folder)
        write(folder / "chat_template.jinja", self.source.encode())
        path = folder / "generation_config.json"
        config = json.loads(path.read_text()) if path.exists() else {}
        ends = sorted(self.stop_ids)
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        config.pop("stop_strings", None)
        if self.stop_strings:
            config["stop_strings"] = list(self.stop_strings)
        write(path, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if config.pop("chat_template", None) is not None:  # it would compete with this one
            write(path, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())

    def runs(self, messages: list[dict[str, Any]], generation: bool = False) -> list[Run]:
        """The runs of a rendering, in order: their ids (see `encode`), concatenated, are those of `render`.

        With `generation`, those of `prompt`. Raises Reject as `render` does.
        """
        if not generation:
            refuse_empty(messages)
        runs = []
        parts: list[str] = []
        encoder, trained, begun = FIRST, False, 0
        untrained = _untrained(messages)
        skipped = False
        for place, piece in enumerate(self.skeleton(tuple(message["role"] for message in messages), generation)):
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
            elif piece.slot is None:
                parts.append(piece.text)
            else:
                message = messages[piece.slot]
                parts.append(message["content"].strip() if message["role"] in self._trimmed else message["content"])
        if text := "".join(parts):
            runs.append(Run(encoder, trained, begun, text))
        return runs

    def encode(self, run: Run) -> list[int]:
        """The token ids of one run."""
        return [run.token] if run.token is not None else self._encode(run.encoder, run.text, run.trained)

    def _assemble(self, messages: list[dict[str, Any]], generation: bool, context: int = 0) -> Rendered:
        ids: list[int] = []
        mask: list[bool] = []
        pieces = self.skeleton(tuple(message["role"] for message in messages), generation)
        untrained = _untrained(messages).union(range(context))
        for run in self.runs(messages, generation):
            # Long texts rarely repeat, and caching them would take hundreds of megabytes.
            short = run.token is None and len(run.text) < 1 << 14
            found = self._ids(run.encoder, run.text, run.trained) if short else self.encode(run)
            ids.extend(found)
            mask.extend([run.trained and pieces[run.place].answer not in untrained] * len(found))
        return Rendered(ids, mask)

    def _build(self, roles: tuple[str, ...], generation: bool) -> list[Piece]:
        """The pieces of a conversation with these roles, whatever its texts."""
        parts = _MARK.split(self._render_jinja(_marked(roles), generation))
        literals, slots = parts[0::2], [int(number) for number in parts[1::2]]
        if slots != list(range(len(roles))):
            lost = next((index for index in range(len(roles)) if index not in slots), 0)
            raise Reject("template_error", f"messages[{lost}]: the template {self.name} does not render this message")
        pieces: list[Piece] = []
        for index, literal in enumerate(literals):
            if index and roles[index - 1] == "assistant" and (end := self._has_ends and self._end.match(literal)):
                ending, literal = self._literal(literal[: end.end()], index - 1), literal[end.end() :]
                last = ending[-1].token
                if last is not None and self.tokenizer.added[self._names[last]].rstrip:
                    literal = literal.lstrip()
                pieces += ending
            if index == len(roles):
                pieces += self._literal(literal)
                break
            answer = roles[index] == "assistant"
            prompt, own = self._opening(roles[:index], literal) if answer else (literal, "")
            if answer and not own and prompt.endswith(" "):
                # Tokenizers join a space to the next word, so this one belongs to the answer.
                prompt, own = prompt[:-1], " "
            pieces += self._literal(prompt) + self._literal(own, index)
            pieces.append(Piece(index if answer else None, slot=index))
        return pieces

    def _opening(self, roles: tuple[str, ...], literal: str) -> tuple[str, str]:
        """Split the literal before an answer where a prompt would end: the model must generate the rest itself."""
        try:
            prompt = self._prompt_end(roles)
        except Reject:
            return literal, ""
        own = literal.removeprefix(prompt)
        if not prompt or own == literal or any(name in own for name in self._finals.values()):
            return literal, ""
        return prompt, own

    def _trims(self) -> frozenset[str]:
        """The roles whose texts the template strips."""
        for roles in (("system", "user", "assistant"), ("user", "assistant")):
            marked = _marked(roles, edge="\t")
            try:
                text = self._render_jinja(marked, False)
            except Reject:
                continue
            return frozenset(
                role for role, message in zip(roles, marked, strict=True) if message["content"] not in text
            )
        return frozenset()

    def _literal(self, literal: str, answer: int | None = None) -> list[Piece]:
        """The control tokens of a literal, and the text between them."""
        pieces = []
        strip = False
        for index, part in enumerate(self._control.split(literal)):
            if index % 2 == 0:
                part = part.lstrip() if strip else part
                if part:
                    pieces.append(Piece(answer, text=part))
                continue
            token = self.tokenizer.added[part]
            if token.lstrip and pieces and pieces[-1].token is None:
                pieces[-1] = Piece(answer, text=pieces[-1].text.rstrip())
            strip = token.rstrip
            pieces.append(Piece(answer, token=self._tokens[part]))
        return pieces

    def _written(self) -> dict[int, str]:
        """The control tokens that the template writes between texts, by id."""
        try:
            pieces = self.skeleton(("user", "assistant", "user", "assistant"), False)
        except Reject:  # it needs other roles than these
            return {}
        written = {piece.token: self._names[piece.token] for piece in pieces if piece.token is not None}
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

    def _render_jinja(self, messages: list[dict[str, Any]], generation: bool) -> str:
        try:
            return self._jinja.render(
                messages=messages,
                add_generation_prompt=generation,
                bos_token=self.tokenizer.bos or "",
                eos_token=self.tokenizer.eos or "",
                pad_token=self.tokenizer.pad or "",
            )
        except Exception as error:  # templates are programs, which can fail in any way
            if "strftime_now" in str(error) and "strftime_now" not in self._jinja.globals:
                self._jinja.globals["strftime_now"] = date(2024, 1, 1).strftime
                return self._render_jinja(messages, generation)
            raise Reject("template_error", f"the template {self.name} refuses the conversation: {error}") from None


def _untrained(messages: list[dict[str, Any]]) -> frozenset[int]:
    """The numbers of the messages that are context."""
    return frozenset([place for place, message in enumerate(messages) if not is_trained(message)])


def _marked(roles: tuple[str, ...], edge: str = "") -> list[dict[str, Any]]:
    """Messages with these roles, and a marker in place of each text."""
    return [{"role": role, "content": f"{edge}\ue000{index}\ue001{edge}"} for index, role in enumerate(roles)]


def _compile(source: str, where: str) -> Any:
    """Compile a chat template as transformers does (transformers.utils.chat_template_utils), without importing it.

    It has no clock: a template that asks for today's date uses its own default or gets a fixed one, so that the same
    input gives the same tokens on any day.
    """
    import jinja2
    import jinja2.sandbox

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    # transformers' own block for marking answers; our pieces mark them already.
    source = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", source)
    source = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", source)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise Failure(f"{where} does not compile: {error}") from None
