"""The page of `vtools report --html`: what it holds, that it is closed to everything else, and that texts stay texts."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from html.parser import HTMLParser

import pytest
from conftest import DATA
from judgments import answered, browsed, counted, data_of, in_both_orders, judged, listed, written

pytest.importorskip("matplotlib")
BLOG = DATA / "vicuna-blog"
HOSTILE = {
    "a script": "<script>document.title='OWNED'</script>",
    "an image": "<img src=x onerror=\"document.title='OWNED'\">",
    "an end of the data": "</script><script>document.title='OWNED'</script>",
    "a comment": "<!--<script>",
    "an end of everything": "</textarea></style></details></body></html><h1>OWNED</h1>",
    "a style": "<style>*{display:none}</style><link rel=stylesheet href=//example.org>",
    "a frame": "<iframe srcdoc='<script>parent.document.title=1</script>'></iframe><object data=x>",
    "a link": '<a href="javascript:document.title=1">[x](javascript:alert(1))',
    "a policy": "<meta http-equiv=refresh content='0;url=https://example.org'><base href=//example.org>",
    "a template": "${document.title='OWNED'} {{constructor}} `${1}` &lt;b&gt; &#x3c;b&#x3e; \\u003cb\\u003e",
    "directions": "safe \u202eevil\u202c \u2066x\u2069 \u2028 \u2029",
    "controls": "\x00\x1b[2J\x1b]0;OWNED\x07\x9b31m\r",
    "Arabic": "\u0645\u0631\u062d\u0628\u0627 hello",
    "a long line": "x" * 100_000,
    "prototypes": "__proto__ constructor toString",
}
VOID = {"meta", "input", "br", "link", "img"}


class Outline(HTMLParser):
    """The elements of a page with their attributes, and the texts in its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.within = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.within = tag

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        if self.within in self.raw:
            self.raw[self.within].append(data)


def page_of(vtools, tmp_path, rows: list[dict], *arguments: str) -> str:
    done = vtools("report", "--html", "page.html", written(tmp_path, "judgments.jsonl", rows), *arguments)
    assert done.returncode == 0, done.errors
    return (tmp_path / "page.html").read_text()


def hostile(tmp_path) -> tuple[list[dict], list[str]]:
    """Judgments and answers of which every text from outside is hostile."""
    rows, answers = [], {"base": [], "tuned": []}
    for number, text in enumerate(HOSTILE.values()):
        name = text[:300]
        id = f"{number} {name}"
        rows += in_both_orders(id, [4, 7], text=text, category=name, judge=f"judge {HOSTILE['an image']}")
        for model in answers:
            answers[model].append(answered(id, f"{model} {HOSTILE['a script']}", text, question=[text]))
    for row in rows:
        row |= {side: f"{row[side]} {HOSTILE['a script']}" for side in "ab"}
    files = [written(tmp_path, f"{model}.jsonl", each) for model, each in answers.items()]
    return rows, ["--answers", files[0], "--answers", files[1]]


