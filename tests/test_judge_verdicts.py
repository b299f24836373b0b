"""What is a verdict and what is not: replies in six languages whose truth is known, and replies that lure."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtools.judge.verdicts import Choice, Form, Scale, after_thoughts

MARK = "3f9a01bc"
PAIR = Form(MARK, ("Assistant 1", "Assistant 2"), Scale(1, 10))
GRADE = Form(MARK, ("Grade",), Scale(1, 10))
LETTER = Form(MARK, ("Verdict",), Choice({"A": "A is better", "B": "B is better", "C": "equal"}))
FIVE = Form(MARK, ("Verdict",), Choice({name: name for name in ("A>>B", "A>B", "A=B", "B>A", "B>>A")}))
CASED = Form(MARK, ("Verdict",), Choice({"m": "the first", "M": "the second"}))
QUALITIES = Form(MARK, ("coherence", "relevance", "fluency", "engagement"), Scale(1, 5))
CHECKS = Form(MARK, ("question 1", "question 2"), Choice({"yes": "so", "no": "not so"}))
FORMS = {  # with values that each takes, as they are written and as they are read
    "pair": (PAIR, [("8", "6.5"), ("10", "1"), ("7", "7"), ("4", "9")]),
    "single": (GRADE, [("8",), ("1",), ("9.5",), ("10",)]),
    "letter": (LETTER, [("A",), ("B",), ("C",)]),
    "five": (FIVE, [("A>>B",), ("B>A",), ("A=B",)]),
    "qualities": (QUALITIES, [("4", "3", "5", "2"), ("1", "1", "2", "1")]),
    "checks": (CHECKS, [("yes", "no"), ("no", "no")]),
}

# Explanations with code, mathematics, quotes, tables and lists, full of what looks like a verdict and is none.
EXPLANATIONS = {
    "en": [
        "Assistant 1:\n1. gives 8 tips\n2. forgets 3 of them\n\nAssistant 2:\n1. gives 4\n2. explains each.",
        "For accuracy alone I would give Assistant 1: 9 and Assistant 2: 3, but there is more to weigh.",
        "```bash\nif [[ 3 -gt 2 ]]; then echo 'Assistant 1: 10'; fi\n```\nThe test `[[A]]` is never true in that script.",
        "The matrix [[8, 9], [1, 2]] has the determinant 8·2 − 9·1 = 7, so the final answer is [[7]].",
        '"Verdict: B", says the second answer about itself, and "I rate it 10 out of 10". I do not follow it.',
        "| | Assistant 1 | Assistant 2 |\n|---|---|---|\n| errors | 2 | 5 |\n| rank | 1 | 2 |",
        "If the code compiled, the verdict would be A. It does not compile, so it is not A.",
        "Total: 3 + 4 = 7 points of 5 criteria; ranks 1 and 2; 4 out of 5 readers agree. Score: 8/10?",
    ],
    "de": [
        "Antwort 1:\n1. nennt 8 Tipps\n2. lässt 3 aus\n\nAntwort 2:\n1. nennt 4 und begründet sie.",
        "Bei der Genauigkeit allein stünde es Assistant 1: 9 zu Assistant 2: 3, doch das ist nicht alles.",
        "```python\nwerte = [[8, 9], [1, 2]]  # Assistant 1: 10\n```\nDie Klammern [[A]] sind hier eine Matrix.",
        "Die Lösung ist x = −7,5; die erste Antwort rechnet 3 · 4 = 14 und liegt falsch.",
        "„Verdict: B“ steht in der zweiten Antwort über sie selbst. Das zählt nicht.",
        "| | 1 | 2 |\n|---|---|---|\n| Fehler | 2 | 5 |\n| Rang | 1 | 2 |",
        "Wäre das Skript lauffähig, so wäre A besser. Es ist also nicht A.",
        "Note: 2+ im ersten, 4− im zweiten Fall; 4 von 5 Punkten.",
    ],
    "fr": [
        "Assistant 1 :\n1. donne 8 conseils\n2. en oublie 3\n\nAssistant 2 :\n1. en donne 4.",
        "Pour la seule exactitude, je mettrais Assistant 1: 9 et Assistant 2: 3 ; mais ce n'est pas tout.",
        "```js\nconst a = [[8, 9], [1, 2]]; // Assistant 1: 10\n```\nLe test [[A]] n'est jamais vrai.",
        "On a 5x³ − 2x + 3 = 39 pour x = 2 ; la seconde réponse trouve 40.",
        "« Verdict: B », dit la seconde réponse d'elle-même. Je n'en tiens pas compte.",
        "| | 1 | 2 |\n|---|---|---|\n| fautes | 2 | 5 |",
        "Si le code marchait, ce serait A. Ce n'est donc pas A.",
        "La note sur 5 serait 4 ; sur 20, elle serait 16.",
    ],
    "es": [
        "Asistente 1:\n1. da 8 consejos\n2. olvida 3\n\nAsistente 2:\n1. da 4 y los explica.",
        "Solo por la exactitud pondría Assistant 1: 9 y Assistant 2: 3; pero no basta.",
        "```sh\n[[ -f x ]] && echo 'Assistant 2: 10'\n```\nEse corchete no es un [[B]].",
        "La suma 3 + 4 da 7 y no 8; la primera respuesta se equivoca.",
        "«Verdict: B», afirma la segunda respuesta de sí misma. ¡No vale!",
        "| | 1 | 2 |\n|---|---|---|\n| errores | 2 | 5 |",
        "Si el programa funcionara, sería A. No es A.",
        "Un 4 de 5 en estilo; un 9 de 10 en longitud.",
    ],
    "zh": [
        "助手1：\n1. 给出8条建议\n2. 漏了3条\n\n助手2：\n1. 只有4条，但都有解释。",
        "仅就准确性而言，Assistant 1：9，Assistant 2：3，但还要看其他方面。",
        "```python\na = [[8, 9], [1, 2]]  # Assistant 1: 10\n```\n这里的 [[A]] 是矩阵。",
        "方程 3x + 10 = 5(x − 2) 的解是 10，第二个回答得到 −20。",
        "第二个回答自称“Verdict: B”，这不算数。",
        "| | 1 | 2 |\n|---|---|---|\n| 错误 | 2 | 5 |",
        "如果代码能运行，就选 A；但它不能运行，所以不是 A。",
        "满分5分得4分；5个人里有4个同意。",
    ],
    "ru": [
        "Ассистент 1:\n1. даёт 8 советов\n2. забывает 3\n\nАссистент 2:\n1. даёт 4.",
        "Только за точность я бы дал Assistant 1: 9 и Assistant 2: 3, но этого мало.",
        "```c\nint a[2][2] = {{8, 9}, {1, 2}}; // Assistant 1: 10\n```\nСкобки [[A]] здесь ни при чём.",
        "Сумма 3 + 4 равна 7, а не 8; первый ответ ошибается.",
        "«Verdict: B», говорит второй ответ о себе. Это не считается.",
        "| | 1 | 2 |\n|---|---|---|\n| ошибки | 2 | 5 |",
        "Если бы программа работала, был бы A. Значит, не A.",
        "4 из 5 за стиль; 9 из 10 за длину.",
    ],
}  # fmt: skip

RIGHT = {  # the same lines, as models write them
    "plain": lambda before, lines: f"{before}\n\n" + "\n".join(lines),
    "spaced": lambda before, lines: f"{before}\n" + "\n\n".join(f"  {line} " for line in lines) + "\n\n \n",
    "bold": lambda before, lines: f"{before}\n" + "\n".join(f"**{line}**" for line in lines),
    "bold labels": lambda before, lines: f"{before}\n" + "\n".join("**" + line.replace(":", ":**", 1) for line in lines),
    "code": lambda before, lines: f"{before}\n" + "\n".join(f"`{line}`" for line in lines),
    "fenced": lambda before, lines: f"{before}\n```\n" + "\n".join(lines) + "\n```\n",
    "wide colon": lambda before, lines: f"{before}\r\n" + "\r\n".join(line.replace(":", "：", 1) for line in lines),
    "thought": lambda before, lines: f"<think>{before}\n{MARK} Grade: 2\n</think>\n" + "\n".join(lines),
    "only the end of a thought": lambda before, lines: f"{before}</think>" + "\n".join(lines),
}  # fmt: skip


def written(form: Form, values: tuple[str, ...]) -> list[str]:
    return [f"{form.mark} {label}: {value}" for label, value in zip(form.labels, values, strict=True)]


def wrong_replies(form: Form, before: str, lines: list[str]) -> dict[str, str]:
    """Replies with no verdict in the form: each has it in part, in another place, in doubt or as a draft."""
    whole = "\n".join(lines)
    planted = whole.replace(form.mark, "00000000")
    wrong = {
        "nothing but words": before,
        "no marks": f"{before}\n" + whole.replace(f"{form.mark} ", ""),
        "another mark": f"{before}\n{planted}",
        "words after it": f"{whole}\n{before}",
        "a word after it on its line": f"{before}\n{whole} (of 10)",
        "a doubt before it on its line": f"{before}\n" + "\n".join(f"Perhaps {line}" for line in lines),
        "negated": f"{before}\n" + whole.replace(": ", ": not "),
        "conditional": f"{before}\n" + "\n".join(f"{line} if it compiles" for line in lines),
        "out of something": f"{before}\n" + "\n".join(f"{line}/10" for line in lines),
        "a sum": f"{before}\n" + "\n".join(f"{line} + 1" for line in lines),
        "in brackets": f"{before}\n" + "\n".join(line.replace(": ", ": [[") + "]]" for line in lines),
        "quoted": f"{before}\n" + "\n".join(f"> {line}" for line in lines),
        "a table": f"{before}\n" + "\n".join(f"| {line} |" for line in lines),
        "on one line": f"{before} " + " ".join(lines) + " are my words.",
        "twice": f"{whole}\n{before}\n{whole}",
        "a thought without an end": f"<think>{before}\n{whole}",
        "a thought begun again": f"<think>{before}</think> Wait. <thinking>\n{whole}",
        "the placeholders": f"{before}\n" + form.lines,
    }
    if len(lines) > 1:
        wrong |= {
            "the first alone": f"{before}\n{lines[0]}",
            "the last alone": f"{before}\n{lines[-1]}",
            "one from a draft": f"{lines[0]}\n{before}\n" + "\n".join(lines[1:]),
            "the wrong way round": f"{before}\n" + "\n".join(reversed(lines)),
            "words between": f"{before}\n" + "\nand\n".join(lines),
        }
    return wrong


def corpus():
    """(name, form, reply, the values or None) of every combination that is used."""
    turn = itertools.count()
    for language, explanations in EXPLANATIONS.items():
        for before in explanations:
            for kind, (form, choices) in FORMS.items():
                values = choices[next(turn) % len(choices)]
                lines = written(form, values)
                for how, write in RIGHT.items():
                    yield f"{language}, {kind}, {how}", form, write(before, lines), [form.value.read(v) for v in values]
                for how, reply in wrong_replies(form, before, lines).items():
                    yield f"{language}, {kind}, {how}", form, reply, None


def test_of_thousands_of_replies_in_six_languages_none_is_read_wrongly_and_each_in_the_right_form_is_read():
    wrong, missed, read, nulls = [], [], 0, 0
    for name, form, reply, truth in corpus():
        found = form.read(reply)
        if found is not None and found != truth:
            wrong.append((name, found, reply))
        elif found is None and truth is not None:
            missed.append((name, reply))
        read += found is not None
        nulls += found is None
    print(f"{read} read, {nulls} without a verdict, {len(wrong)} wrong, {len(missed)} missed")
    assert not wrong and not missed
    assert read > 2000 and nulls > 2000


@pytest.mark.parametrize(
    ("form", "reply"),
    [
        (PAIR, "Assistant 1:\n8. It ends with a list.\nAssistant 2:\n9. So does this."),
        (PAIR, "Helpfulness\nAssistant 1: 8\nAssistant 2: 7"),
        (PAIR, "Errors found:\nAssistant 1: 2\nAssistant 2: 5"),
        (PAIR, "The totals are 3 + 4 = 7 and 2 + 2 = 4.\nAssistant 1: 7\nAssistant 2: 4"),
        (PAIR, "Ranks:\nAssistant 1: 1\nAssistant 2: 2"),
        (PAIR, f"{MARK} Assistant 1: 4 out of 5\n{MARK} Assistant 2: 3 out of 5"),
        (PAIR, "So A = [[8, 9]]"),
        (LETTER, "if [[ A ]]; then\n  run\nfi"),
        (LETTER, "[[A]]"),
        (LETTER, f"{MARK} Verdict: A or B"),
        (LETTER, f"{MARK} Verdict: AB"),
        (LETTER, f"{MARK} Verdict: D"),
        (LETTER, f"{MARK} Verdict:"),
        (LETTER, f"{MARK} Verdict: a"),
        (LETTER, f"{MARK} Verdict: A\n{MARK} Verdict: B"),
        (CASED, f"{MARK} Verdict: MM"),
        (GRADE, f"{MARK} Grade: 0"),
        (GRADE, f"{MARK} Grade: 11"),
        (GRADE, f"{MARK} Grade: 8,5"),
        (GRADE, f"{MARK} Grade: 8.5.2024"),
        (GRADE, f"{MARK} Grade: 1**0"),
        (GRADE, f"{MARK} Grade: ٨"),
        (GRADE, f"{MARK} Grade: 1e1"),
        (GRADE, f"{MARK} Grade: nan"),
        (GRADE, f"{MARK} Grade: eight"),
        (GRADE, f"{MARK}x Grade: 8"),
        (GRADE, f"{MARK} Grades: 8"),
        (GRADE, f"The answer ends with `{MARK} Grade: 10`, which I was not asked about.\n{MARK} Grade: 3"),
        (PAIR, f"{MARK} Assistant 1: 8\n{MARK} Assistant 2: 12"),
        (PAIR, f"{MARK} Assistant 1: 8 {MARK} Assistant 2: 7"),
        (PAIR, f"<think>\n{MARK} Assistant 1: 8\n{MARK} Assistant 2: 7"),
        (PAIR, ""),
        (QUALITIES, f"{MARK} coherence: 5\n{MARK} relevance: 5\n{MARK} fluency: 5"),
        (CHECKS, f"{MARK} question 1: yes\n{MARK} question 2: partly"),
    ],
)  # fmt: skip
def test_what_only_looks_like_a_verdict_is_none(form, reply):
    assert form.read(reply) is None


@given(st.text(), st.integers(1, 10), st.sampled_from(["\n", "\r\n", "\n\n", "\n**"]))
def test_whatever_stands_before_the_last_line_it_alone_is_the_verdict(before, grade, between):
    line = f"{MARK} Grade: {grade}"
    assert GRADE.read(before) is None
    assert GRADE.read(before + between + line) == [grade]
    assert GRADE.read(line + between + (before.strip("*_` \t\r\n") or "x")) in (None, [grade])  # blanks of any kind


def test_a_judge_that_stammers_costs_no_time():
    for stammer in ("*", "`\n", "_ ", "<", "<think", f"{MARK} ", f"{MARK} Grade:", f"{MARK}" + "*" * 100, "[", "8 "):
        assert GRADE.read(f"{MARK} Grade: " + stammer * 20_000 + " x y") is None


def test_names_that_differ_in_case_only_are_two():
    assert CASED.read(f"{MARK} Verdict: m") == ["m"] and CASED.read(f"{MARK} Verdict: M") == ["M"]


@pytest.mark.parametrize(
    ("reply", "rest"),
    [
        ("a", "a"),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<think>a", None),
        ("<THINK>a</Think>b<think>c", None),
        ("<think>a<think>b</think>c", None),
        ("<thought>a</thought>b", "b"),
        ("<seed:think>a", None),
        ("<|begin_of_thought|>a<|end_of_thought|>b", "b"),
        ("<|begin_of_thought|>a", None),
        ("[THINK]a[/THINK]b", "b"),
        ("[THINK]a", None),
        ("◁think▷a◁/think▷b", "b"),
        ('<reasoning effort="high">a', None),
        ("<|channel|>analysis<|message|>a", None),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "b"),
        ("I think <b>so</b>", "I think <b>so</b>"),
    ],
)
def test_only_what_follows_a_thought_counts(reply, rest):
    assert after_thoughts(reply) == rest


def test_json_counts_if_it_is_exactly_the_schema():
    good = {"explanation": '[[A]] "Assistant 1": 3', "Assistant 1": 8, "Assistant 2": 6.5}
    assert PAIR.read_json(json.dumps(good)) == [8, 6.5]
    assert PAIR.read_json(f"<think>{{}}</think>\n```json\n{json.dumps(good, indent=1)}\n```") == [8, 6.5]
    assert list(PAIR.schema["properties"]) == ["explanation", "Assistant 1", "Assistant 2"]
    for wrong in (
        {**good, "Assistant 2": "6.5 of 10"}, {**good, "Assistant 2": True}, {**good, "Assistant 2": None},
        {**good, "Assistant 2": 0}, {**good, "Assistant 2": [6]}, {**good, "Assistant 2": 10**400}, {**good, "more": 1}, {"Assistant 1": 8, "Assistant 2": 6},
        {"Assistant 1": 8, "Assistant 2": 6, "explanation": "after"},
    ):  # fmt: skip
        assert PAIR.read_json(json.dumps(wrong)) is None, wrong
    twice = '{"explanation": "", "Assistant 1": 3, "Assistant 1": 8, "Assistant 2": 6}'
    nan = '{"explanation": "", "Assistant 1": NaN, "Assistant 2": 6}'
    for wrong in (twice, nan, json.dumps(good) + " and so on", json.dumps([good]), "8 9", "", '{"a":' * 100_000, "<think>" + json.dumps(good)):  # fmt: skip
        assert PAIR.read_json(wrong) is None, wrong[:60]
