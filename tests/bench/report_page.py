"""How fast the page of `vtools report --html` opens from disk and filters, in Chromium: 1,000 questions, both orders.

    python tests/bench/report_page.py [--questions 1000]

Needs `pip install playwright` and an installed Chromium. Prints milliseconds, the median and the most of five runs:
from the start of the navigation to the end of the page's script and the next frame; and from a change of a filter to
the frame that shows it. The CPU time of the page's thread says the same on a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

WORDS = "the answer explains every step clearly and gives an example while another one misses a point of it".split()
RUNS = 5
OPENED = (
    """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"""
)
FILTERED = """([name, value]) => new Promise((done) => {
  const field = document.getElementById(name), start = performance.now();
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
})"""
FILTERS = [
    ("text", "question 77"),
    ("text", "misses a point"),
    ("text", ""),
    ("category", "c3"),
    ("category", ""),
    ("order", "high"),
]


def write(folder: Path, number: int) -> list[str]:
    """Judgments and answers of 1,200 characters each; the arguments of `vtools report` that name them."""
    dice = random.Random(1)

    def words(count: int) -> str:
        return " ".join(dice.choices(WORDS, k=count))

    files = {"judgments": [], "base": [], "tuned": []}
    for n in range(number):
        about = {"id": f"q{n}", "category": f"c{n % 8}"}
        for model in ("base", "tuned"):
            asked = [f"Question {n}: {words(15)}?"]
            files[model].append({**about, "model": model, "question": asked, "turns": [words(220)]})
        for order in ("ab", "ba"):
            scores = [dice.randint(1, 10), dice.randint(1, 10)]
            verdict = "a" if scores[0] > scores[1] else "b" if scores[0] < scores[1] else "tie"
            said = {"mode": "pair", "a": "base", "b": "tuned", "order": order, "judge": "judge-1", "text": words(120)}
            files["judgments"].append({**about, **said, "scores": scores, "verdict": verdict, "rubric": "vicuna"})
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["judgments.jsonl", "--answers", "base.jsonl", "--answers", "tuned.jsonl", "--html", "page.html"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=1000)
    number = parser.parse_args().questions
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        made = [shutil.which("vtools") or "vtools", "report", *write(folder, number)]
        subprocess.run(made, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        print(f"{number} questions, {(folder / 'page.html').stat().st_size / 1e6:.1f} MB", file=sys.stderr)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        times: dict[str, list[float]] = {}
        for _ in range(RUNS):
            page = browser.new_page()
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(f"file://{folder}/page.html", wait_until="commit")
            page.wait_for_selector("#list > li")
            times.setdefault("open", []).append(page.evaluate(OPENED))
            spent = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
            times.setdefault("open, CPU of the page", []).append(1000 * spent["TaskDuration"])
            for change in FILTERS:
                times.setdefault(f"{change[0]}: {change[1] or 'all'}", []).append(page.evaluate(FILTERED, change))
            page.close()
        browser.close()
    for what, measured in times.items():
        print(f"{what:<24} median {statistics.median(measured):6.0f} ms, most {max(measured):6.0f} ms")


if __name__ == "__main__":
    main()