def test_the_page_allows_its_own_script_and_style_alone_and_refers_to_nothing_outside(vtools, tmp_path):
    page = page_of(vtools, tmp_path, in_both_orders("1", [5, 9]) + in_both_orders("2", [5, 9]))
    outline = Outline(page)
    (policy,) = [each["content"] for tag, each in outline.found if each.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert set(rules) == {"default-src", "base-uri", "form-action", "script-src", "style-src"}
    for kind, source in (("script", outline.raw["script"][-1]), ("style", "".join(outline.raw["style"]))):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    for tag, attributes in outline.found:
        assert not {"src", "href", "style", "srcset", "action"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "url(" not in "".join(outline.raw["style"]) and "@import" not in page


def test_hostile_texts_are_no_elements_of_the_page(vtools, tmp_path):
    rows, answers = hostile(tmp_path)
    tame = [{**row, "judge": "j", "a": "a", "b": "b", "category": "c", "text": "t"} for row in rows]
    files = [written(tmp_path, f"tame-{name}.jsonl", [answered("1", name, "t")]) for name in "ab"]
    expected = [
        tag for tag, _ in Outline(page_of(vtools, tmp_path, tame, "--answers", files[0], "--answers", files[1])).found
    ]
    page = page_of(vtools, tmp_path, rows, *answers)
    found = [tag for tag, _ in Outline(page).found]
    of_their_own = {"bdi", "td", "tr", "rect", "title", "svg", "path", "g", "text", "tspan", "use", "defs", "p"}
    assert [tag for tag in found if tag not in of_their_own] == [tag for tag in expected if tag not in of_their_own]
    data = data_of(page)
    assert [item["said"][0][4] for item in data["items"]][:2] == list(HOSTILE.values())[:2]
    shown = {question["answers"]["0"][0] for question in data["questions"]}
    assert HOSTILE["a script"] in shown and HOSTILE["a long line"] in shown
    assert "safe \\u202eevil\\u202c \\u2066x\\u2069 \\u2028 \\u2029" in shown
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b\x9b]", page)


def test_every_question_has_both_answers_both_orders_and_the_judges_words(vtools, tmp_path):
    rows = [judged("1", "ab", [5, 9], category="math"), judged("1", "ba", [6, 4], category="math", text="The other.")]
    files = [
        written(tmp_path, f"{model}.jsonl", [answered("1", model, f"{model} says")]) for model in ("base", "tuned")
    ]
    data = data_of(page_of(vtools, tmp_path, rows, "--answers", files[0], "--answers", files[1]))
    assert data["models"] == ["base", "tuned"] and data["judges"] == ["judge-1"]
    (question,), (item,) = data["questions"], data["items"]
    assert (question["id"], question["category"], question["turns"]) == ("1", "math", ["What is 1?"])
    assert question["answers"] == {"0": ["base says"], "1": ["tuned says"]}
    assert item["said"] == [[0, "ab", "b", [5, 9], "What the judge says of 1."], [0, "ba", "a", [6, 4], "The other."]]
    assert item["orders"] and item["won"] == "tie"


def test_the_page_says_first_what_the_terminal_says_first(vtools, tmp_path):
    rows = [row for n in range(30) for row in in_both_orders(str(n), [5, 9 if n % 5 else 5])]
    page = page_of(vtools, tmp_path, rows)
    table = vtools("report", "--table", "judgments.jsonl").stdout.decode().splitlines()
    found = re.search(r"<h1>(.*?)</h1><p class=lead>(.*?)</p>", page)
    assert [found[1], found[2]] == table[:2] and found[1] == "tuned beats base in 90.0% of 30 questions, ties half."


def test_without_the_answers_the_page_says_how_to_name_them(vtools, tmp_path):
    page = page_of(vtools, tmp_path, in_both_orders("1", [5, 9]))
    assert "<code>--answers FILE</code>" in page and "What the judge says of 1." in page


def test_several_judges_of_one_question_are_one_entry_and_their_disagreement_is_marked(vtools, tmp_path):
    rows = in_both_orders("1", [5, 9]) + in_both_orders("1", [9, 5], judge="judge-2")
    (item,) = data_of(page_of(vtools, tmp_path, rows))["items"]
    assert item["judges"] and "orders" not in item and len(item["said"]) == 4


def test_grades_of_single_answers_are_on_the_page(vtools, tmp_path):
    graded = {"mode": "single", "judge": "judge-1", "rubric": "vicuna", "model": "tuned", "text": "Clear."}
    rows = [{**graded, "id": str(n), "turn": 1, "score": n} for n in (3, 8)]
    file = written(tmp_path, "tuned.jsonl", [answered(str(n), "tuned", f"answer {n}") for n in (3, 8)])
    page = page_of(vtools, tmp_path, rows, "--answers", file)
    data = data_of(page)
    assert [item["said"] for item in data["items"]] == [[[0, "", None, [n], "Clear."]] for n in (3, 8)]
    assert data["questions"][1]["answers"] == {"0": ["answer 8"]} and "Mean grades by judge-1" in page


def made_for_browsing(vtools, tmp_path):
    """A page of 120 questions in two categories, of which every fifth is a tie and every seventh flips."""
    rows = []
    for n in range(120):
        scores = [5, 5] if n % 5 == 0 else [5, 9] if n % 2 else [9, 5]
        category = "math" if n % 3 == 0 else "writing"
        both = in_both_orders(f"q{n}", scores, category=category, text=f"Reason number {n}.")
        if n % 7 == 0 and n % 5:
            both[1] |= {"scores": scores[::-1], "verdict": "a" if both[1]["verdict"] == "b" else "b"}
        rows += both
    files = [
        written(tmp_path, f"{model}.jsonl", [answered(f"q{n}", model, f"{model} answers {n}") for n in range(120)])
        for model in ("base", "tuned")
    ]
    page_of(vtools, tmp_path, rows, "--answers", files[0], "--answers", files[1])
    return tmp_path / "page.html"


@pytest.mark.slow
def test_the_page_opens_from_disk_and_filters_by_category_verdict_disagreement_and_text(vtools, tmp_path):
    page = made_for_browsing(vtools, tmp_path)
    document, console = browsed(page)
    assert console == ""
    assert counted(document) == "120 of 120" and len(listed(document)) == 50
    numbers = range(120)
    flips = [n for n in numbers if n % 7 == 0 and n % 5]
    tied = [n for n in numbers if n % 5 == 0 or n in flips]
    expected = {
        "#category=math": [n for n in numbers if n % 3 == 0],
        "#verdict=tie": tied,
        "#verdict=1": [n for n in numbers if n not in tied and n % 2],
        "#agreement=orders": flips,
        "#text=answers+11": [11, *range(110, 120)],
        "#text=REASON+NUMBER+7.": [7],
        "#category=math&verdict=0&text=base": [n for n in numbers if n % 3 == 0 and n not in tied and n % 2 == 0],
        "#text=nowhere": [],
    }
    for address, questions in expected.items():
        document, console = browsed(page, address)
        assert console == ""
        assert counted(document) == f"{len(questions)} of 120", address
        assert [int(re.search(r"What is q(\d+)\?", row)[1]) for row in listed(document)] == questions[:50]
    (row,) = listed(browsed(page, "#text=Reason+number+7.")[0])
    for text in (
        "A: base",
        "base answers 7",
        "B: tuned",
        "tuned answers 7",
        "A’s answer shown first",
        "B’s answer shown first",
        "A 5, B 9",
        "Reason number 7.",
    ):
        assert text in row, row


@pytest.mark.slow
def test_hostile_texts_stay_texts_in_a_browser(vtools, tmp_path):
    every, name = "\n".join(HOSTILE.values()), HOSTILE["an image"]
    rows = in_both_orders(f"1 {name}", [4, 7], text=every, category=name, judge=f"judge {name}")
    rows = [{**row, "a": f"a {name}", "b": f"b {name}"} for row in rows]
    files = []
    for side in "ab":
        answer = answered(f"1 {name}", f"{side} {name}", every, question=[every])
        files += ["--answers", written(tmp_path, f"{side}.jsonl", [answer])]
    page_of(vtools, tmp_path, rows, *files)
    document, console = browsed(tmp_path / "page.html")
    assert console == "" and counted(document) == "1 of 1"
    title = html.unescape(re.search(r"<title>([^<]*)", document)[1])
    assert title == f"b {name} beats a {name} in 100.0% of 1 questions, ties half."
    (row,) = listed(document)  # an only row is open
    assert row.count("x" * 100_000) == 5 and row.count("safe \\u202eevil") >= 5
    assert row.count("<script>document.title='OWNED'</script>") >= 10
    assert len(re.findall(r"<script", document)) == 2
    assert not re.search(r"<(img|iframe|object|link|base|a) ", document.partition('<script type="application/json"')[0])


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--window-size=390,800"], ["--blink-settings=preferredColorScheme=0"]])
def test_the_blogs_judgments_are_a_page_without_a_complaint_of_the_browser(vtools, tmp_path, flags):
    review = BLOG / "review" / "review_gpt35_vicuna-13b.jsonl"
    if not review.exists():
        pytest.skip("the Vicuna blog's reviews are not here (set VTOOLS_TEST_DATA)")
    answers = [
        word for name in ("gpt35", "vicuna-13b") for word in ("--answers", BLOG / "answer" / f"answer_{name}.jsonl")
    ]
    done = vtools("report", review, "--questions", BLOG / "question.jsonl", *answers, "--html", "page.html")
    assert done.returncode == 0, done.errors
    document, console = browsed(tmp_path / "page.html", "#text=Fermi", *flags)
    assert console == "" and counted(document).endswith(" of 80")
