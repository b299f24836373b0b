"""Running a chat template, which is a Jinja program, and finding the texts in what it writes.

Each text that is looked for stands between two marks. Where the marks change what the program writes, it looks at the
texts; then each conversation is rendered for real as well, and the marks are put where they change nothing.
"""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, NamedTuple

from vtools.process import Failure
from vtools.records.jsonl import Reject

# In place of a text; around a text; around what the author of a template marks as the model's (`{% generation %}`).
MARK = re.compile("\ue000(\\d+)\ue001")
_AROUND = re.compile("\ue002(\\d+)\ue003|\ue004(\\d+)\ue005")
BEGIN, END = "\ue006", "\ue007"
_OURS = re.compile("[\ue000-\ue007]")
# Texts that templates treat in their own way, besides those that a template names.
_TEXTS = (
    "", " ", "\n", " a ", "\n\na\n\n", "a\n", "a" * 3000, "<think>\na\n</think>\n\nb", "a</think>b", "<think>a",
    "/think", "/no_think", '{"a": 1}', "[a]", "0", "http://a.b",
)  # fmt: skip


class Span(NamedTuple):
    """Where the text of message number `slot` is in a rendering."""

    slot: int
    start: int
    end: int


class Program:
    """A chat template's program, bound to the names of a tokenizer's special tokens."""

    def __init__(self, name: str, source: str, where: str, tokens: dict[str, str], clock: Any = None) -> None:
        """`tokens` are the variables bos_token, eos_token and pad_token. Raises Failure if it does not compile.

        `clock` is the function strftime_now, which gives the date where a template asks for it.
        """
        self.name, self.tokens = name, tokens
        self._jinja = _compile(source, where)
        if clock:
            self._jinja.globals["strftime_now"] = clock
        self._named = _strings(self._jinja.environment, source)
        self.marks_answers = re.search(r"\{%-?\s*generation\b", source) is not None

    def render(self, messages: Sequence[dict[str, Any]], generation: bool = False) -> str:
        """What it writes, with BEGIN and END where its author marks the model's text. Raises Reject."""
        try:
            written: str = self._jinja.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=generation, **self.tokens
            )
        except Exception as error:  # templates are programs, which can fail in any way
            if "strftime_now" in str(error) and "strftime_now" not in self._jinja.globals:
                self._jinja.globals["strftime_now"] = date(2024, 1, 1).strftime
                return self.render(messages, generation)
            raise Reject("template_error", f"the template {self.name} refuses the conversation: {error}") from None
        return written

    def probes(self) -> Iterator[str]:
        """Texts that the program may treat in its own way: those that it names, alone and within others."""
        yield from _TEXTS
        for named in self._named:
            yield from (named, f"{named}a", f"a{named}", f"a {named} b", f"\n{named}\n")

    def spans(self, messages: Sequence[dict[str, Any]], written: str, generation: bool) -> list[Span]:
        """Where the texts are in `written`, the rendering of these messages: all answers', and others' if it can be.

        Raises Reject("template_error") if an answer is not there as it is.
        """
        answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        filled = [place for place, message in enumerate(messages) if message["content"].strip()]
        for sought in (filled, answers):
            for inner in (False, True):
                if (found := self._marked(messages, sought, inner, written, generation)) is not None:
                    return found
        for place in answers:
            if not any(self._marked(messages, [place], inner, written, generation) for inner in (False, True)):
                break
        raise changed(place, self.name)

    def _marked(
        self, messages: Sequence[dict[str, Any]], sought: list[int], inner: bool, written: str, generation: bool
    ) -> list[Span] | None:
        """The spans of the sought texts; None if marks around them, or within their white space, change the rest."""
        texts = {place: messages[place]["content"] for place in sought}
        marked = [
            {**message, "content": _around(message["content"], place, inner)} if place in texts else message
            for place, message in enumerate(messages)
        ]
        try:
            text = self.render(marked, generation)
        except Reject:
            return None
        begins: dict[int, list[int]] = {}
        ends: dict[int, list[int]] = {}
        bare, done = 0, 0  # lengths of the rendering without and with marks
        pieces = []
        for mark in _AROUND.finditer(text):
            pieces.append(text[done : mark.start()])
            bare += mark.start() - done
            done = mark.end()
            (begins if mark[1] else ends).setdefault(int(mark[1] or mark[2]), []).append(bare)
        if "".join([*pieces, text[done:]]) != written:
            return None
        found: list[Span] = []
        for place, content in texts.items():
            core = content.strip() if inner else content
            span = _span(begins.get(place, []), ends.get(place, []), core, written)
            if span is None or (found and span[0] < found[-1].end):
                return None
            found.append(Span(place, *span))
        return found


def changed(place: int, template: str) -> Reject:
    """The reject of a conversation whose answer is not in its rendering, or with more after it."""
    return Reject(
        "template_error",
        f"messages[{place}]: the template {template} does not write this answer as it is (templates of reasoning models"
        " move or remove <think>)",
    )


def _around(text: str, place: int, inner: bool) -> str:
    core = text.strip() if inner else text
    before, after = text[: text.find(core)], text[text.find(core) + len(core) :]
    return f"{before}\ue002{place}\ue003{core}\ue004{place}\ue005{after}"


def _span(begins: list[int], ends: list[int], core: str, written: str) -> tuple[int, int] | None:
    """Where a text is, given its marks' places. One mark is enough: what a template removes may hold the other."""
    if len(begins) > 1 or len(ends) > 1 or not begins + ends:
        return None
    start = begins[0] if begins else ends[0] - len(core)
    end = start + len(core)
    return (start, end) if start >= 0 and written[start:end] == core and ends in ([], [end]) else None


def marked(roles: tuple[str, ...], edge: str = "") -> list[dict[str, Any]]:
    """Messages with these roles, and a mark in place of each text."""
    return [{"role": role, "content": f"{edge}\ue000{index}\ue001{edge}"} for index, role in enumerate(roles)]


def refuse_marks(messages: Sequence[dict[str, Any]]) -> None:
    """Raise Reject("template_error") for a text that holds the characters of the marks."""
    for place, message in enumerate(messages):
        if _OURS.search(message["content"]):
            raise Reject("template_error", f"messages[{place}] has private characters (U+E000 to U+E007)")


def _compile(source: str, where: str) -> Any:
    """Compile a chat template as transformers does (transformers.utils.chat_template_utils), without importing it.

    It has no clock: a template that asks for today's date uses its own default or gets a fixed one, so that the same
    input gives the same tokens on any day.
    """
    import jinja2
    import jinja2.sandbox

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    # transformers' own block for marking answers. Two tags for each, so that white space is trimmed as around one.
    source = re.sub(
        r"\{%(-?)\s*generation\s*(-?)%\}", rf"{{%\1 if true %}}{{{{ '{BEGIN}' }}}}{{% if true \2%}}", source
    )
    source = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", rf"{{%\1 endif %}}{{{{ '{END}' }}}}{{% endif \2%}}", source)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise Failure(f"{where} does not compile: {error}") from None


def _strings(environment: Any, source: str) -> list[str]:
    """The texts that a program names, each once."""
    import jinja2

    source = re.sub(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}", "", source)
    try:
        names = [node.value for node in environment.parse(source).find_all(jinja2.nodes.Const)]
    except jinja2.TemplateError:
        return []
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name))
