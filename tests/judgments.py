"""Judgments as `vtools judge` writes them, the answers they are about, and the page of a report in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
from running import environment

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def judged(id: str, order: str, scores: list[float] | None, **fields) -> dict:
    """One judgment of a and b in one order; the verdict follows from the scores."""
    verdict = None if scores is None else "a" if scores[0] > scores[1] else "b" if scores[0] < scores[1] else "tie"
    named = {"mode": "pair", "a": "base", "b": "tuned", "order": order, "judge": "judge-1", "rubric": "vicuna"}
    return {"id": id, **named, "scores": scores, "verdict": verdict, "text": f"What the judge says of {id}.", **fields}


def in_both_orders(id: str, scores: list[float] | None, **fields) -> list[dict]:
    return [judged(id, order, scores, **fields) for order in ("ab", "ba")]


def answered(id: str, model: str, *turns: str, **fields) -> dict:
    question = fields.pop("question", [f"What is {id}?"] * len(turns))
    return {"id": id, "model": model, "question": question, "turns": list(turns), **fields}


def written(folder: Path, name: str, rows: list[dict]) -> str:
    tiny.write(folder / name, rows)
    return name


def data_of(page: str) -> dict:
    """What the script of the page reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def browsed(page: Path, address: str = "", *flags: str) -> tuple[str, str]:
    """The page as a browser has it after its script has run, and what the browser's console says."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    folder = page.parent / "browser"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", *flags]
    command += ["--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", f"file://{page}{address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(HOME=str(page.parent)))
    assert done.returncode == 0, done.stderr
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def listed(document: str) -> list[str]:
    """The text of each row of the list of questions."""
    rows = re.search(r'<ol id="list">(.*?)</ol>', document, re.DOTALL)[1].split("<li>")[1:]
    return [" ".join(html.unescape(re.sub(r"<[^>]+>", " ", row)).split()) for row in rows]


def counted(document: str) -> str:
    return re.search(r'<output id="count"[^>]*>([^<]*)<', document)[1]
